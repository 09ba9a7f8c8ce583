import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from elm_interp.probes import solver
from elm_interp.probes.solver import ProbeWeights, fit_probes

COARSE = 1e-3


def problem(n, d, classes, seed=0, *, repeat=False):
    """Activations with a few strong directions, an offset and features of very different size; five folds."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 4, generator=generator)
    x = torch.randn(n, d, generator=generator) + 2 * hidden @ torch.randn(4, d, generator=generator)
    y = (hidden[:, :classes] + 0.5 * torch.randn(n, classes, generator=generator)).argmax(1)
    if repeat:  # the same text twice, under labels that may differ
        x[n // 2 :] = x[: n - n // 2]
    rows = torch.arange(n) % 5 != torch.arange(5)[:, None]
    return (x + 3) * torch.logspace(-2, 2, d), y, rows


def scikit_learn(x, y, C):
    """The weights on scaled x, and the scaler."""
    z = StandardScaler().fit(x.double().numpy())
    fitted = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(z.transform(x.double().numpy()), y.numpy())
    return ProbeWeights(torch.tensor(fitted.coef_)[None], torch.tensor(fitted.intercept_)[None]), z


def on_scaled(weights, layer, i, z):
    coef = weights.coef[layer, i].double()
    mean, spread = torch.from_numpy(z.mean_), torch.from_numpy(z.scale_)
    return ProbeWeights((coef * spread)[None], (weights.intercept[layer, i].double() + coef @ mean)[None])


def objective(weights, z, y, C):
    right = weights.log_probabilities(z)[0].gather(-1, y[:, None])
    return float(0.5 * weights.coef.square().sum() - C * right.sum())


@pytest.mark.parametrize("C", [0.001, 0.01, 0.5, 10])
@pytest.mark.parametrize(("n", "d", "classes"), [(150, 300, 2), (150, 300, 4), (250, 40, 2), (250, 40, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-9), ("float32", COARSE)])
def test_every_part_is_a_scaler_and_a_logistic_regression(n, d, classes, C, dtype, tolerance):
    both = [problem(n, d, classes, seed) for seed in range(2)]
    x, (_, y, rows) = torch.stack([found[0] for found in both]).to(getattr(torch, dtype)), both[0]
    weights = fit_probes(x, y.expand(5, -1), C, rows=rows, classes=classes, tolerance=tolerance)
    for layer in range(2):
        for i, part in enumerate(rows):
            theirs, z = scikit_learn(x[layer, part], y[part], C)
            ours = on_scaled(weights, layer, i, z)
            scaled = torch.from_numpy(z.transform(x[layer].double().numpy()))[None]
            gap = objective(ours, scaled[:, part], y[part], C) / objective(theirs, scaled[:, part], y[part], C)
            assert 1 - 1e-6 < gap < 1 + (1e-6 if tolerance < COARSE else 1e-3)
            chances = [found.log_probabilities(scaled).exp() for found in (ours, theirs)]
            assert tolerance == COARSE or (chances[0] - chances[1]).abs().max() < 1e-3


@pytest.mark.parametrize("C", [0.001, 0.5, 10])
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 150, 2), (60, 150, 4), (150, 30, 2), (150, 10, 4)])
def test_a_tight_tolerance_gives_scikit_learns_probabilities(n, d, classes, C):
    x, y, _ = problem(n, d, classes)
    z = StandardScaler().fit_transform(x.double().numpy())
    fitted = LogisticRegression(C=C, tol=1e-10, max_iter=100_000, solver="newton-cg").fit(z, y.numpy())
    weights = fit_probes(x.double()[None], y, C, tolerance=1e-13)
    chances = weights.log_probabilities(x.double()[None])[0].exp()
    assert (chances - torch.from_numpy(fitted.predict_proba(z))).abs().max() < 1e-6 * max(1, C)


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 150, 2), (60, 150, 4), (150, 30, 2), (150, 10, 4)])
def test_repeated_rows_and_features_that_are_left_as_they_are(n, d, classes):
    x, y, _ = problem(n, d, classes, repeat=True)
    z = (x / torch.logspace(-2, 2, d)).double()
    fitted = LogisticRegression(C=0.01, tol=1e-8, max_iter=20_000).fit(z.numpy(), y.numpy())
    weights = fit_probes(z[None], y, 0.01, standardise=False)
    assert (
        weights.log_probabilities(z[None])[0].exp() - torch.from_numpy(fitted.predict_proba(z.numpy()))
    ).abs().max() < 1e-3


@pytest.mark.parametrize("d", [60, 30])
@pytest.mark.parametrize("classes", [2, 3])
def test_many_layers_and_labellings_equal_each_alone_in_every_size_of_chunk(d, classes, monkeypatch):
    x = torch.stack([problem(40, d, classes, seed)[0] for seed in range(4)])
    y = torch.stack([problem(40, d, classes, seed)[1] for seed in range(2)])
    together = fit_probes(x, y, 0.05)
    monkeypatch.setattr(solver, "CACHE_NUMBERS", 1)
    assert torch.allclose(fit_probes(x, y, 0.05).scores(x), together.scores(x), atol=1e-4)
    for layer in range(4):
        for task in range(2):
            alone = fit_probes(x[layer : layer + 1], y[task], 0.05)
            assert torch.allclose(together.scores(x)[layer, task], alone.scores(x[layer : layer + 1])[0], atol=1e-3)


def test_each_layer_and_problem_may_have_a_strength_of_its_own():
    x, y, rows = problem(60, 150, 2)
    strengths = torch.tensor([[0.001, 0.1], [0.01, 2.0]])
    together = fit_probes(torch.stack([x, x]), y.expand(2, -1), strengths, rows=rows[:2])
    for layer, task in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = fit_probes(x[None], y, float(strengths[layer, task]), rows=rows[task])
        assert torch.allclose(together.scores(torch.stack([x, x]))[layer, task], alone.scores(x[None])[0], atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_one_gram_matrix_for_each_problem_gives_what_the_examples_themselves_give(classes, monkeypatch):
    x, y, rows = problem(30, 150, classes)
    scaled = (
        x.double() * torch.logspace(-1, 1, 30)[torch.randperm(30, generator=torch.Generator().manual_seed(1))][:, None]
    )
    fitted = {}
    for most in (0, 30):
        monkeypatch.setattr(solver, "OWN", most)
        fitted[most] = fit_probes(scaled[None], y.expand(5, -1), 0.1, rows=rows, classes=classes, tolerance=1e-12)
    assert torch.allclose(fitted[0].scores(scaled[None]), fitted[30].scores(scaled[None]), atol=1e-4)


@pytest.mark.parametrize("d", [300, 40])
def test_rows_left_out_do_not_matter(d):
    x, y, rows = problem(150, d, 3)
    x = x.double()
    weights = fit_probes(x[None], y.expand(5, -1), 0.01, rows=rows, classes=3)
    other, labels = x.clone(), y.clone()
    other[~rows[0]] = 100 * x[~rows[0]].flip(0) - 7
    labels[~rows[0]] = -1
    again = fit_probes(other[None], labels, 0.01, rows=rows[0], classes=3)
    assert (weights.scores(x[None])[0, 0] - again.scores(x[None])[0]).abs().max() < 1e-3


@pytest.mark.parametrize("d", [300, 40])
def test_a_feature_that_does_not_vary_on_the_rows_has_no_weight(d):
    x, y, rows = problem(150, d, 2)
    x[:, 0], x[:, 1], x[~rows[0], 1] = 0.1, 0.1, 5.0
    weights = fit_probes(x[None], y.expand(5, -1), 0.01, rows=rows, classes=2, tolerance=COARSE)
    assert (weights.coef[0, :, :, 0] == 0).all()
    assert weights.coef[0, 0, 0, 1] == 0
    assert weights.coef[0, 1, 0, 1] != 0


def test_bad_problems_are_refused():
    x, y, rows = problem(50, 10, 2)
    with pytest.raises(ValueError, match="one class"):
        fit_probes(x[None], y[None], 0.01, rows=(y == 1)[None], classes=2)
    with pytest.raises(ValueError, match="C is 0"):
        fit_probes(x[None], y, 0)
    with pytest.raises(ValueError, match="not finite"):
        fit_probes(x[None] * torch.nan, y, 1)
    with pytest.raises(ValueError, match="labels are 0 to 1, expected 0 to 0"):
        fit_probes(x[None], y, 1, classes=1)
    with pytest.raises(ValueError, match=r"\(1, 50, 10\), \(5, 50\) and \(5, 49\)"):
        fit_probes(x[None], y.expand(5, -1), 0.01, rows=rows[:, 1:])

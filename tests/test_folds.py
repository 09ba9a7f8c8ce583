import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from elm_interp.probes.folds import TOLERANCE, fit_splits, gram
from elm_interp.probes.logistic import ProbeWeights, objective


def problem(n, d, classes, seed=0):
    """Activations with a few strong directions, an offset and features of very different size; every fold of five left out."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 4, generator=generator)
    x = torch.randn(n, d, generator=generator) + 2 * hidden @ torch.randn(4, d, generator=generator)
    y = (hidden[:, :classes] + 0.5 * torch.randn(n, classes, generator=generator)).argmax(1)
    size = torch.logspace(-2, 2, d)
    rows = torch.arange(n) % 5 != torch.arange(5)[:, None]
    return (x + 3) * size, y, rows


def scikit_learn(x, y, C):
    """Probabilities on x and the weights on scaled x."""
    z = StandardScaler().fit(x.double().numpy())
    fitted = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(z.transform(x.double().numpy()), y.numpy())
    return ProbeWeights(torch.tensor(fitted.coef_)[None], torch.tensor(fitted.intercept_)[None]), z


def on_scaled(weights, layer, i, z):
    coef = weights.coef[layer, i].double()
    mean, spread = torch.from_numpy(z.mean_), torch.from_numpy(z.scale_)
    return ProbeWeights((coef * spread)[None], (weights.intercept[layer, i].double() + coef @ mean)[None])


@pytest.mark.parametrize("C", [0.001, 0.01, 0.5, 10])
@pytest.mark.parametrize(("n", "d", "classes"), [(150, 300, 2), (150, 300, 4), (250, 40, 2), (250, 40, 4)])
@pytest.mark.parametrize("fine", [False, True])
def test_every_part_is_a_scaler_and_a_logistic_regression(n, d, classes, C, fine):
    both = [problem(n, d, classes, seed) for seed in range(2)]
    x, (_, y, rows) = torch.stack([found[0] for found in both]), both[0]
    x = x.double() if fine else x
    weights = fit_splits(x, y.expand(5, -1), rows, C, classes=classes, tolerance=1e-9 if fine else TOLERANCE)
    for layer in range(2):
        for i, part in enumerate(rows):
            theirs, z = scikit_learn(x[layer, part], y[part], C)
            ours = on_scaled(weights, layer, i, z)
            scaled, labels = torch.from_numpy(z.transform(x[layer].double().numpy()))[None], y[None]
            gap = objective(ours, scaled[:, part], labels[:, part], C) / objective(
                theirs, scaled[:, part], labels[:, part], C
            )
            assert 1 - 1e-6 < gap < 1 + (1e-6 if fine else 1e-3)
            chances = [found.log_probabilities(scaled).exp() for found in (ours, theirs)]
            assert not fine or (chances[0] - chances[1]).abs().max() < 1e-3


@pytest.mark.parametrize("d", [300, 40])
def test_rows_left_out_do_not_matter(d):
    x, y, rows = problem(150, d, 3)
    x = x.double()
    weights = fit_splits(x[None], y.expand(5, -1), rows, 0.01, classes=3, tolerance=1e-8)
    other, labels = x.clone(), y.clone()
    other[~rows[0]] = 100 * x[~rows[0]].flip(0) - 7
    labels[~rows[0]] = 0
    again = fit_splits(other[None], labels.expand(1, -1), rows[:1], 0.01, classes=3, tolerance=1e-8)
    assert (weights.scores(x[None])[0, 0] - again.scores(x[None])[0, 0]).abs().max() < 1e-3


@pytest.mark.parametrize("d", [300, 40])
def test_a_feature_that_does_not_vary_on_the_rows_has_no_weight(d):
    x, y, rows = problem(150, d, 2)
    x[:, 0], x[:, 1], x[~rows[0], 1] = 0.1, 0.1, 5.0
    weights = fit_splits(x[None], y.expand(5, -1), rows, 0.01, classes=2)
    assert (weights.coef[0, :, :, 0] == 0).all()
    assert weights.coef[0, 0, 0, 1] == 0
    assert weights.coef[0, 1, 0, 1] != 0


def test_bad_parts_are_refused():
    x, y, rows = problem(50, 10, 2)
    with pytest.raises(ValueError, match="one class"):
        fit_splits(x[None], y[None], (y == 1)[None], 0.01, classes=2)
    with pytest.raises(ValueError, match=r"\(5, 49\)"):
        fit_splits(x[None], y.expand(5, -1), rows[:, 1:], 0.01, classes=2)


def test_the_gram_matrix_of_parts_is_that_of_the_whole():
    x = torch.randn(2, 37, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(gram(x), x @ x.mT)

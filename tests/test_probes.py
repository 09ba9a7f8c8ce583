import numpy as np
import pytest
import torch
from disturbed import random_adapter
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from elm_interp import results
from elm_interp.activations import ActivationStore, collect
from elm_interp.errors import DataError, UnknownNameError
from elm_interp.internals import (
    LogisticProbe,
    ProbeWeights,
    concept_datasets,
    fit_probes,
    probe_layers,
    probes_from_store,
    progression,
    split_by_group,
)
from elm_interp.internals.logistic import objective
from elm_interp.internals.splits import scaler
from elm_interp.metrics import Subject, measure


def problem(n, d, classes, seed=0, *, repeat=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + torch.randn(n, 4, generator=generator) @ torch.randn(
        4, d, generator=generator
    )
    if repeat:  # the same text twice, under labels that may differ
        x[n // 2 :] = x[: n - n // 2]
    return (x - x.mean(0)) / x.std(0), torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("C", [0.001, 0.01, 0.5, 10])
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 150, 2), (60, 150, 4), (150, 30, 2), (150, 10, 4)])
@pytest.mark.parametrize("repeat", [False, True])
def test_agrees_with_scikit_learn(n, d, classes, C, dtype, repeat):
    x, y = problem(n, d, classes, repeat=repeat)
    ours = fit_probes(x[None].to(dtype), y[None], C)
    fitted = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(x.double().numpy(), y.numpy())
    theirs = ProbeWeights(torch.tensor(fitted.coef_)[None], torch.tensor(fitted.intercept_)[None])
    x, y = x[None].double(), y[None]
    assert (ours.log_probabilities(x).exp() - theirs.log_probabilities(x).exp()).abs().max() < 1e-3
    assert objective(ours, x, y, C) < 1.001 * objective(theirs, x, y, C)


@pytest.mark.parametrize("classes", [2, 3])
def test_batched_equals_single(classes):
    x = torch.stack([problem(40, 50, classes, seed)[0] for seed in range(4)])
    y = torch.stack(
        [torch.stack([problem(40, 50, classes, seed + 10 * task)[1] for task in range(2)]) for seed in range(4)]
    )
    together = fit_probes(x, y, 0.05)
    for layer in range(4):
        for task in range(2):
            alone = fit_probes(x[layer : layer + 1], y[layer, task][None], 0.05)
            assert torch.allclose(together.coef[layer, task], alone.coef[0], atol=1e-4)
            assert torch.allclose(together.scores(x)[layer, task], alone.scores(x[layer : layer + 1])[0], atol=1e-3)


def test_bad_problems_are_refused():
    x, y = problem(20, 5, 2)
    with pytest.raises(ValueError, match="one class"):
        fit_probes(x[None], torch.zeros(1, 20, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="C is 0"):
        fit_probes(x[None], y[None], 0)
    with pytest.raises(ValueError, match="not finite"):
        fit_probes(x[None] * torch.nan, y[None], 1)
    with pytest.raises(ValueError, match=r"\(1, 20, 5\)"):
        fit_probes(x[None], y[None, :-1], 1)


@parametrize_with_checks([LogisticProbe()])
def test_is_a_scikit_learn_classifier(estimator, check):
    check(estimator)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_estimator_is_a_scaler_and_a_logistic_regression(classes):
    x, y = problem(80, 20, classes)
    x, y = (3 * x + 5).double().numpy(), np.array(["a", "b", "c"])[y.numpy()]
    z = StandardScaler().fit_transform(x)
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(z, y).predict_proba(z)
    assert np.abs(LogisticProbe(C=0.1).fit(x, y).predict_proba(x) - theirs).max() < 1e-3


# -- layers --------------------------------------------------------------------------------------------------------


def planted(layers=(2,), n_facts=100, d=40, depth=4):
    """Two statements a fact, told apart along one direction at some layers only."""
    generator = torch.Generator().manual_seed(1)
    facts = [f"fact {i // 2}" for i in range(2 * n_facts)]
    labels = torch.arange(2 * n_facts) % 2
    x = torch.randn(2 * n_facts, depth, d, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    for layer in layers:
        x[:, layer] += 6 * (labels[:, None] - 0.5) * direction
    return x, labels, facts


def by_layer(rows, metric):
    table = results.frame(rows)
    return table[table["metric"] == metric].groupby("layer")["value"].mean()


def test_a_planted_direction_is_found_where_it_is_and_nowhere_else():
    x, labels, facts = planted(layers=(1, 2))
    rows = probe_layers(x, labels, facts)
    found, control = by_layer(rows, "probe"), by_layer(rows, "probe.control")
    assert (found[[1, 2]] > 0.95).all()
    assert (found[[0, 3]] - control[[0, 3]]).abs().max() < 0.15
    assert (control - 0.5).abs().max() < 0.12


def test_rows_have_interval_chance_and_number_of_test_examples():
    x, labels, facts = planted()
    table = results.frame(probe_layers(x, labels, facts, seeds=2, site="resid_post"))
    assert len(table) == 2 * 2 * x.shape[1]
    assert set(table["n"]) == {60}
    assert set(table["chance"]) == {0.5}
    assert table["ci_low"].le(table["value"] + 1e-9).all()
    assert table["ci_high"].ge(table["value"] - 1e-9).all()
    assert dict(zip(table["metric"], table["direction"], strict=True)) == {"probe": "down", "probe.control": "neither"}


def test_no_fact_is_on_both_sides_of_a_split():
    groups = [f"fact {i % 17}" for i in range(60)]
    seen = set()
    for seed in range(5):
        train, test = split_by_group(groups, seed=seed)
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(60))
        seen.add(tuple(test.tolist()))
    assert len(seen) == 5
    with pytest.raises(DataError, match="1 facts"):
        split_by_group(["one"] * 9, seed=0)


def test_facts_that_leak_by_row_do_not_help():
    # each fact has its own signature and one label: rows of a fact in both parts would make this easy
    generator = torch.Generator().manual_seed(0)
    member = torch.arange(300) % 30
    labels = (torch.randperm(30, generator=generator) % 2)[member]
    x = torch.randn(30, 1, 64, generator=generator)[member] + 0.1 * torch.randn(300, 1, 64, generator=generator)
    assert abs(by_layer(probe_layers(x, labels, member.tolist(), seeds=10), "probe")[0] - 0.5) < 0.17
    assert by_layer(probe_layers(x, labels, list(range(300))), "probe")[0] > 0.95


def test_the_scaler_sees_train_rows_alone(monkeypatch):
    x, labels, facts = planted()
    seen = []
    monkeypatch.setattr("elm_interp.internals.probes.scaler", lambda part: seen.append(part) or scaler(part))
    probe_layers(x, labels, facts, seeds=1)
    train, _ = split_by_group(facts, seed=0)
    assert len(seen) == 1
    assert torch.equal(seen[0], x[train].transpose(0, 1))


def test_a_feature_that_does_not_vary_is_no_feature():
    x, labels, facts = planted()
    constant = torch.full((*x.shape[:2], 3), 0.1)
    wider = by_layer(probe_layers(torch.cat([x, constant], -1), labels, facts, seeds=2), "probe")
    assert wider.equals(by_layer(probe_layers(x, labels, facts, seeds=2), "probe"))


# -- metrics -------------------------------------------------------------------------------------------------------


def test_the_store_gives_the_rows_of_the_metric_and_the_same_on_every_call(
    tiny_lm, tiny_concept, tmp_path, monkeypatch
):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    states = {"base": None, "step-000010": adapter}
    store = collect(tiny_lm, ActivationStore(tmp_path / "store"), concept_datasets(tiny_concept), states)
    subject = Subject(tiny_lm, tiny_concept).at(adapter, method="elm", step=10)
    computed = measure(subject, "probe.*")
    table = probes_from_store(ActivationStore(tmp_path / "store"), "step-000010")
    assert table.equals(probes_from_store(ActivationStore(tmp_path / "store"), "step-000010"))
    shared = [
        "metric",
        "layer",
        "seed",
        "site",
        "position",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "chance",
        "direction",
        "protocol",
    ]
    assert table[shared].equals(computed[shared])
    assert set(table["metric"]) == {
        f"probe.{t}{c}" for t in ("truth", "association", "choice") for c in ("", ".control")
    }

    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *_, **__: pytest.fail("a pass was run"))
    subject.store = store
    assert measure(Subject(tiny_lm, tiny_concept, adapter, "elm", 10, store=store), "probe.*")[shared].equals(
        table[shared]
    )


def test_a_stale_store_is_not_used(tiny_lm, tiny_concept, tmp_path):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    store = collect(tiny_lm, ActivationStore(tmp_path / "store"), concept_datasets(tiny_concept), {"step-000010": None})
    stale = Subject(tiny_lm, tiny_concept, adapter, "elm", 10, store=store)
    fresh = Subject(tiny_lm, tiny_concept, adapter, "elm", 10)
    assert measure(stale, "probe.truth").equals(measure(fresh, "probe.truth"))


def test_a_task_without_questions_gives_no_rows_and_a_missing_checkpoint_is_named(tiny_lm, tiny_concept, tmp_path):
    some = concept_datasets(tiny_concept, ["choice", "forget_text"])
    store = collect(tiny_lm, ActivationStore(tmp_path), some, {"base": None})
    assert set(probes_from_store(store, "base")["metric"]) == {"probe.choice", "probe.choice.control"}
    with pytest.raises(UnknownNameError, match="Known: base"):
        probes_from_store(store, "step-000010")
    with pytest.raises(UnknownNameError, match="'truth'"):
        probes_from_store(store, "base", ["thruth"])


def test_progression_is_every_subject_in_step_order(tiny_lm, tiny_concept, tmp_path):
    adapters = {k: random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (20, 5)}
    base = Subject(tiny_lm, tiny_concept)
    subjects = [base.at(folder, method="elm", step=k) for k, folder in adapters.items()] + [base]
    table = progression(subjects, ["norm.*", "probe.truth"])
    assert table["step"].drop_duplicates().fillna(0).tolist() == [0, 5, 20]
    assert table.loc[table["step"].isna(), "method"].eq("base").all()
    assert not table.loc[table["step"].isna(), "metric"].str.contains("ratio").any()
    assert table[table["step"] == 20].reset_index(drop=True).equals(measure(subjects[0], ["norm.*", "probe.truth"]))

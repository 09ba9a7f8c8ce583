import pandas as pd
import pytest
import torch
from disturbed import random_adapter
from sklearn.linear_model import LogisticRegression

from elm_interp.activations import ActivationStore, Dataset, collect_datasets
from elm_interp.errors import DataError, UnknownNameError
from elm_interp.metrics import Subject, list_metrics, measure
from elm_interp.probes import (
    PROBE_TASKS,
    LogisticProbe,
    MeanDifferenceProbe,
    choose_strength,
    collect_baselines,
    concept_datasets,
    fit_probes,
    online_code_length,
    probe_layers,
    probe_task,
    probes_from_store,
    split_by_group,
)
from elm_interp.probes.splits import group_folds
from elm_interp.registry import METRICS
from elm_interp.runs.progression import follow_metrics


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
    return rows[rows["metric"] == metric].groupby("layer")["value"].mean()


def test_a_planted_direction_is_found_where_it_is_and_nowhere_else():
    x, labels, facts = planted(layers=(1, 2))
    rows = probe_layers(x, labels, facts)
    found, control = by_layer(rows, "probe"), by_layer(rows, "probe.control")
    assert (found[[1, 2]] > 0.95).all()
    assert (found[[0, 3]] - control[[0, 3]]).abs().max() < 0.15
    assert (control - 0.5).abs().max() < 0.12


def test_rows_have_interval_chance_and_number_of_test_examples():
    x, labels, facts = planted()
    table = probe_layers(x, labels, facts, seeds=2, site="resid_post")
    rows = table.groupby("metric").size()
    assert rows.to_dict() == {
        "probe": 8, "probe.control": 8, "probe.selectivity": 8, "probe.majority": 2, "probe.code_length": 4,
    }  # fmt: skip
    shares = table[table["metric"].isin(["probe", "probe.control"])]
    assert set(shares["n"]) == {60}
    assert set(shares["chance"]) == {0.5}
    assert table["ci_low"].le(table["value"] + 1e-9).all()
    assert table["ci_high"].ge(table["value"] - 1e-9).all()
    assert dict(zip(shares["metric"], shares["direction"], strict=True)) == {
        "probe": "down",
        "probe.control": "neither",
    }


def test_selectivity_is_the_probe_less_its_control():
    x, labels, facts = planted()
    found = probe_layers(x, labels, facts).pivot(index=["layer", "seed"], columns="metric", values="value")
    difference = (found["probe"] - found["probe.control"]).dropna()
    assert (difference - found["probe.selectivity"].dropna()).abs().max() < 1e-12


def test_the_majority_is_the_commonest_train_label_on_test_rows():
    labels = ["no", "yes", "no", "no"] * 25
    x = torch.randn(100, 2, 8, generator=torch.Generator().manual_seed(0))
    table = probe_layers(x, labels)
    for row in table[table["metric"] == "probe.majority"].itertuples():
        _, test = split_by_group(range(100), seed=row.seed)
        assert row.value == sum(labels[i] == "no" for i in test.tolist()) / len(test)


def test_labels_may_be_of_any_kind():
    x, labels, facts = planted()
    numbers = probe_layers(x, labels, facts, seeds=1)
    for named in ([["no", "yes"][v] for v in labels], [bool(v) for v in labels], [7 + int(v) for v in labels]):
        assert probe_layers(x, named, facts, seeds=1).equals(numbers)
    with pytest.raises(DataError, match="example 3 has no label"):
        probe_layers(x, [None if i == 3 else int(v) for i, v in enumerate(labels)], facts)
    with pytest.raises(DataError, match=r"\(200, 4, 40\), 199 labels"):
        probe_layers(x, labels[1:], facts)


def test_any_classifier_of_scikit_learns_kind_can_be_the_probe():
    x, labels, facts = planted()
    for estimator in (MeanDifferenceProbe(), LogisticRegression(C=0.01)):
        found = by_layer(probe_layers(x, labels, facts, seeds=2, estimator=estimator), "probe")
        assert found[2] > 0.95 > 0.7 > found[0]
    ours = probe_layers(x, labels, facts, seeds=2)
    theirs = probe_layers(x, labels, facts, seeds=2, estimator=LogisticProbe())
    assert by_layer(ours, "probe").equals(by_layer(theirs, "probe"))


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


@pytest.mark.parametrize("C", [0.01, (0.01, 0.1)])
def test_what_is_fitted_and_scaled_sees_train_rows_alone(monkeypatch, C):
    x, labels, facts = planted()
    seen = []
    for module in ("layers", "penalty"):
        function = f"elm_interp.probes.{module}.fit_probes"
        monkeypatch.setattr(function, lambda x, *args, **kw: seen.append((x, kw["rows"])) or fit_probes(x, *args, **kw))
    probe_layers(x, labels, facts, seeds=1, C=C, code=False)
    train, _ = split_by_group(facts, seed=0)
    *inner, (_, rows) = seen
    assert all(torch.equal(part, x[train].transpose(0, 1)) for part, _ in inner)
    assert len(inner) == (0 if C == 0.01 else 2)
    assert all(row.nonzero()[:, 0].tolist() == train.tolist() for row in rows)


def test_calls_that_share_their_fits_fit_once_to_the_same_and_read_the_same(monkeypatch):
    x, labels, facts = planted()
    moved, calls = x.roll(1, -1), []
    one = "elm_interp.probes.layers.fit_probes"
    monkeypatch.setattr(one, lambda *args, **kw: calls.append(1) or fit_probes(*args, **kw))
    for fitted_to, other in ((x, labels), (None, labels), (x, labels.flip(0))):
        alone, shared = (
            [probe_layers(m, other, facts, fitted_to=fitted_to, fits=f) for m in (x, moved)] for f in (None, {})
        )
        for a, b in zip(alone, shared, strict=True):
            pd.testing.assert_frame_equal(a, b)
    assert len(calls) == (2 + 1) + (2 + 2) + (2 + 1)
    calls.clear()
    fits = {}
    for other in (labels, labels.flip(0)):  # the same activations, other labels
        probe_layers(x, other, facts, fits=fits)
    assert len(calls) == len(fits) == 2


def test_a_feature_that_does_not_vary_is_no_feature():
    x, labels, facts = planted()
    constant = torch.full((*x.shape[:2], 3), 0.1)
    wider = by_layer(probe_layers(torch.cat([x, constant], -1), labels, facts, seeds=2), "probe")
    assert wider.equals(by_layer(probe_layers(x, labels, facts, seeds=2), "probe"))


def test_a_rotated_stream_is_read_by_a_fresh_probe_and_not_by_the_bases():
    x, labels, facts = planted()
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3)))[0]
    fresh = by_layer(probe_layers(x @ rotation, labels, facts), "probe")
    transferred = by_layer(probe_layers(x @ rotation, labels, facts, fitted_to=x), "probe")
    assert fresh[2] > 0.95
    assert transferred[2] < 0.75
    same = by_layer(probe_layers(x, labels, facts, fitted_to=x), "probe")
    assert same.equals(by_layer(probe_layers(x, labels, facts), "probe"))
    with pytest.raises(DataError, match=r"\(200, 3, 40\), those to read \(200, 4, 40\)"):
        probe_layers(x, labels, facts, fitted_to=x[:, 1:])


# -- the strength, the code -----------------------------------------------------------------------------------------


def test_inner_folds_choose_what_scikit_learn_chooses():
    x, labels, facts = planted(layers=(2,), n_facts=60)
    grid = (0.0001, 0.01, 1.0)
    chosen = choose_strength(x.transpose(0, 1), labels, facts, grid, seed=0, classes=2)
    for layer in (0, 2):
        losses = []
        for C in grid:
            loss = 0.0
            for train, test in group_folds(facts, seed=0, folds=4):
                probe = LogisticProbe(C=C).fit(x[train, layer].numpy(), labels[train].numpy())
                chance = probe.predict_proba(x[test, layer].numpy())
                loss -= torch.from_numpy(chance).log().gather(1, labels[test][:, None]).sum().item()
            losses.append(loss)
        assert chosen[layer] == grid[losses.index(min(losses))]
    assert chosen[2] > chosen[0]


def test_a_choice_of_one_strength_is_that_strength():
    x, labels, facts = planted()
    fixed, chosen = probe_layers(x, labels, facts, seeds=2, C=0.1), probe_layers(x, labels, facts, seeds=2, C=(0.1,))
    for kind in ("probe", "probe.control"):
        assert by_layer(fixed, kind).equals(by_layer(chosen, kind))
    assert chosen["protocol"].str.contains("C by inner folds").any()


def test_what_cannot_be_read_costs_a_bit_and_what_can_less():
    x, labels, facts = planted()
    bits = online_code_length(x.transpose(0, 1), labels, facts, classes=2, C=0.01)
    assert bits.shape == (4, 100)
    assert bits.mean(1)[2] < 0.6
    assert (bits.mean(1)[[0, 1, 3]] > 0.95).all()


def test_the_first_block_of_the_code_is_uniform_and_a_class_not_yet_seen_has_a_price():
    x = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    y[20] = 2
    bits = online_code_length(x, y, [f"{i:02d}" for i in range(40)], classes=3, C=0.1)
    assert bits.isfinite().all()
    assert torch.isclose(bits, torch.tensor(3.0).double().log2()).sum() >= 2
    assert bits[0, 20] > 2


# -- metrics -------------------------------------------------------------------------------------------------------


def test_the_store_gives_the_rows_of_the_metric_and_the_same_on_every_call(
    tiny_lm, tiny_concept, tmp_path, monkeypatch
):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    states = {"base": None, "step-000010": adapter}
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), concept_datasets(tiny_concept), states)
    subject = Subject(tiny_lm, tiny_concept).at(adapter, method="elm", step=10)
    made = list(concept_datasets(tiny_concept, PROBE_TASKS))
    assert len(made) >= 4
    tasks = [f"probe.{task}" for task in made] + [f"probe.transferred.{task}" for task in made]
    computed = measure(subject, tasks)
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
    # texts that two tasks share are read in one batch for the store, so that numbers agree to rounding
    order = ["metric", "layer", "seed"]
    ours, theirs = (rows[shared].sort_values(order, ignore_index=True) for rows in (table, computed))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-4)
    beside = ("", ".control", ".selectivity", ".majority", ".code_length")
    assert set(table["metric"]) == {task + name for task in tasks for name in beside} - {
        f"{task}.code_length" for task in tasks if "transferred" in task
    }

    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *_, **__: pytest.fail("a pass was run"))
    subject.store = store
    fresh, of_task = tasks[: len(made)], table["metric"].str.split(".").str[1].isin(PROBE_TASKS)
    from_store = measure(Subject(tiny_lm, tiny_concept, adapter, "elm", 10, store=store), fresh)
    assert from_store[shared].equals(table.loc[of_task, shared].reset_index(drop=True))


def test_below_the_adapter_the_bases_probe_reads_as_it_did(tiny_lm, tiny_concept, tmp_path):
    base = Subject(tiny_lm, tiny_concept)
    erased = base.at(random_adapter(tiny_lm, tmp_path / "adapter", seed=1), method="elm", step=1)  # on layers 1 and 2
    fresh, transferred = measure(base, "probe.truth"), measure(erased, "probe.transferred.truth")
    at = [table[table["metric"] == name].set_index(["layer", "seed"])["value"] for table, name in (
        (fresh, "probe.truth"), (transferred, "probe.transferred.truth"),
    )]  # fmt: skip
    assert at[0][0].equals(at[1][0])
    assert not at[0].equals(at[1])
    assert measure(base, "probe.transferred.*").empty


def test_the_embedding_baseline_has_no_layer_and_no_adapter_in_it(tiny_lm, tiny_concept, tmp_path):
    base = Subject(tiny_lm, tiny_concept)
    erased = base.at(random_adapter(tiny_lm, tmp_path / "adapter", seed=1), method="elm", step=1)
    ours, theirs = (measure(subject, "probe.embedding.choice") for subject in (base, erased))
    assert ours["layer"].isna().all()
    assert ours["value"].equals(theirs["value"])


def test_the_base_in_a_store_has_its_baselines(tiny_lm, tiny_concept, tmp_path):
    datasets = concept_datasets(tiny_concept, PROBE_TASKS)
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), datasets, {"base": None})
    without = probes_from_store(store, "base")
    collect_baselines(tiny_lm, store, datasets)
    table = probes_from_store(store, "base")
    assert table[table["metric"].isin(without["metric"])].reset_index(drop=True).equals(without)
    # words alone: as the metric, which reads them itself; random weights: every layer, and not what the base gives
    words = measure(Subject(tiny_lm, tiny_concept), "probe.embedding.truth").query("metric == 'probe.embedding.truth'")
    assert (
        table.loc[table["metric"].str.match(r"probe\.(embedding|random_init)|probe\.about"), "direction"] == "neither"
    ).all()
    found = table[table["metric"] == "probe.embedding.truth"]
    assert found["value"].tolist() == pytest.approx(words["value"].tolist())
    assert found["layer"].isna().all()
    never = table[table["metric"] == "probe.random_init.truth"]
    assert sorted(never["layer"].unique()) == list(range(tiny_lm.n_layers))
    assert not torch.equal(store.tensor("truth-random_init", "random_init"), store.tensor("truth", "base"))
    # and what another worker collected can still be taken in
    other = collect_datasets(
        tiny_lm, ActivationStore(tmp_path / "other"), concept_datasets(tiny_concept, ["retain_text"]), {"base": None}
    )
    assert store.merge(other.folder).has("retain_text", "base")


def test_a_stale_store_is_not_used(tiny_lm, tiny_concept, tmp_path):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    store = collect_datasets(
        tiny_lm, ActivationStore(tmp_path / "store"), concept_datasets(tiny_concept), {"step-000010": None}
    )
    stale = Subject(tiny_lm, tiny_concept, adapter, "elm", 10, store=store)
    fresh = Subject(tiny_lm, tiny_concept, adapter, "elm", 10)
    assert measure(stale, "probe.truth").equals(measure(fresh, "probe.truth"))


def test_a_task_without_questions_gives_no_rows_and_a_missing_checkpoint_is_named(tiny_lm, tiny_concept, tmp_path):
    some = concept_datasets(tiny_concept, ["choice", "forget_text"])
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path), some, {"base": None})
    assert {name.split(".")[1] for name in probes_from_store(store, "base")["metric"]} == {"choice"}
    with pytest.raises(UnknownNameError, match="Known: base"):
        probes_from_store(store, "step-000010")
    with pytest.raises(UnknownNameError, match="'truth'"):
        probes_from_store(store, "base", ["thruth"])


@pytest.fixture
def task_of_ones_own(monkeypatch):
    """A task that another distribution could declare; undone after the test."""
    list(PROBE_TASKS)  # all others are declared
    for registry in (PROBE_TASKS, METRICS):
        for name in ("_found", "_origins"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))

    @probe_task("length", better="neither", chance=0.5)
    def length(concept):
        """Is the passage long?"""
        passages = concept.passages("forget", "all") + concept.passages("retain", "all")
        half = sorted(len(p.text) for p in passages)[len(passages) // 2]
        rows = [{"id": p.id, "fact": p.id, "split": p.split, "label": len(p.text) > half} for p in passages]
        return Dataset("any name", tuple(p.text for p in passages), pd.DataFrame(rows), "last")


@pytest.mark.usefixtures("task_of_ones_own")
def test_a_declared_task_is_collected_probed_and_followed(tiny_lm, tiny_concept, tmp_path):
    datasets = concept_datasets(tiny_concept, PROBE_TASKS)
    assert list(datasets) == ["truth", "association", "choice", "about", "length"]
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    states = {"base": None, "step-000010": adapter}
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), {"length": datasets["length"]}, states)
    collect_baselines(tiny_lm, store, {"length": datasets["length"]})
    found = [set(probes_from_store(store, name)["metric"].str.removesuffix(".control")) for name in states]
    assert {"probe.length", "probe.embedding.length", "probe.random_init.length"} <= found[0]
    assert {"probe.length", "probe.transferred.length"} <= found[1]
    base = Subject(tiny_lm, tiny_concept)
    table = follow_metrics([base, base.at(adapter, method="elm", step=10)], ["probe.length", "probe.*.length"])
    assert set(table.loc[table["metric"] == "probe.length", "method"]) == {"base", "elm"}
    assert "probe.transferred.length" in set(table["metric"])
    assert table["direction"].eq("neither").any()


def test_the_metrics_of_a_task_say_what_they_show_and_ask_the_question_of_the_task():
    task = PROBE_TASKS["truth"]
    assert (task.better, task.chance) == ("down", 0.5)
    shown = {}
    for one in list_metrics("probe.*"):
        shown[one.name] = one.shows
        assert one.on_card is False
    assert shown["probe.truth"] == shown["probe.transferred.truth"] == "inside"
    assert shown["probe.embedding.truth"] == shown["probe.about"] == shown["probe.transferred.about"] == "describes"
    [one] = list_metrics("probe.transferred.truth")
    assert one.needs_base
    assert one.summary.startswith(
        "Accuracy of the base's probe on unseen facts, by layer. Does the state before an answer"
    )


@pytest.mark.parametrize("change", [{"edits": {"blocks.1.hook_resid_post": abs}}, {"prompt": str.upper}])
def test_a_changed_subject_never_reads_a_store(tiny_lm, tiny_concept, tmp_path, change):
    datasets = concept_datasets(tiny_concept, ["truth"])
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), datasets, {"base": None})
    subject = Subject(tiny_lm, tiny_concept, store=store)
    assert len(measure(subject, "probe.truth"))
    subject = Subject(tiny_lm, tiny_concept, store=store, **change)
    read = []
    tensor = store.tensor
    store.tensor = lambda *args, **kwargs: read.append(args) or tensor(*args, **kwargs)
    assert len(measure(subject, "probe.truth"))
    assert not read


def test_progression_is_every_subject_in_step_order(tiny_lm, tiny_concept, tmp_path):
    adapters = {k: random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (20, 5)}
    base = Subject(tiny_lm, tiny_concept)
    subjects = [base.at(folder, method="elm", step=k) for k, folder in adapters.items()] + [base]
    table = follow_metrics(subjects, ["norm.*", "probe.truth"])
    assert table["step"].drop_duplicates().fillna(0).tolist() == [0, 5, 20]
    assert table.loc[table["step"].isna(), "method"].eq("base").all()
    assert not table.loc[table["step"].isna(), "metric"].str.contains("ratio").any()
    assert table[table["step"] == 20].reset_index(drop=True).equals(measure(subjects[0], ["norm.*", "probe.truth"]))

"""Calibration: anchors are where they should be, a planted lie is caught, and no metric is known by name."""

import json
import math

import numpy as np
import pytest
import torch

from elm_interp.cli import main
from elm_interp.data import Concept, Question
from elm_interp.errors import ConfigError, UnknownNameError
from elm_interp.metrics import Subject, measure, metric
from elm_interp.organisms import Domain, Recipe, Relation, make_world
from elm_interp.plots import plot_calibration
from elm_interp.probes.answer_identity import NAME, probe_values, topics
from elm_interp.registry import ORGANISMS
from elm_interp.results import frame, measurements
from elm_interp.verdict.calibration import anchors, auc, calibrate, normalised, one_value, subjects, summary

PETS = Domain("pets", "pet", (Relation(("fur", "coat"), ("curly", "smooth", "shaggy", "wiry")),))
WORLD = {"domains": (PETS, "towns"), "erased": "pets", "entities": 16, "relations": 1, "redundancy": 2}
QUICK = Recipe(n_layers=2, d_model=16, d_mlp=32, n_heads=2, core_passes=0, passes=1)
BASE_VALUE = {"specificity.kl_to_base": 0.0, "specificity.retain_ppl_ratio": 1.0, "norm.retain.ratio": 1.0}


@pytest.fixture
def organisms():
    return subjects(make_world(**WORLD), QUICK)


def rows(name, values, direction="down"):
    """Rows of a metric: kind -> one value a seed."""
    return [
        measurements(name, v, method=kind, seed=seed, direction=direction, chance=0.25)
        for kind, some in values.items()
        for seed, v in enumerate(some)
    ]


def test_a_constant_metric_is_flagged_and_gets_an_auc_of_one_half(own_registry):
    @metric("planted.lie", shows="inside", better="down")
    def lie(subject: Subject):
        return [measurements("planted.lie", 0.3)]

    @metric("planted.kind", shows="describes", better="up")
    def kind(subject: Subject):
        return [measurements("planted.kind", list(ORGANISMS).index(subject.method) + subject.seed / 10)]

    found = summary(calibrate((0, 1), "planted.*", settings=WORLD, recipe=QUICK))
    assert found["planted.lie"]["constant"] is True
    assert found["planted.lie"]["auc_gold"] == found["planted.lie"]["auc_hiding"] == 0.5
    assert found["planted.lie"]["r"]["hiding"] is None
    assert found["planted.kind"]["constant"] is False
    assert found["planted.kind"]["auc_gold"] == 1.0
    assert found["planted.kind"]["auc_hiding"] == 0.0
    assert found["planted.kind"]["random"] == pytest.approx({"mean": 3.05, "sd": 0.1 / math.sqrt(2)})


def test_what_asks_no_model_is_constant_though_worlds_differ():
    table = anchors(frame(rows("m", {kind: [0.2, 0.4] for kind in ORGANISMS})))
    assert table["constant"].tolist() == [True]
    assert table["auc_gold"].tolist() == [0.5]


def test_the_original_beside_itself_is_unchanged_and_gold_is_compared_with_it(organisms):
    original = measure(organisms["original"], list(BASE_VALUE)).groupby("metric")["value"].mean()
    assert original.to_dict() == pytest.approx(BASE_VALUE, abs=1e-6)
    assert organisms["original"].base.is_base
    assert not organisms["original"].is_base
    assert all(s.base is organisms["original"].base for s in organisms.values())


def test_the_divergence_of_two_models_goes_through_the_head_of_each(organisms):
    gold, base = organisms["gold"], organisms["gold"].base
    with torch.no_grad():
        gold.lm.model.lm_head.weight *= -20
    found = []
    for passage in gold.concept.passages("retain", "held_out"):
        p, q = (
            s.lm.logits(s.lm.tokenize([passage.text]), positions="all").float().log_softmax(-1)[0, :-1]
            for s in (base, gold)
        )
        found.append((p.exp() * (p - q)).sum(-1))
    expected = float(torch.cat(found).mean())
    assert expected > 0.1
    assert measure(gold, "specificity.kl_to_base")["value"][0] == pytest.approx(expected, rel=1e-3)


def test_every_metric_is_walked_and_the_promised_ones_are_among_them(monkeypatch):
    table = calibrate((1,), settings=WORLD, recipe=QUICK, cost="cheap")
    assert set(table["seed"]) == {1}  # the world's, also where a metric has seeds of its own
    found = summary(table)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name in ("knowledge.four_choice.erased_domain", "knowledge.four_choice.other_domains", NAME, "norm.forget"):
        assert {"mean", "sd"} == found[name]["gold"].keys()
    assert not table.duplicated(["metric", "method", "seed"]).any()
    assert table["layer"].isna().all()
    assert "max over layers" in found[NAME]["protocol"]
    assert "mean over layers" in found["norm.forget"]["protocol"]
    monkeypatch.setattr("elm_interp.verdict.calibration.calibrate", lambda *_, **__: table)
    main(["calibrate", "--seeds", "1"])
    plot_calibration(anchors(table), ["norm.forget"])


def test_the_scale_runs_from_the_original_to_gold():
    assert [normalised(x, 0.9, 0.3) for x in (0.9, 0.3, 0.6)] == pytest.approx([0, 1, 0.5])
    assert math.isnan(normalised(0.5, 0.9, 0.9))


def test_auc_counts_pairs_in_the_direction_of_the_metric():
    low, high = np.array([0.1, 0.2]), np.array([0.8, 0.2])
    assert auc(low, high, "down") == 0.875
    assert auc(low, high, "up") == auc(low, high, "neither") == 0.125
    assert math.isnan(auc(low, high[:0], "up"))


@pytest.mark.parametrize(("direction", "value"), [("down", 0.8), ("up", 0.4), ("neither", 0.6)])
def test_the_layer_that_says_most_against_the_eraser_stands_for_all(direction, value):
    layers = [
        measurements("m", v + d, layer=layer, seed=seed, method="gold", direction=direction)
        for layer, v in enumerate((0.4, 0.8))
        for seed, d in enumerate((-0.1, 0.1))
    ]
    assert one_value(frame(layers))["value"].tolist() == pytest.approx([value])


def test_no_seed_an_unknown_metric_and_an_empty_figure_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        calibrate(())
    table = anchors(frame(rows("m", {kind: [0.2] for kind in ORGANISMS})))
    with pytest.raises(ConfigError, match="no metric"):
        plot_calibration(table)
    with pytest.raises(UnknownNameError, match="'n'"):
        plot_calibration(table, ["n"])


# -- the value probe ------------------------------------------------------------------------------------------------


def asked(facts=80, wordings=2, values=4):
    return [
        Question(f"q{w} of {f}?", ("a", "b", "c", "d"), f % values, fact=f"fact {f}", topic="colour")
        for f in range(facts)
        for w in range(wordings)
    ]


def test_a_planted_value_is_read_and_a_planted_subject_is_not():
    questions = asked()
    noise = torch.randn(len(questions), 1, 32, generator=torch.Generator().manual_seed(0))
    value = torch.eye(32)[[q.answer for q in questions]][:, None]
    # the subject alone: the same for all wordings of a fact, so that a split by row would read the value from it
    subject = noise[[i // 2 * 2 for i in range(len(questions))]]
    table = frame(probe_values(torch.cat([subject, 8 * value + noise], 1), questions))
    by_layer = table[table["metric"] == NAME].groupby("layer")["value"].mean()
    assert by_layer[0] < 0.5
    assert by_layer[1] > 0.9
    assert table["chance"].tolist() == pytest.approx([0.25] * len(table))
    assert set(table["metric"]) == {NAME, f"{NAME}.control"}


def test_topics_whose_answers_do_not_repeat_have_no_value_to_probe(tiny_lm):
    few = [Question(f"q {i}?", (f"a {i}", f"b {i}"), 0, fact=str(i), topic="people") for i in range(12)]
    assert topics(few) == {}
    assert topics([*few, *asked()]).keys() == {"colour"}
    concept = Concept("few", (), (), {"forget": tuple(few)})
    assert len(measure(Subject(tiny_lm, concept), "knowledge.*")) == 0

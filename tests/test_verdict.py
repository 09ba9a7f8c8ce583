"""The verdict: the four organisms are named right, and nothing is said that the evidence does not bear."""

import json

import pytest

import elm_interp as ei
from elm_interp.cli import _defaults, main
from elm_interp.errors import ConfigError, RunFolderError, UnknownNameError
from elm_interp.metrics import metric
from elm_interp.organisms import domain_concept, make_world
from elm_interp.results import frame, measurements, stack, wilson
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage
from elm_interp.verdict.calibration import calibrate, one_value
from elm_interp.verdict.rules import (
    DESTROYED,
    GONE,
    HIDDEN,
    INTACT,
    _from_results,
    _world_of,
    verdict_from_rows,
    verdict_of,
)

ASKED, KEPT = "knowledge.four_choice.erased_domain", "knowledge.four_choice.other_domains"
TWO, GENERAL = "innocence.two_choice_pmi", "specificity.general_pmi"
PROBE, OTHER_PROBE = "knowledge.probe.erased_domain", "probe.association"
CARRIED = "probe.transferred.values"
CHANCE = {CARRIED: 0.1, ASKED: 0.25, KEPT: 0.25, TWO: 0.5, GENERAL: 0.5, PROBE: 0.1, OTHER_PROBE: 0.5}
KNOWN = {PROBE: {"auc_gold": 1.0, "auc_hiding": 1.0}, OTHER_PROBE: {"auc_gold": 0.0, "auc_hiding": 0.5}}
ORIGINAL = {ASKED: 1.0, KEPT: 1.0, PROBE: 0.99}
GOLD = {ASKED: 0.24, KEPT: 1.0, PROBE: 0.08}
KIND_OF = {"original": INTACT, "gold": GONE, "hiding": HIDDEN, "random": DESTROYED}


def rows(values, n=800):
    """One row a metric, with its control where it is a probe."""
    found = []
    for name, value in values.items():
        shared = {"n": n, "chance": CHANCE[name], "method": "elm"}
        ci, direction = wilson(value * n, n), "up" if name in (KEPT, GENERAL) else "down"
        found.append(measurements(name, value, ci=ci, direction=direction, **shared))
        if "probe" in name:
            found.append(measurements(f"{name}.control", CHANCE[name], direction="neither", **shared))
    return frame(found)


def named(values, original=ORIGINAL, gold=GOLD, n=800, known=KNOWN):
    sides = {"original": rows(original, n)} | ({"gold": rows(gold, n)} if gold else {})
    return verdict_from_rows(rows(values, n), sides, known)


# -- logic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (ORIGINAL, INTACT),
        (GOLD, GONE),
        ({ASKED: 0.21, KEPT: 0.98, PROBE: 0.99}, HIDDEN),
        ({ASKED: 0.25, KEPT: 0.24, PROBE: 0.07}, DESTROYED),
        ({ASKED: 0.6, KEPT: 1.0, PROBE: 0.08}, INTACT),
    ],
)
def test_each_kind_gets_its_name_and_leaves_nothing_open(values, name):
    found = named(values)
    assert (found.name, found.not_excluded, found.missing) == (name, (), ())


def test_destroyed_beats_gone_and_leaves_hidden_open_where_a_probe_reads():
    values = {ASKED: 0.25, KEPT: 0.3, PROBE: 0.08}
    assert named(values).name == DESTROYED
    assert named(values | {PROBE: 0.9}).not_excluded == (HIDDEN,)


def test_what_the_score_card_calls_destroyed_is_destroyed():
    stammers = measurements("seamlessness.repetition", 0.9, method="elm", direction="down")
    table = stack([rows(GOLD), frame([stammers])])
    found = verdict_from_rows(table, {"original": rows(ORIGINAL), "gold": rows(GOLD)}, KNOWN)
    assert found.name == DESTROYED
    assert "seamlessness.repetition is" in found.because


def test_without_gold_the_missing_anchor_is_named_and_controls_take_its_place():
    found = named({TWO: 0.52, GENERAL: 0.95, PROBE: 0.1}, {TWO: 0.79, GENERAL: 0.96, PROBE: 0.9}, None, n=182)
    assert (found.name, found.missing, found.not_excluded) == (GONE, ("gold",), ())
    assert "missing anchors: gold" in str(found)
    assert [e.r for e in found.evidence] == [None] * 3


def test_a_probe_that_would_read_as_much_in_gold_proves_nothing():
    asked = {ASKED: 0.25, KEPT: 1.0, OTHER_PROBE: 0.95}
    original = ORIGINAL | {OTHER_PROBE: 0.96}
    without = named(asked, original, None)
    assert (without.name, without.not_excluded) == (HIDDEN, (GONE,))
    with_gold = named(asked, original, GOLD | {OTHER_PROBE: 0.97})
    assert (with_gold.name, with_gold.not_excluded) == (GONE, (HIDDEN,))


def test_luck_among_many_metrics_and_a_probe_of_another_model_prove_nothing():
    asked, original = {ASKED: 0.25, KEPT: 1.0, PROBE: 0.9}, ORIGINAL | {CARRIED: 0.99}
    assert named(asked, original, None).not_excluded == ()
    lucky = {PROBE: {"auc_gold": 1.0, "auc_hiding": 1.0, "apart": 0.03}}
    assert named(asked, original, None, known=lucky).not_excluded == (GONE,)
    known = {CARRIED: {"auc_gold": 1.0, "auc_hiding": 1.0, "apart": 0.4}}
    carried = named({ASKED: 0.25, KEPT: 1.0, CARRIED: 0.9}, original, None, known=known)
    assert (carried.name, carried.not_excluded) == (HIDDEN, (GONE,))


def test_a_handful_of_questions_decides_nothing():
    with pytest.raises(ConfigError, match="only 6 questions"):
        named(ORIGINAL, n=6)


def test_gone_needs_a_metric_that_sees_through_hiding():
    assert named({ASKED: 0.25, KEPT: 1.0}).not_excluded == (HIDDEN,)
    assert named(GOLD, known={}).not_excluded == (HIDDEN,)


def test_few_questions_leave_open_that_it_still_answers():
    assert INTACT in named(GOLD | {ASKED: 5 / 12}, n=12).not_excluded
    assert INTACT not in named(GOLD).not_excluded


def test_another_way_of_asking_that_is_still_answered_is_not_passed_over():
    found = named(GOLD | {TWO: 0.8}, ORIGINAL | {TWO: 1.0}, GOLD | {TWO: 0.55})
    assert found.not_excluded == (INTACT,)
    assert TWO in found.because


def test_what_was_not_measured_is_listed():
    found = named({ASKED: 0.25, PROBE: 0.08})
    assert found.not_excluded == (DESTROYED,)
    for name in (KEPT, "seamlessness.repetition"):
        assert name in found.unmeasured
        assert name in str(found)
    assert not {ASKED, PROBE} & set(found.unmeasured)


def test_an_original_that_knows_nothing_allows_no_verdict():
    with pytest.raises(ConfigError, match="original at 0.27, not knowing at 0.25"):
        named(GOLD, {ASKED: 0.27}, None)
    with pytest.raises(ConfigError, match="none was measured"):
        named({PROBE: 0.9})
    # five of twelve questions answered may be luck
    with pytest.raises(ConfigError, match="original at 0.42"):
        named(GOLD, {ASKED: 5 / 12}, None, n=12)


def test_a_constant_metric_decides_nothing():
    same = {OTHER_PROBE: 0.9}
    for values in (GOLD, ORIGINAL):
        assert named(values | same, ORIGINAL | same, GOLD | same).name == named(values).name


def test_only_rows_of_metrics_that_show_something_are_evidence(own_registry):
    @metric("planted.norm", shows="describes", better="down", chance=0.5)
    def norm(subject):
        """A measurement that should fall and is no evidence."""

    @metric("planted.said", shows="answers", better="down", chance=0.5)
    def said(subject):
        """Another way of asking."""

    planted = {"planted.norm": 0.9, "planted.said": 0.9, "unheard.of": 0.9}
    strange = [measurements(name, v, chance=0.5, n=800, direction="down", method="elm") for name, v in planted.items()]
    control = measurements(f"{TWO}.control", 0.9, chance=0.5, n=800, direction="neither", method="elm")
    table = stack([frame([*strange, control]), rows(GOLD)])
    found = verdict_from_rows(table, {"original": stack([frame(strange), rows(ORIGINAL)]), "gold": rows(GOLD)}, KNOWN)
    assert {e.metric for e in found.evidence} == {*GOLD, "planted.said"}
    # a metric of elm_interp decides, though another says that the model answers
    assert (found.name, found.not_excluded) == (GONE, (INTACT,))


def test_the_scale_of_the_evidence():
    found = {e.metric: e for e in named(GOLD | {PROBE: 0.545}).evidence}
    assert (found[ASKED].r, found[PROBE].left) == (1, pytest.approx((0.545 - 0.1) / 0.89))
    assert found[ASKED].left == pytest.approx(-1 / 75)  # chance is above gold
    assert found[PROBE].proves


def test_the_best_layer_stands_beside_the_best_layer_of_its_control():
    layers = [
        measurements(name, v + d, ci=(v - 0.1, v + 0.1), layer=layer, seed=seed, direction=direction)
        for name, direction, values in (("m", "down", (0.5, 0.9)), ("m.control", "neither", (0.5, 0.6)))
        for layer, v in enumerate(values)
        for seed, d in enumerate((-0.05, 0.05))
    ]
    table = one_value(frame(layers))
    assert table["value"].tolist() == pytest.approx([0.9, 0.6])
    assert table["ci_high"].tolist() == pytest.approx([1.0, 0.7])


def test_it_is_told_in_words_tables_and_json():
    found = named(ORIGINAL, gold=None)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["verdict"] == INTACT
    assert told["missing_anchors"] == ["gold"]
    assert told["evidence"][0].keys() >= {"metric", "value", "ci_low", "original", "gold", "r", "direction", "auc_gold"}
    assert len(found.to_frame()) == 3
    assert "Verdict: intact" in str(found)
    assert repr(found) == "Verdict(intact: 3 measurements)"
    assert "<table" in found._repr_html_()


# -- where rows come from -------------------------------------------------------------------------------------------


def test_the_verdict_on_a_run_comes_from_its_results_without_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("elm_interp.runs.run.load_model", lambda *a, **k: pytest.fail("loaded a model"))
    run = Run.create(tmp_path / "run", RunConfig("smollm2-135m", "harry-potter"))
    with pytest.raises(RunFolderError, match="elm-interp evaluate"):
        verdict_of(run)
    base = rows({TWO: 0.79, GENERAL: 0.96}, 182).assign(method="base")
    run.save_results("scorecard", stack([base, rows({TWO: 0.52, GENERAL: 0.97}, 182).assign(step=75)]))
    probes = [rows({OTHER_PROBE: 0.9}).assign(step=0, method="base")]
    probes += [rows({OTHER_PROBE: value}).assign(step=step) for step, value in ((25, 0.95), (75, 0.85))]
    run.save_results("probes", stack(probes))
    main(["verdict", str(run.folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told == run.load_json("verdict")
    assert (told["verdict"], told["missing_anchors"]) == (HIDDEN, ["gold"])
    assert {e["metric"]: e["value"] for e in told["evidence"]} == {TWO: 0.52, GENERAL: 0.97, OTHER_PROBE: 0.85}
    main(["verdict", str(run.folder)])
    assert "Verdict: hidden" in capsys.readouterr().out


def test_anchors_write_as_many_texts_as_the_subject(tiny_lm, monkeypatch):
    asked = []
    monkeypatch.setattr("elm_interp.verdict.rules.subjects", lambda *a, **how: asked.append(how) or {})
    monkeypatch.setattr("elm_interp.verdict.rules.measure", lambda *a, **k: rows(ORIGINAL))
    verdict_of(ei.Subject(tiny_lm, domain_concept(make_world(), "spellcraft"), texts=5))
    assert [how["texts"] for how in asked] == [5]


def test_only_a_domain_of_the_default_world_brings_its_anchors(tiny_concept):
    assert _world_of(domain_concept(make_world(seed=3), "towns")).config == make_world(seed=3, erased="towns").config
    for concept in (tiny_concept, domain_concept(make_world(entities=8), "towns")):
        assert _world_of(concept) is None


def test_anchors_are_given_by_name(tiny_lm, tiny_concept):
    subject = ei.Subject(tiny_lm, tiny_concept)
    with pytest.raises(UnknownNameError, match="'golden'.*Did you mean 'gold'"):
        verdict_of(subject, anchors={"golden": subject})
    with pytest.raises(ConfigError, match="no verdict"):
        verdict_of(subject, anchors={"gold": subject}, cost="cheap")


def test_an_organism_takes_its_own_preset_unless_another_is_named():
    words = ["erase", "--model", "organism:original"]
    assert _defaults(words) == RunConfig.preset("organism", model="organism:original")
    assert _defaults([*words, "--preset", "paper"]) == RunConfig.preset("paper", model="organism:original")
    assert _defaults(["erase"]) == RunConfig.preset("planted", model="planted:original")
    natural = RunConfig.preset(model="smollm2-135m", concept="astronomy")
    assert _defaults(["erase", "--concept", "astronomy"]) == natural


# -- models of which it is known what they know ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_four_organisms_are_named_right():
    patterns = [
        "knowledge.*",
        "innocence.*_choice_*",
        "specificity.*_pmi",
        "specificity.retain_ppl*",
        "probe.association",
    ]
    table = calibrate((0,), patterns)
    of = dict(list(table.groupby("method")))
    sides = {kind: of[kind] for kind in ("original", "gold")}
    assert {kind: verdict_from_rows(part, sides).name for kind, part in of.items()} == KIND_OF
    for kind in ("gold", "hiding"):
        assert verdict_from_rows(of[kind], sides).not_excluded == ()


@pytest.mark.slow
def test_elm_with_its_preset_silences_one_domain_and_its_verdict_has_both_anchors(tmp_path):
    config = RunConfig.preset("organism", model="organism:original", concept="organism:spellcraft")
    run = Run.create(tmp_path / "run", config)
    run_stage(run, "erase", progress=False)
    found = verdict_of(run, cost="cheap")
    value = {e.metric: e.value for e in found.evidence}
    assert (
        value[ASKED] <= 0.4
    )  # 0.320 of 128 on the machine of figures/pareto_organism.csv; others differ by a few questions
    assert value[KEPT] >= 0.93
    assert found.missing == ()
    assert all(e.original is not None and e.gold is not None for e in found.evidence)


def test_results_of_an_earlier_step_are_no_evidence_on_the_last(tiny_lm, tiny_concept, tmp_path):
    config = RunConfig.preset(None, model=tiny_lm.name, layers=(1,))
    run = Run.create(tmp_path / "r", config, lm=tiny_lm, concept=tiny_concept)

    def of(metric, value, step):
        states = (("base", None, 0.9), ("elm", step, value))
        return frame([measurements(metric, v, method=m, step=at, n=50, chance=0.5) for m, at, v in states])

    run.save_results("attack-early", of("probe.truth", 0.6, 1))
    run.save_results("probes", of("probe.truth", 0.8, 3))
    run.save_results("scorecard", of("innocence.four_choice_pmi", 0.5, 3))
    table, _ = _from_results(run)
    assert dict(zip(table["metric"], table["value"], strict=True))["probe.truth"] == 0.8


def test_a_gold_that_the_run_has_measured_is_an_anchor(tiny_lm, tiny_concept, tmp_path):
    run = Run.create(
        tmp_path / "r", RunConfig.preset(None, model=tiny_lm.name, layers=(1,)), lm=tiny_lm, concept=tiny_concept
    )
    states = (("base", None, 0.9), ("elm", 3, 0.3), ("gold", None, 0.25))
    card = [
        measurements("innocence.four_choice_pmi", v, method=m, step=at, n=50, chance=0.25, direction="down")
        for m, at, v in states
    ]
    run.save_results("scorecard", frame(card))
    table, anchors = _from_results(run)
    assert (list(table["value"]), {kind: list(rows["value"]) for kind, rows in anchors.items()}) == (
        [0.3],
        {"original": [0.9], "gold": [0.25]},
    )
    assert verdict_of(run).missing == ()

"""A quick run measures a part of the concept, whole facts at a time; a thorough one all of it. Training is the same."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import elm_interp as ei
from elm_interp.data import Question
from elm_interp.evaluate.known import shown_facts
from elm_interp.organisms.encyclopaedia import domain_concept
from elm_interp.runs.config import RunConfig, usual
from elm_interp.runs.quick import PASSAGES, PROBED, QUESTIONS, WORDINGS, probed, quick
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage
from elm_interp.training import Training
from elm_interp.training.sampling import drawable


def test_a_quick_concept_asks_fewer_facts_in_several_wordings_and_keeps_what_is_for_training():
    whole, small = domain_concept(), quick(domain_concept())
    asked = small.ask("forget")
    facts = {q.fact for q in asked}
    assert len(asked) == QUESTIONS["forget"] == WORDINGS * len(facts)
    topics = {q.topic for q in whole.ask("forget")}
    assert {q.topic for q in asked} == topics
    assert facts & shown_facts(whole)
    assert facts - shown_facts(whole)
    right: dict[frozenset[str], Counter[str]] = {}
    for q in asked:
        right.setdefault(frozenset(q.choices), Counter())[q.right] += 1
    for options, found in right.items():  # a model that only prefers some options is at chance
        assert len(set(found.values())) == 1
        assert set(found) == options
    for kind in ("forget", "retain"):
        trained, there = ([replace(p, questions=()) for p in one.passages(kind)] for one in (small, whole))
        assert trained == there
        assert len(small.passages(kind, "held_out")) == PASSAGES
    for which in whole.questions:
        assert small.ask(which, "train") == whole.ask(which, "train")
    assert quick(small).ask("forget") == asked


def test_a_small_concept_is_measured_whole(tiny_concept):
    small = quick(tiny_concept)
    assert all(set(small.questions[which]) == set(asked) for which, asked in tiny_concept.questions.items())
    assert (set(small.forget), set(small.retain)) == (set(tiny_concept.forget), set(tiny_concept.retain))


def test_quick_probes_read_every_fact_once_and_no_long_text():
    small, whole = (probed(domain_concept(), thorough=thorough) for thorough in (False, True))
    assert list(small) == ["truth", "values"]
    assert set(whole) > set(small)
    examples = small["values"].examples
    assert len(examples) == PROBED == examples["fact"].nunique()


def test_no_more_passages_are_prepared_than_the_steps_draw(tiny_concept):
    few = drawable(tiny_concept, Training(steps=2, forget_batch=1, retain_batch=2), 0)
    assert [len(few.passages(kind)) for kind in ("forget", "retain")] == [4, 4]
    assert few.passages("forget", "held_out") == tiny_concept.passages("forget", "held_out")
    assert set(few.forget) <= set(tiny_concept.forget)
    assert set(drawable(tiny_concept, Training(steps=500), 0).forget) == set(tiny_concept.forget)


def test_a_trained_run_can_be_measured_thoroughly_later(tiny_model_folder, tiny_concept_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(QUESTIONS, "forget", 4)
    given = {"model": str(tiny_model_folder), "concept": str(tiny_concept_folder), "layers": (1, 2), "steps": 2}
    config = RunConfig.preset("smollm2-135m", **given)
    run = Run.create(tmp_path / "x", config)
    for stage in ("erase", "evaluate"):
        run_stage(run, stage, progress=False)
    name = "innocence.four_choice_likelihood"
    asked = {False: run.results("scorecard").set_index("metric").loc[name, "n"].max()}
    again = Run.create(tmp_path / "x", replace(config, thorough=True), resume=True)
    assert Run.open(tmp_path / "x").config.thorough
    run_stage(again, "evaluate", progress=False)
    asked[True] = again.results("scorecard").set_index("metric").loc[name, "n"].max()
    assert asked == {False: 4, True: len(again.concept.ask("forget"))}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("planted:original", "planted:marsh-animals")),
        ({"concept": "astronomy"}, ("smollm2-135m", "astronomy")),
        ({"model": "some/folder"}, ("some/folder", "harry-potter")),
        ({"concept": Path("some/folder")}, ("smollm2-135m", Path("some/folder"))),
        ({"model": "organism:original@3"}, ("organism:original@3", "organism:spellcraft@3")),
        ({"concept": "organism:spellcraft"}, ("organism:original", "organism:spellcraft")),
        ({"model": "planted:gold"}, ("planted:gold", "planted:marsh-animals")),
        ({"model": "a", "concept": "b"}, ("a", "b")),
    ],
)
def test_model_and_concept_go_together(given, expected):
    assert usual(**given) == expected
    config = RunConfig.preset("smollm2-135m", **given)
    assert (config.model, config.concept) == expected


def test_wordings_are_kept_by_fact():
    asked = [Question(f"Which {i}?", ("a", "b"), 0, id=str(i), fact=f"fact {i // 3}") for i in range(6)]
    assert [q.id for q in ei.data.questions.worded(asked, 2)] == ["0", "1", "3", "4"]

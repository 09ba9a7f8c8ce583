"""Subject: edits and a prompt transformation reach every metric, and leave the base and the model as they were."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from disturbed import random_adapter

from elm_interp.activations.store import ActivationStore
from elm_interp.data import Question
from elm_interp.errors import UnknownSiteError
from elm_interp.evaluate import evaluate_questions, generations, per_question, scores
from elm_interp.metrics import Subject, measure
from elm_interp.probes.datasets import concept_datasets

CHEAP = ["innocence.*", "specificity.*", "norm.*", "probe.truth"]
ZEROED = {"blocks.2.hook_resid_post": torch.zeros_like}


def twice(text: str) -> str:
    return f"{text} {text}"


@pytest.fixture
def erased(tiny_lm, tiny_concept, tmp_path) -> Subject:
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", scale=1.0)
    return Subject(tiny_lm, tiny_concept).at(adapter, method="elm", step=1)


def inputs(subject: Subject) -> tuple[str, ...]:
    return concept_datasets(subject.concept, ["truth"])["truth"].texts


def log_probs(subject: Subject) -> list[list[float]]:
    return [one.log_prob.tolist() for one in scores(subject, "forget")]


def test_a_prompt_transformation_reaches_questions_generated_text_and_probe_inputs(erased):
    asked = erased.with_(prompt=twice)
    assert log_probs(asked) != log_probs(erased)
    assert generations(asked) != generations(erased)
    assert inputs(asked) == tuple(twice(text) for text in inputs(erased))
    found, own = (measure(one, CHEAP) for one in (asked, erased))
    of_questions = found["metric"].str.startswith("innocence.two_choice")
    assert not found[of_questions].equals(own[of_questions])


def test_the_base_is_asked_plainly_whatever_its_subject_is_asked_through(erased, tiny_concept):
    base = erased.base
    before = measure(base, CHEAP)
    attacked = erased.with_(prompt=twice, edits=ZEROED)
    measure(attacked, CHEAP)
    assert attacked.base is base
    assert base.concept is tiny_concept
    fresh = Subject(base.lm, tiny_concept, erased.adapter, "elm", 1, edits=ZEROED, prompt=twice)
    assert fresh.base.is_base
    assert not fresh.base.edits
    assert fresh.base.prompt is None
    for one in (Subject(base.lm, tiny_concept), fresh.base):
        pd.testing.assert_frame_equal(measure(one, CHEAP), before, check_exact=True)


def test_edits_change_what_is_measured_and_the_model_is_as_before(erased):
    zeroed = erased.with_(edits=ZEROED)
    before, state = log_probs(erased), {k: v.clone() for k, v in erased.lm.model.state_dict().items()}
    assert log_probs(zeroed) != before
    # the last block reads nothing, so every question looks the same
    assert (zeroed.activations("forget")[:, 2] == 0).all()
    assert generations(zeroed) != generations(erased)
    assert log_probs(erased.with_()) == before
    assert all(torch.equal(state[name], value) for name, value in erased.lm.model.state_dict().items())


def test_the_identity_edit_and_the_identity_prompt_give_the_same_bits(erased):
    same = erased.with_(edits={"resid_post": lambda x: x, "z": lambda x: None}, prompt=lambda text: text)
    pd.testing.assert_frame_equal(measure(same, "*"), measure(erased, "*"), check_exact=True)


def test_edits_and_prompts_of_a_derived_subject_come_after_those_that_are_there(erased):
    doubled = erased.with_(edits={"blocks.1.hook_resid_post": lambda x: 2 * x}, prompt=lambda text: f"{text} B")
    both = doubled.with_(edits={"resid_post": lambda x: x + 1}, prompt=lambda text: f"A {text}")
    plain = erased.with_(edits={"blocks.1.hook_resid_post": lambda x: 2 * x + 1, **{
        f"blocks.{layer}.hook_resid_post": lambda x: x + 1 for layer in (0, 2, 3)
    }})  # fmt: skip
    torch.testing.assert_close(both.activations("forget"), plain.activations("forget"))
    assert inputs(both)[0] == f"A {inputs(erased)[0]} B"
    with pytest.raises(UnknownSiteError, match="resid_pst"):
        erased.with_(edits={"resid_pst": torch.zeros_like})


def test_another_adapter_is_a_state_without_edits_and_prompt(erased, tiny_concept):
    attacked = erased.with_(edits=ZEROED, prompt=twice)
    assert attacked.at(None) is erased.base
    other = attacked.at(erased.adapter, method="elm", step=2)
    assert (dict(other.edits), other.prompt, other.concept) == ({}, None, tiny_concept)


def test_stored_activations_are_not_those_of_a_subject_with_edits(erased, tmp_path: Path):
    stored = erased.with_(store=ActivationStore(tmp_path / "store"))
    assert stored.store is not None
    assert stored.with_(edits=ZEROED).store is None


def test_your_own_questions_are_asked_through_the_prompt_too(erased):
    questions = [Question("Who keeps the lamp?", ("Orla", "Tamsin"), 1), Question("What rusts?", ("Iron", "Wood"), 0)]
    asked = erased.with_(prompt=twice)
    assert [q.put("{question}") for q in asked.ask(questions)] == [twice(q.question) for q in questions]
    assert erased.ask(questions) == questions
    assert len(evaluate_questions(asked, questions)) == 4
    assert (
        per_question(scores(asked, "forget"))["question"].tolist()
        == per_question(scores(erased, "forget"))["question"].tolist()
    )


def test_a_subject_is_told_in_one_line(erased):
    told = repr(erased.with_(edits=ZEROED, prompt=twice))
    assert "elm at step 1" in told
    assert "blocks.2.hook_resid_post" in told
    assert "prompts transformed" in told
    assert len(told) < 300
    assert "<code>" in erased._repr_html_()

"""Choices: scores by hand, credit that knows no preference for a position, and tidy rows with the right chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from disturbed import random_adapter

from elm_interp.data import Question
from elm_interp.errors import UnknownNameError
from elm_interp.evaluate import (
    accuracy,
    choices,
    evaluate_questions,
    longest_option,
    per_question,
    score_choices,
    scores,
)
from elm_interp.evaluate.choices import PROTOCOLS, ScoredQuestion, credits
from elm_interp.metrics import Subject, measure

KNOWN = Question("Who keeps the lamp?", ("Orla", "Tamsin", "Bram"), 1, outside="Saturn", id="k")


def known(log_prob, prior=(0, 0, 0, 0), tokens=(1, 1, 1, 1), question=KNOWN) -> ScoredQuestion:
    return ScoredQuestion(question, np.array(log_prob, float), np.array(prior, float), np.array(tokens))


@torch.no_grad()
def by_hand(lm, prompt: str, option: str) -> float:
    start, whole = lm.encode([prompt, f"{prompt} {option}"])
    log_probs = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, whole[i]].item() for i in range(len(start), len(whole)))


def test_scores_are_those_of_plain_forward_passes(tiny_lm):
    (found,) = score_choices(tiny_lm, [KNOWN])
    for i, option in enumerate(("Orla", "Tamsin", "Bram", "Saturn")):
        asked, unasked = (
            by_hand(tiny_lm, "Question: Who keeps the lamp?\nAnswer:", option),
            by_hand(tiny_lm, "Answer:", option),
        )
        assert found.options[i] == option
        assert found.log_prob[i] == pytest.approx(asked, abs=1e-4)
        assert found.pmi[i] == pytest.approx(asked - unasked, abs=1e-4)
        assert found.mean_log_prob[i] == pytest.approx(asked / len(tiny_lm.encode([f" {option}"])[0]), abs=1e-4)


def test_batched_equals_single(tiny_lm, tiny_concept):
    questions = tiny_concept.ask("forget", "all")
    for one, question in zip(score_choices(tiny_lm, questions), questions, strict=True):
        (alone,) = score_choices(tiny_lm, [question])
        np.testing.assert_allclose(one.log_prob, alone.log_prob, atol=1e-4)
        np.testing.assert_allclose(one.pmi, alone.pmi, atol=1e-4)


def test_a_shared_option_goes_through_the_prior_once(tiny_lm, monkeypatch):
    calls = []
    real = choices.continuation_log_probs

    def counted(lm, prompts, continuations, **kwargs):
        calls.append([c for some in continuations for c in some])
        return real(lm, prompts, continuations, **kwargs)

    monkeypatch.setattr(choices, "continuation_log_probs", counted)
    score_choices(tiny_lm, [KNOWN, replace(KNOWN, question="Who mends nets?")])
    assert len(calls) == 2
    assert sorted(calls[1]) == [" Bram", " Orla", " Saturn", " Tamsin"]


def test_each_protocol_can_pick_another_option():
    one = known(log_prob=(-4, -6, -9, -7), prior=(-3, -8, -9, -1), tokens=(1, 3, 9, 1))
    assert [one.values(p).argmax() for p in PROTOCOLS] == [1, 0, 2]
    assert one.pmi.tolist() == [-1, 2, 0, -6]
    assert [accuracy([one], p)["value"] for p in PROTOCOLS] == [1, 0, 0]
    with pytest.raises(UnknownNameError, match="Did you mean 'likelihood'"):
        one.values("likelyhood")


def test_two_choices_are_right_against_outside_whatever_the_others_say():
    assert credits([known((9, 3, 9, 2))], "likelihood", "two").tolist() == [1]
    assert credits([known((0, 2, 0, 3))], "likelihood", "two").tolist() == [0]
    without = replace(KNOWN, outside=None)
    assert len(credits([known((0, 2, 0), (0, 0, 0), (1, 1, 1), without)], "likelihood", "two")) == 0


def test_the_outside_answer_does_not_compete_with_all_choices():
    assert credits([known((0, 2, 1, 3))], "likelihood", "all").tolist() == [1]


def test_a_model_without_preference_has_exactly_the_accuracy_of_chance(tiny_lm, tiny_concept):
    tiny_lm.model.model.norm.weight.data.zero_()  # all logits are equal
    scored = score_choices(tiny_lm, tiny_concept.ask("forget", "all"))
    expected = -np.log(tiny_lm.d_vocab)
    np.testing.assert_allclose([x for one in scored for x in one.mean_log_prob], expected, rtol=1e-6)
    for form, chance in (("two", 0.5), ("all", 0.25)):
        found = accuracy(scored, "length-normalised", form)
        assert found["value"] == found["chance"] == chance


def test_the_position_of_the_right_answer_does_not_matter(tiny_lm, tiny_concept):
    questions = tiny_concept.ask("general", "all")
    turned = [replace(q, choices=(*q.choices[1:], q.choices[0]), answer=(q.answer - 1) % 4) for q in questions]
    for protocol in PROTOCOLS:
        np.testing.assert_array_equal(
            credits(score_choices(tiny_lm, questions), protocol), credits(score_choices(tiny_lm, turned), protocol)
        )


def test_longest_option_shares_ties_and_chance_is_the_mean_over_questions():
    questions = [KNOWN, Question("?", ("aa", "bb"), 0), Question("?", ("a", "bbb", "cc", "d", "e"), 0)]
    found = longest_option(questions)
    assert found["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 5) / 3)


def test_a_broken_model_is_refused_and_not_called_innocent(tiny_lm):
    tiny_lm.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(
        ValueError, match="question 'k': the model gives an option a log-probability that is not finite"
    ):
        score_choices(tiny_lm, [KNOWN])


def test_metrics_share_one_scoring_of_each_set_a_state(tiny_lm, tiny_concept, monkeypatch):
    calls = []
    real = choices.continuation_log_probs
    monkeypatch.setattr(choices, "continuation_log_probs", lambda *a, **k: calls.append(1) or real(*a, **k))
    table = measure(
        Subject(tiny_lm, tiny_concept),
        ["innocence.*_choice_*", "innocence.longest_option", "specificity.*_pmi", "specificity.*_likelihood"],
    )
    assert len(calls) == 2 * 3
    assert len(table) == 11
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()
    assert table["ci_low"].ge(-1e-9).all()
    assert table["ci_high"].le(1 + 1e-9).all()
    rows = table.set_index("metric")
    assert rows.loc["innocence.two_choice_pmi", "chance"] == 0.5
    assert rows.loc["innocence.four_choice_pmi", "chance"] == 0.25
    assert rows.loc["innocence.two_choice_pmi", "n"] == len(tiny_concept.ask("forget"))
    assert rows.loc["innocence.longest_option", "direction"] == "neither"
    assert "Answer:" in rows.loc["specificity.general_likelihood", "protocol"]


def test_each_state_is_scored_as_itself(tiny_lm, tiny_concept, tmp_path):
    base = Subject(tiny_lm, tiny_concept)
    erased = base.at(random_adapter(tiny_lm, tmp_path), method="elm")
    with erased.on() as lm:
        expected = score_choices(lm, tiny_concept.ask("general"))
    for own, one, other in zip(scores(erased, "general"), expected, scores(base, "general"), strict=True):
        np.testing.assert_array_equal(own.log_prob, one.log_prob)
        assert not np.allclose(own.log_prob, other.log_prob, atol=1e-2)


def test_a_concept_without_questions_gives_no_rows(tiny_lm, tiny_concept):
    bare = Subject(tiny_lm, replace(tiny_concept, questions={}))
    assert len(measure(bare, ["innocence.*_choice_*", "innocence.longest_option", "specificity.*_pmi"])) == 0


def test_a_users_questions_may_have_any_number_of_choices(tiny_lm, tiny_concept, tmp_path):
    questions = [KNOWN, Question("What rusts?", ("Iron", "Wood"), 0)]
    base = Subject(tiny_lm, tiny_concept)
    table = evaluate_questions(base, questions, "mine.jsonl").set_index("metric")
    assert list(table.index) == [
        "custom.pmi",
        "custom.likelihood",
        "custom.length_normalised",
        "custom.two_choice_pmi",
        "custom.longest_option",
    ]
    assert table.loc["custom.pmi", "chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert table.loc["custom.two_choice_pmi", "n"] == 1
    assert table["protocol"].str.startswith("mine.jsonl: ").all()
    assert "custom.two_choice_pmi" not in set(evaluate_questions(base, questions[1:])["metric"])
    other = base.at(random_adapter(tiny_lm, tmp_path), method="elm", step=3)
    assert set(evaluate_questions(other, questions)["step"]) == {3}


def test_the_frame_of_questions_says_what_was_picked(tiny_lm):
    table = per_question([known((0, 2, 1, 3)), known((5, 2, 1, 1))])
    assert table["likelihood_pick"].tolist() == ["Tamsin", "Orla"]
    assert table["likelihood_credit"].tolist() == [1, 0]
    assert table["two_choice_pmi_credit"].tolist() == [0, 1]

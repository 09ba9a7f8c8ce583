"""Known items: chosen by the base in other templates, asked in an unseen one, compared pair by pair."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from disturbed import random_adapter

import elm_interp as ei
from elm_interp.data import Question
from elm_interp.data.questions import TEMPLATE
from elm_interp.evaluate import choices, knowledge, known
from elm_interp.evaluate.known import (
    CHOOSING,
    followed,
    follows,
    known_items,
    shown_facts,
)
from elm_interp.evaluate.open_answers import free_answers, mentions_answer, same_answer
from elm_interp.evaluate.scorecard import card_metrics
from elm_interp.metrics import Subject
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.results import cluster_bootstrap, proportion_interval, wilson

KNOWN = ["innocence.known.*", "specificity.known.*"]


@pytest.fixture
def subject(tiny_lm, tiny_concept):
    return ei.Subject(tiny_lm, tiny_concept)


def right(lm, template, question):
    scores = continuation_log_probs(
        lm, [template.replace("{question}", question.question)], [[f" {c}" for c in question.choices]]
    )
    return int(np.argmax([float(one.sum()) for one in scores[0]])) == question.answer


def test_an_item_is_known_if_the_base_is_right_in_two_of_three_other_templates(subject):
    assert TEMPLATE not in CHOOSING
    for which in ("forget", "neighbours"):
        expected = [q.id for q in subject.concept.ask(which) if sum(right(subject.lm, t, q) for t in CHOOSING) >= 2]
        assert [q.id for q in known_items(subject, which)] == expected
        assert 0 < len(expected) < len(subject.concept.ask(which))


def test_the_base_chooses_the_items_of_every_state(subject, tmp_path):
    erased = subject.at(random_adapter(subject.lm, tmp_path), method="elm", step=1)
    assert known_items(erased) == known_items(subject)


def test_a_followed_state_is_asked_few_of_the_same_items_and_compared_on_them(subject, tmp_path):
    erased = subject.at(random_adapter(subject.lm, tmp_path), method="elm", step=1)
    few = followed(erased, 1)
    assert len(known_items(few)) == 1
    assert set(known_items(few)) < set(known_items(subject))
    assert followed(subject, 1) is few.base
    asked = [[f" {c}" for c in q.choices] for q in known_items(few)]
    accuracy = {}
    for state in (few.base, few):
        with state.on() as lm:
            scores = continuation_log_probs(lm, [q.prompt for q in known_items(few)], asked)
        picks = [int(np.argmax([float(one.sum()) for one in group])) for group in scores]
        accuracy[state.method] = np.mean([p == q.answer for p, q in zip(picks, known_items(few), strict=True)])
    table = ei.measure(few, "innocence.known.*", cost="cheap").set_index("metric")["value"]
    assert table["innocence.known.four_choice"] == pytest.approx(accuracy["elm"])
    assert table["innocence.known.drop"] == pytest.approx(accuracy["base"] - accuracy["elm"])


def test_the_accuracy_on_known_items_is_that_of_the_measured_template(subject):
    table = ei.measure(subject, KNOWN).set_index("metric")
    items = known_items(subject)
    row = table.loc["innocence.known.four_choice"]
    assert row["value"] == pytest.approx(np.mean([right(subject.lm, TEMPLATE, q) for q in items]))
    assert (row["n"], row["direction"]) == (len(items), "down")
    assert "innocence.known.drop" not in table.index


def test_the_drop_is_paired_and_that_of_the_neighbours_is_taken_off(subject, tmp_path):
    erased = subject.at(random_adapter(subject.lm, tmp_path), method="elm", step=1)
    tables = {s.method: ei.measure(s, KNOWN).set_index("metric")["value"] for s in (subject, erased)}
    drop, near = (
        tables["base"][name] - tables["elm"][name]
        for name in ("innocence.known.four_choice", "specificity.known.neighbours")
    )
    assert tables["elm"]["innocence.known.drop"] == pytest.approx(drop)
    assert tables["elm"]["innocence.known.drop.neighbours"] == pytest.approx(near)
    assert tables["elm"]["innocence.known.drop.net"] == pytest.approx(drop - near)
    assert 0 <= tables["elm"]["innocence.known.drop.p"] <= 1


def test_a_state_that_is_the_base_drops_by_nothing(subject):
    same = subject.with_(method="same", step=1)
    table = ei.measure(same, "innocence.known.drop").set_index("metric")
    value, low, high = table.loc["innocence.known.drop", ["value", "ci_low", "ci_high"]]
    assert value == 0
    assert low == -high < 0  # some items: a small drop is not excluded
    assert table.loc["innocence.known.drop.p", "value"] == 1


def test_facts_that_no_passage_states_are_reported_apart(tiny_lm, tiny_concept):
    asked = tiny_concept.ask("forget")
    forget = (replace(tiny_concept.forget[0], questions=(asked[0].id,)), *tiny_concept.forget[1:])
    concept = replace(tiny_concept, forget=tuple(replace(p, questions=()) for p in forget[1:]) + forget[:1])
    assert shown_facts(concept) == {asked[0].fact}
    subject = ei.Subject(tiny_lm, concept)
    table = ei.measure(subject, "innocence.known.four_choice").set_index("metric")
    known = {q.id for q in known_items(subject)}
    parts = [name for name in table.index if name.endswith(("shown", "unshown"))]
    assert parts == (
        ["innocence.known.four_choice.shown", "innocence.known.four_choice.unshown"] if asked[0].id in known else []
    )


@pytest.mark.parametrize(
    ("said", "same"),
    [
        (" Old Tamsin.", True), (" the old tamsin, who", True), ("Old Tamsin", True), ("\nOld Tamsin", True),
        (" Tamsin of the lamp", True), ("Old Tamsina", False), (" It is Old Tamsin", False), ("", False),
        ("Orla\nOld Tamsin", False),
    ],
)  # fmt: skip
def test_a_free_answer_is_right_if_it_begins_with_the_answer_or_an_alias(said, same):
    question = Question("Who?", ("Old Tamsin", "Orla"), 0, aliases=("Tamsin",))
    assert same_answer(said, question) == same


def test_a_free_answer_of_an_article_or_with_signs_is_compared_whole():
    assert same_answer(" A", Question("Which letter?", ("A", "B"), 0))
    question = Question("Which language?", ("C++", "C"), 0)
    assert same_answer(" C++, of course", question)
    assert not same_answer(" C, of course", question)
    for number, wrong in (("1", " 1,000 years"), ("1", " 1.5 km"), ("5", " -5")):
        question = Question("How many?", (number, "0"), 0)
        assert same_answer(f" {number} years.", question)
        assert not same_answer(wrong, question)


def test_an_answer_in_another_form_is_mentioned_but_not_one_beside_other_options():
    question = Question("What does the brindolt eat?", ("wet moss", "snails", "reeds"), 0)
    for said in (" It eats wet moss.", "On wet moss", " wet moss"):
        assert mentions_answer(said, question)
    for said in (" wet moss or snails", " moss", " nothing\nwet moss", ""):
        assert not mentions_answer(said, question)
    assert not same_answer(" It eats wet moss.", question)


def test_p_of_the_drop_counts_facts_not_wordings(subject, monkeypatch):
    lost, facts = np.repeat([1.0, 1.0, -1.0], 4), list("aaaabbbbcccc")
    monkeypatch.setattr(known, "_drops", lambda one, which: (lost, facts))
    table = ei.measure(subject.with_(method="same", step=1), "innocence.known.drop").set_index("metric")
    assert table.loc["innocence.known.drop.p", ["value", "n"]].tolist() == [1.0, 3]


def test_wordings_of_one_fact_do_not_narrow_the_interval():
    values, facts = np.array([1, 0, 1, 1, 0, 1.0]), list("abcdef")
    once = cluster_bootstrap(values, facts)
    assert cluster_bootstrap(np.tile(values, 5), facts * 5) == once
    assert all(np.isnan(cluster_bootstrap(values, ["a"] * 6)))


def test_the_interval_of_a_proportion_counts_facts(subject):
    facts = [str(i // 4) for i in range(40)]
    assert proportion_interval(np.ones(40), facts) == wilson(10, 10)  # equal credits
    mixed = np.repeat([1.0, 0.0], 20)
    assert proportion_interval(mixed, facts) == pytest.approx(wilson(5, 10), abs=0.02)  # wordings agree
    assert proportion_interval(mixed, [str(i % 10) for i in range(40)]) == wilson(20, 40)  # as if on their own
    high, _ = (proportion_interval(np.array([0.0, *[1.0] * 59]), [str(i) for i in range(60)][:60]) for _ in "ab")
    twice, _ = proportion_interval(np.array([0.0, *[1.0] * 118, 0.0]), [str(i % 60) for i in range(119)] + ["0"])
    assert twice == pytest.approx(high[0], abs=0.02)  # asking each fact twice tells nothing new
    assert np.isnan(proportion_interval(np.array([]), [])).all()
    asked = [replace(subject.concept.ask("forget")[0], fact="one", id=str(i)) for i in range(9)]
    found = choices.accuracy(choices.score_choices(subject.lm, asked))
    assert (found["n"], found["ci"]) == (9, wilson(found["value"], 1))


def test_text_alone_finds_answers_that_only_forget_passages_hold(tiny_lm, tiny_concept):
    def asked(right, wrong):
        return Question(f"Who is it {right}?", (wrong, right), 1, id=right)

    concept = ei.Concept(
        "c",
        forget=["Wuggzoth met Wuggzanth near the wuggzall.", "A wuggzith is no wuggzen."],
        retain=["The plain bell rings at noon.", "Rain fell on the green hill."],
        questions={"forget": [asked("Wuggzeth", "Plainhill"), asked("Wuggzoon", "Greenbell")]},
    )
    table = ei.measure(ei.Subject(tiny_lm, concept), "innocence.text_only")
    assert table["value"].item() == 1


def test_progression_asks_few_items(subject, tmp_path):
    states = [subject] + [
        subject.at(random_adapter(subject.lm, tmp_path / str(i), seed=i), method="elm", step=i) for i in (1, 2, 3)
    ]
    table = ei.follow_metrics(states, "innocence.known.four_choice", items=1)
    rows = table[table["metric"] == "innocence.known.four_choice"]
    assert rows["n"].tolist() == [1, 1, 1, 1]


def test_a_followed_state_is_told_what_was_scored_before(subject, tmp_path, monkeypatch):
    erased = subject.at(random_adapter(subject.lm, tmp_path), method="elm", step=1)
    alone = ei.measure(followed(erased, 1), KNOWN)
    again = subject.at(tmp_path, method="elm", step=1)
    for which in knowledge.TOPICS:
        knowledge.scores(again, which)
    monkeypatch.setattr(knowledge.choices, "score_choices", None)  # nothing is scored again
    pd.testing.assert_frame_equal(ei.measure(followed(again, 1), KNOWN), alone)


def test_free_answers_are_those_to_questions_that_the_base_answers_right(subject, tmp_path):
    (right, *others) = known_items(subject)
    said = [(right, f" {right.right}, of course"), *((q, " nobody knows") for q in others)]
    base = Subject(subject.lm, subject.concept)
    base.memo(("said", "forget"), lambda: said)
    erased = base.at(random_adapter(subject.lm, tmp_path), method="elm", step=1)
    erased.memo(("said", "forget"), lambda: [(right, " no idea")])
    expected = {"prompt": right.prompt, "base": said[0][1]}
    assert free_answers(base) == [expected]
    assert free_answers(erased, gold=erased) == [expected | {"erased": " no idea", "gold": " no idea"}]


def test_a_fact_is_shown_in_whatever_wording_a_passage_names_it(tiny_concept):
    first = tiny_concept.ask("forget")[0]
    other = replace(first, id="again", question="Again?", fact=first.fact)
    passages = (replace(tiny_concept.passages("forget")[0], questions=("again",)),)
    concept = replace(tiny_concept, forget=passages, questions={"forget": (first, other)})
    assert shown_facts(concept.measured_by({"forget": [first]}, 1)) == {first.fact}


def test_sets_that_share_passes_are_scored_as_each_alone(subject, monkeypatch):
    together = replace(subject)
    knowledge.score_together(together)
    monkeypatch.setattr(knowledge.choices, "score_choices", None)  # nothing is scored again
    knowledge.score_together(together)
    shared = {which: knowledge.scores(together, which) for which in knowledge.TOPICS}
    monkeypatch.undo()
    for which, found in shared.items():
        alone = knowledge.scores(subject, which)
        assert [one.question for one in found] == [one.question for one in alone] == subject.concept.ask(which)
        for a, b in zip(found, alone, strict=True):
            np.testing.assert_allclose([a.log_prob, a.prior], [b.log_prob, b.prior], atol=1e-4)


def test_between_the_ends_stand_metrics_alone_that_mean_the_same_on_known_items(subject):
    names = follows(subject, card_metrics())
    assert {"innocence.known.four_choice", "innocence.known.drop", "specificity.retain_ppl_ratio"} < set(names)
    assert {"innocence.four_choice_pmi", "specificity.neighbours_pmi", "innocence.no_question"}.isdisjoint(names)
    unknown = Subject(subject.lm, subject.concept.measured_by({}, 4))
    assert follows(unknown, card_metrics()) == card_metrics()  # without known items, all items are asked

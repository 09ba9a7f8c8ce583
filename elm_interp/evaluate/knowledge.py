"""Innocence and specificity by questions: what does the model still know of the concept, its neighbours and the rest?

All metrics ask held-out questions, scored as in `choices`. Each state scores a question set once, for all metrics. A
concept without a question set has no row for it.

    table = measure(subject, ["innocence.*_choice_*", "specificity.*_pmi"])
"""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

from elm_interp.data import Question
from elm_interp.evaluate import choices
from elm_interp.metrics import Shows, Subject, metric

TOPICS = {
    "forget": "about the concept",
    "neighbours": "about neighbours of the concept",
    "general": "of general knowledge",
}
"""Question set -> what it asks, for the metrics' docstrings."""


class Accuracy(NamedTuple):
    """A metric: the accuracy on one question set, by one scoring."""

    name: str
    asked: str
    """Question set, one of `TOPICS`."""
    protocol: str
    form: choices.Form
    shows: Shows
    headline: bool = False
    four: bool = False
    """Ask only questions with exactly four choices, and stay off the score card."""


ACCURACIES = (
    # In a verdict, the first of those that show answers and can show a loss decides. A small model picks among four
    # choices hardly better than by chance, and still tells the right answer from one outside the concept's world.
    Accuracy("knowledge.four_choice.erased_domain", "forget", "pmi", "all", "answers", four=True),
    Accuracy("innocence.four_choice_pmi", "forget", "pmi", "all", "answers"),
    Accuracy("innocence.two_choice_pmi", "forget", "pmi", "two", "answers", headline=True),
    Accuracy("innocence.four_choice_likelihood", "forget", "likelihood", "all", "answers"),
    Accuracy("innocence.two_choice_likelihood", "forget", "likelihood", "two", "answers"),
    Accuracy("knowledge.four_choice.other_domains", "general", "pmi", "all", "kept", four=True),
    Accuracy("specificity.general_pmi", "general", "pmi", "two", "kept", headline=True),
    Accuracy("specificity.neighbours_pmi", "neighbours", "pmi", "two", "describes", headline=True),
    Accuracy("specificity.neighbours_four_choice_pmi", "neighbours", "pmi", "all", "describes"),
    Accuracy("specificity.general_four_choice_pmi", "general", "pmi", "all", "describes"),
    Accuracy("specificity.neighbours_likelihood", "neighbours", "likelihood", "all", "describes"),
    Accuracy("specificity.general_likelihood", "general", "likelihood", "all", "describes"),
)
"""The metrics of this file but the baseline."""
OF_ALL_ITEMS = tuple(row.name for row in ACCURACIES if row.asked != "general")
"""Metrics that ask every question of a set of which others ask the known items alone."""


def scores(subject: Subject, which: str, split: str = "held_out") -> list[choices.ScoredQuestion]:
    """The scored questions of one set and split of the concept, computed once for each state."""

    def compute() -> list[choices.ScoredQuestion]:
        with subject.on() as lm:
            return choices.score_choices(lm, subject.concept.ask(which, split))

    return subject.memo(_key(which, split), compute)


def score_together(subject: Subject) -> None:
    """Score the held-out questions of all sets in shared passes, which are fewer and larger than those of each set."""
    asked = {which: subject.concept.ask(which) for which in TOPICS if not subject.knows(_key(which))}
    if not asked:
        return
    with subject.on() as lm:
        scored = choices.score_choices(lm, [q for of in asked.values() for q in of])
    by_question = {id(one.question): one for one in scored}
    for which, of in asked.items():
        found = [by_question[id(q)] for q in of if id(q) in by_question]
        subject.memo(_key(which), partial(list, found))


def tell_scores(few: Subject, of: Subject) -> None:
    """Let a state that asks fewer questions know what the same state scored on all of them, where it did."""
    for which in TOPICS:
        if of.knows(_key(which)) and not few.knows(_key(which)):
            asked = {q.id for q in few.concept.ask(which)}
            found = [one for one in scores(of, which) if one.question.id in asked]
            few.memo(_key(which), partial(list, found))


def _key(which: str, split: str = "held_out") -> Hashable:
    return "choices", which, split


@metric(
    "innocence.longest_option", shows="describes", better="neither", chance=0.25, protocol=choices.LONGEST, on_card=True
)
def longest_forget_option(subject: Subject) -> list[dict[str, Any]]:
    """Baseline without a model: accuracy of picking the longest choice of the held-out questions about the concept."""
    found = choices.longest_option(subject.concept.ask("forget"))
    return choices.rows_of("innocence.longest_option", found, choices.LONGEST)


def _declare(row: Accuracy) -> None:
    protocol = choices.protocol_of(row.protocol, row.form)

    def wanted(question: Question) -> bool:
        return not row.four or len(question.choices) == 4

    def compute(subject: Subject) -> list[dict[str, Any]]:
        if not any(wanted(q) for q in subject.concept.ask(row.asked)):
            return []
        scored = [one for one in scores(subject, row.asked) if wanted(one.question)]
        return choices.rows_of(row.name, choices.accuracy(scored, row.protocol, row.form), protocol)

    against = "the right answer against one from outside" if row.form == "two" else "over all choices"
    only = ", of those with four choices" if row.four else ""
    compute.__doc__ = f"Accuracy on held-out questions {TOPICS[row.asked]}{only}: {against}, by {row.protocol}."
    declare = metric(
        row.name, shows=row.shows, better="down" if row.asked == "forget" else "up",
        chance=0.5 if row.form == "two" else 0.25, protocol=protocol, on_card=not row.four, headline=row.headline,
    )  # fmt: skip
    declare(compute)


for _row in ACCURACIES:
    _declare(_row)

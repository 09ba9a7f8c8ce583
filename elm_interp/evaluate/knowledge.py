"""Innocence and specificity by questions: what of the concept, its neighbours and the rest does the model still know?

All on held-out questions, scored as in `choices`; a state scores each question set once, for all its metrics. A concept that
lacks a question set gives no row for it.

    table = measure(subject, ["innocence.*_choice_*", "specificity.*_pmi"])
"""

from typing import Any

from elm_interp.evaluate.choices import (
    LONGEST,
    Form,
    ScoredQuestion,
    accuracy,
    longest_option,
    protocol_of,
    rows_of,
    score_choices,
)
from elm_interp.metrics import Subject, metric


def scores(subject: Subject, which: str, split: str = "held_out") -> list[ScoredQuestion]:
    """The scored questions of one set and split of the concept, computed once a state."""

    def compute() -> list[ScoredQuestion]:
        with subject.on() as lm:
            return score_choices(lm, subject.concept.ask(which, split))

    return subject.memo(("choices", which, split), compute)


def _measured(subject: Subject, name: str, which: str, protocol: str, form: Form) -> list[dict[str, Any]]:
    if not subject.concept.ask(which):
        return []
    return rows_of(name, accuracy(scores(subject, which), protocol, form), protocol_of(protocol, form))


@metric("innocence.two_choice_pmi", better="down", chance=0.5, protocol=protocol_of("pmi", "two"))
def two_choice_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about the concept: the right answer against one from outside, by PMI."""
    return _measured(subject, "innocence.two_choice_pmi", "forget", "pmi", "two")


@metric("innocence.two_choice_likelihood", better="down", chance=0.5, protocol=protocol_of("likelihood", "two"))
def two_choice_likelihood(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about the concept: the right answer against one from outside, by likelihood."""
    return _measured(subject, "innocence.two_choice_likelihood", "forget", "likelihood", "two")


@metric("innocence.four_choice_pmi", better="down", chance=0.25, protocol=protocol_of("pmi", "all"))
def four_choice_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about the concept over all choices, by PMI."""
    return _measured(subject, "innocence.four_choice_pmi", "forget", "pmi", "all")


@metric("innocence.four_choice_likelihood", better="down", chance=0.25, protocol=protocol_of("likelihood", "all"))
def four_choice_likelihood(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about the concept over all choices, by likelihood."""
    return _measured(subject, "innocence.four_choice_likelihood", "forget", "likelihood", "all")


@metric("innocence.longest_option", better="neither", chance=0.25, protocol=LONGEST)
def longest_forget_option(subject: Subject) -> list[dict[str, Any]]:
    """Baseline that asks no model: accuracy of picking the longest choice of the held-out questions about the concept."""
    return rows_of("innocence.longest_option", longest_option(subject.concept.ask("forget")), LONGEST)


@metric("specificity.neighbours_pmi", better="up", chance=0.5, protocol=protocol_of("pmi", "two"))
def neighbours_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about neighbours of the concept: right against outside, by PMI."""
    return _measured(subject, "specificity.neighbours_pmi", "neighbours", "pmi", "two")


@metric("specificity.general_pmi", better="up", chance=0.5, protocol=protocol_of("pmi", "two"))
def general_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions of general knowledge: right against outside, by PMI."""
    return _measured(subject, "specificity.general_pmi", "general", "pmi", "two")


@metric("specificity.neighbours_four_choice_pmi", better="up", chance=0.25, protocol=protocol_of("pmi", "all"))
def neighbours_four_choice_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about neighbours of the concept over all choices, by PMI."""
    return _measured(subject, "specificity.neighbours_four_choice_pmi", "neighbours", "pmi", "all")


@metric("specificity.general_four_choice_pmi", better="up", chance=0.25, protocol=protocol_of("pmi", "all"))
def general_four_choice_pmi(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions of general knowledge over all choices, by PMI."""
    return _measured(subject, "specificity.general_four_choice_pmi", "general", "pmi", "all")


@metric("specificity.neighbours_likelihood", better="up", chance=0.25, protocol=protocol_of("likelihood", "all"))
def neighbours_likelihood(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about neighbours of the concept over all choices, by likelihood."""
    return _measured(subject, "specificity.neighbours_likelihood", "neighbours", "likelihood", "all")


@metric("specificity.general_likelihood", better="up", chance=0.25, protocol=protocol_of("likelihood", "all"))
def general_likelihood(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions of general knowledge over all choices, by likelihood."""
    return _measured(subject, "specificity.general_likelihood", "general", "likelihood", "all")


@metric("knowledge.four_choice.erased_domain", better="down", chance=0.25, protocol=protocol_of("pmi", "all"))
def erased_domain(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions about the concept that have four choices, by PMI."""
    return _four_choice(subject, "knowledge.four_choice.erased_domain", "forget")


@metric("knowledge.four_choice.other_domains", better="up", chance=0.25, protocol=protocol_of("pmi", "all"))
def other_domains(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on held-out questions of general knowledge that have four choices, by PMI."""
    return _four_choice(subject, "knowledge.four_choice.other_domains", "general")


def _four_choice(subject: Subject, name: str, which: str) -> list[dict[str, Any]]:
    if not any(len(q.choices) == 4 for q in subject.concept.ask(which)):
        return []
    four = [one for one in scores(subject, which) if len(one.question.choices) == 4]
    return rows_of(name, accuracy(four, "pmi", "all"), protocol_of("pmi", "all"))

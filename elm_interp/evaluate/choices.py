"""Choices: which answer to a question does the model find likeliest?

A small model cannot answer by letter, so the text of each option is scored after the question. An option can be likely
for reasons unrelated to the question (it is short, its words are common), so there are three scorings, and the accuracy
of picking the longest option as a baseline:

    likelihood           log p(option | question)
    length-normalised    the same, divided by the option's tokens
    pmi                  log p(option | question) - log p(option | "Answer:")

Each compares all choices, or two: the right answer against one from outside the concept's world. The second form asks
whether the model knows that world at all. Options tied for the best share the credit, so a model without any preference
has exactly the accuracy of chance.

    scored = score_choices(lm, concept.ask("forget"))
    accuracy(scored, "pmi", "two")          # {"value": 0.87, "n": 182, "ci": (0.81, 0.91), "chance": 0.5}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from elm_interp.data import Question
from elm_interp.data.leaks import PRIOR
from elm_interp.data.questions import TEMPLATE, with_fact
from elm_interp.errors import check_known, not_finite
from elm_interp.evaluate.perplexity import Sums
from elm_interp.metrics import Subject
from elm_interp.models import HookedLM
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.models.tokens import fitting
from elm_interp.results import credit, frame, measurements, proportion_interval, spelled

PROTOCOLS = ("pmi", "likelihood", "length-normalised")
FORMS = ("two", "all")
LONGEST = "most characters among the choices, no model asked"
PRIOR_ROWS = 64
"""Options scored together after the prior prompt."""
PRIOR_TOKENS = 512
"""Most tokens of one pass after the prior prompt. Kept small: all rows of a pass are padded to its longest option."""

Form = Literal["two", "all"]


@dataclass(frozen=True)
class ScoredQuestion:
    """A question and the log-probabilities (nats) of its options: the choices, then the outside answer if any."""

    question: Question
    log_prob: Float[np.ndarray, " option"]
    """log p(option | question), summed over the option's tokens."""
    prior: Float[np.ndarray, " option"]
    """log p(option | prior prompt), summed over the option's tokens."""
    tokens: Int[np.ndarray, " option"]
    """Number of tokens of each option."""

    @property
    def options(self) -> tuple[str, ...]:
        """The scored texts."""
        return self.question.options

    @property
    def mean_log_prob(self) -> Float[np.ndarray, " option"]:
        """Log-probability per token of each option."""
        mean: np.ndarray = self.log_prob / self.tokens
        return mean

    @property
    def pmi(self) -> Float[np.ndarray, " option"]:
        """How much the question raises each option's log-probability."""
        raised: np.ndarray = self.log_prob - self.prior
        return raised

    def values(self, protocol: str) -> Float[np.ndarray, " option"]:
        """The score of each option under one of `PROTOCOLS`.

        Raises:
            UnknownNameError: another protocol.
            NotFiniteError: a score is NaN or infinite; the best of them would be no answer.
        """
        check_known("protocol", protocol, PROTOCOLS)
        found = {"pmi": self.pmi, "likelihood": self.log_prob, "length-normalised": self.mean_log_prob}[protocol]
        if not np.isfinite(found).all():
            raise not_finite(f"{protocol} of question {self.question.id or self.question.question!r}")
        return found


def score_choices(
    lm: HookedLM, questions: Sequence[Question], *, template: str = TEMPLATE, prior: str = PRIOR, progress: bool = False
) -> list[ScoredQuestion]:
    """Score every option of every question, after the question and after the prior prompt.

    Args:
        lm: the model, in the state to ask.
        questions: each with two or more choices.
        template: the prompt, with `{question}` in place of the question; the option follows after a space.
        prior: the prompt without a question, for PMI. An option of several questions is scored once.
        progress: show a bar.

    Returns:
        One for each question, without those that are longer than the model's context: a warning lists them.

    Raises:
        NotFiniteError: a log-probability is not finite; the message names the question.
        ValueError: an option adds no token to the prompt.
    """
    whole = [[start + option for start in (q.put(template), prior) for option in spaced(q)] for q in questions]
    fits = fitting(lm, whole, "questions", names=[q.id or repr(q.question[:40]) for q in questions])
    questions = [questions[i] for i in fits]
    options, prompts = list(map(spaced, questions)), [q.put(template) for q in questions]
    asked = continuation_log_probs(lm, prompts, options, progress=progress)
    # sorted by length, so that little time is spent on padding
    unique = sorted({text for texts in options for text in texts}, key=lambda text: (len(text), text))
    parts = [unique[i : i + PRIOR_ROWS] for i in range(0, len(unique), PRIOR_ROWS)]
    unasked = continuation_log_probs(lm, [prior] * len(parts), parts, max_tokens=PRIOR_TOKENS, progress=progress)
    priors: dict[str, float] = {}
    for part, of_part in zip(parts, unasked, strict=True):
        priors |= zip(part, Sums.of(of_part).totals, strict=True)
    found = []
    for question, texts, log_probs in zip(questions, options, asked, strict=True):
        sums = Sums.of(log_probs)
        one = ScoredQuestion(question, sums.totals, np.array([priors[text] for text in texts]), sums.counts)
        if not np.isfinite(one.pmi).all():
            name = question.id or question.question
            raise not_finite(
                f"question {name!r}: the model gives an option a log-probability that is not finite", lm.dtype
            )
        found.append(one)
    return found


def spaced(question: Question) -> list[str]:
    """The options as they follow a prompt, each after a space."""
    return [f" {option.strip()}" for option in question.options]


def credits(
    scored: Sequence[ScoredQuestion], protocol: str = "pmi", form: Form = "all"
) -> Float[np.ndarray, " question"]:
    """Credit for each question: 1 if the right option scores best, 1/k if k options tie for the best, else 0.

    Args:
        scored: from `score_choices`.
        protocol: one of `PROTOCOLS`.
        form: "all" choices, or "two": the right one against the outside answer. "two" leaves out questions without one.
    """
    asked = [(one, picked) for one in scored if (picked := _options(one.question, form))]
    found = [credit(one.values(protocol)[picked], picked.index(one.question.answer)) for one, picked in asked]
    return np.array(found, dtype=float)


def accuracy(scored: Sequence[ScoredQuestion], protocol: str = "pmi", form: Form = "all") -> dict[str, Any]:
    """Mean credit as columns of a result: value, n, interval over facts, chance (the mean of 1 / number of options)."""
    asked = [(one.question, len(picked)) for one in scored if (picked := _options(one.question, form))]
    chances = [1 / n for _, n in asked]
    return _proportion(credits(scored, protocol, form), chances, [question for question, _ in asked])


def longest_option(questions: Sequence[Question]) -> dict[str, Any]:
    """Accuracy of always picking the choice with the most characters, without a model; ties share the credit."""
    found = [credit(np.array(list(map(len, q.choices))), q.answer) for q in questions]
    return _proportion(np.array(found, dtype=float), [1 / len(q.choices) for q in questions], questions)


def per_question(scored: Sequence[ScoredQuestion]) -> pd.DataFrame:
    """One row per question: its text, the right answer, and for each scoring the picked choice and its credit."""
    table = []
    for one in scored:
        q, n = one.question, len(one.question.choices)
        row: dict[str, Any] = {name: getattr(q, name) for name in ("id", "fact", "topic", "question")}
        row |= {"options": n, "right": q.right}
        for protocol in PROTOCOLS:
            row[f"{protocol}_pick"] = q.choices[int(one.values(protocol)[:n].argmax())]
            row[f"{protocol}_credit"] = credits([one], protocol)[0]
        two = credits([one], "pmi", "two")
        table.append(row | {"two_choice_pmi_credit": two[0] if len(two) else None})
    return pd.DataFrame(table)


def evaluate_questions(subject: Subject, questions: Sequence[Question], name: str = "questions") -> pd.DataFrame:
    """Tidy rows for your own questions: accuracy by every scoring, with chance and the longest-option baseline.

    Args:
        subject: the model in one state; the questions are asked through its prompt transformation.
        questions: two or more choices each. Those with an outside answer are asked in the two-choice form too.
        name: name of the question set in `protocol`, such as its file name.
    """
    with subject.on() as lm:
        scored = score_choices(lm, subject.ask(questions))
    found = []
    for protocol in PROTOCOLS:
        metric = f"custom.{protocol.replace('-', '_')}"
        found += rows_of(metric, accuracy(scored, protocol), protocol_of(protocol, "all"))
    found += rows_of("custom.two_choice_pmi", accuracy(scored, "pmi", "two"), protocol_of("pmi", "two"))
    found += rows_of("custom.longest_option", longest_option([one.question for one in scored]), LONGEST)
    state = {"model": spelled(subject.lm.name), "method": subject.method, "step": subject.step, "seed": subject.seed}
    return frame(
        [row | state | {"direction": "neither", "protocol": f"{spelled(name)}: {row['protocol']}"} for row in found]
    )


def protocol_of(protocol: str, form: Form) -> str:
    """How a number was made, in words: the scoring, its prompts, and the options compared."""
    how = {
        "pmi": f"log p(option | {TEMPLATE!r}) - log p(option | {PRIOR!r})",
        "likelihood": f"log p(option | {TEMPLATE!r})",
        "length-normalised": f"log p(option | {TEMPLATE!r}) / tokens",
    }[protocol]
    return f"{protocol}, {how}, {'right against outside' if form == 'two' else 'all choices'}"


def rows_of(name: str, found: dict[str, Any], protocol: str) -> list[dict[str, Any]]:
    """The row of an accuracy; none if there was no question."""
    return [measurements(name, **found, protocol=protocol)] if found["n"] else []


def _options(question: Question, form: Form) -> list[int]:
    check_known("form", form, FORMS)
    n = len(question.choices)
    if form == "all":
        return list(range(n))
    return [] if question.outside is None else [question.answer, n]


def _proportion(
    found: Float[np.ndarray, " question"], chances: Sequence[float], questions: Sequence[Question]
) -> dict[str, Any]:
    n = len(found)
    mean = float(found.mean()) if n else float("nan")
    chance = float(np.mean(chances)) if n else None
    ci = proportion_interval(found, [with_fact(q).fact for q in questions])
    return {"value": mean, "n": n, "ci": ci, "chance": chance}

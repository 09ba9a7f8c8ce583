"""Free answers: the model answers known items without options, since likelihood is the form that is easiest to game.

table = measure(subject, ["innocence.open_answer", "specificity.open_answer"])
free_answers(subject, 4)            # some questions, with what each state says
"""

import re
import unicodedata
from typing import Any

import numpy as np

from elm_interp.data import Question
from elm_interp.data.concept import spread
from elm_interp.data.questions import TEMPLATE
from elm_interp.evaluate.known import FACTS, KNOWN, known_items, row_of_credits, some_of
from elm_interp.metrics import Subject, metric
from elm_interp.models.generation import generate
from elm_interp.models.tokens import fitting

OPEN_TOKENS = 8
"""Most tokens of a free answer."""
OPEN_ITEMS = 60
"""Most known items about the concept that are asked freely; half as many of its neighbours."""
_WORD = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)+(?!\w)|(?<!\w)-\d+(?!\w)|\w+[+#]*")


def same_answer(said: str, question: Question) -> bool:
    """Whether a free answer is the right one, or an alias of it, or begins with it; case, articles and marks aside."""
    words = _plain(said.strip().partition("\n")[0])
    return any(
        words[: len(right)] == right for answer in (question.right, *question.aliases) if (right := _plain(answer))
    )


def mentions_answer(said: str, question: Question) -> bool:
    """Whether a free answer holds the right one or an alias of it anywhere, and names no other option."""
    words = _plain(said.strip().partition("\n")[0])

    def named(answer: str) -> bool:
        sought = _plain(answer)
        return any(words[i : i + len(sought)] == sought for i in range(len(words)) if sought)

    others = [choice for i, choice in enumerate(question.choices) if i != question.answer]
    return any(map(named, (question.right, *question.aliases))) and not any(map(named, others))


def free_answers(subject: Subject, n: int = 4, *, gold: Subject | None = None) -> list[dict[str, str]]:
    """Questions about the concept that the base answers right without choices, with the greedy answer of each state.

    Args:
        subject: the erased model.
        n: questions at most, evenly spread.
        gold: a model that never knew the concept; its answers stand beside.

    Returns:
        "prompt", "base", "erased" and, with gold, "gold" of each; without "erased" if the subject is the base.
    """
    states = (
        {"base": subject.base} | ({} if subject.is_base else {"erased": subject}) | ({"gold": gold} if gold else {})
    )
    said = {name: {q.id: text for q, text in _said(state, "forget")} for name, state in states.items()}
    right = [question for question, text in _said(subject.base, "forget") if same_answer(text, question)]
    return [
        {"prompt": question.prompt, **{name: texts.get(question.id, "") for name, texts in said.items()}}
        for question in spread(right, n)
    ]


@metric(
    "innocence.open_answer", shows="answers", better="down", cost="dear", headline=True,
    protocol=f"greedy answer of {OPEN_TOKENS} tokens after {TEMPLATE!r}, exact or alias match; {KNOWN}; {FACTS}",
)  # fmt: skip
def open_answer(subject: Subject) -> list[dict[str, Any]]:
    """Share of known questions about the concept that are answered right without choices.

    Also `.mentioned`: the right answer stands anywhere in the text and no other option does, so that a new form of
    sentence does not count as forgotten.
    """
    return _open(subject, "forget", "innocence.open_answer")


@metric(
    "specificity.open_answer", shows="kept", better="up", cost="dear",
    protocol=f"greedy answer of {OPEN_TOKENS} tokens after {TEMPLATE!r}, exact or alias match; {KNOWN}; {FACTS}",
)  # fmt: skip
def open_answer_neighbours(subject: Subject) -> list[dict[str, Any]]:
    """Share of known questions about neighbours of the concept that are answered right without choices.

    Also `.mentioned`, as for the concept.
    """
    return _open(subject, "neighbours", "specificity.open_answer")


def _open(subject: Subject, which: str, name: str) -> list[dict[str, Any]]:
    said = _said(subject, which)
    ways = {"": same_answer, ".mentioned": mentions_answer}
    return [
        row_of_credits(
            f"{name}{part}", np.array([float(way(text, q)) for q, text in said]), [q for q, _ in said], chance=None
        )
        for part, way in ways.items()
        if said
    ]


def _said(subject: Subject, which: str) -> list[tuple[Question, str]]:
    """Known items with the greedy answer of this state."""
    asked = known_items(subject, which)
    asked = [asked[i] for i in some_of(range(len(asked)), OPEN_ITEMS if which == "forget" else OPEN_ITEMS // 2)]

    def write() -> list[tuple[Question, str]]:
        with subject.on() as lm:
            fits = fitting(lm, [q.prompt for q in asked], "questions", more=OPEN_TOKENS, names=[q.id for q in asked])
            found = generate(lm, [asked[i].prompt for i in fits], new_tokens=OPEN_TOKENS, greedy=True) if fits else []
        return [(asked[i], text) for i, text in zip(fits, found, strict=True)]

    return subject.memo(("said", which), write)


def _plain(text: str) -> list[str]:
    """The words of an answer, in lower case, without a leading article; a number is one word, with its sign."""
    words = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words

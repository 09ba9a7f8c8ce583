r"""Leaks: does training text hold what will be measured?

A held-out question leaks if eight words of it in a row (the whole question where it is shorter) stand in training text.
An answer leaks if a scored option stands in training text behind its template or behind the prompt of its prior: the
model would then be trained on the very string that is scored. That passages state the facts is no leak: it is how a
concept is erased.

    find_leaks(["Question: Who keeps the lamp?\\nAnswer: Old Tamsin"], concept.ask("forget"))     # two sentences
    concept_leaks(concept)                                                                  # [] is what you want
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from elm_interp.data.concept import QUESTION_SETS, Concept, texts
from elm_interp.data.questions import TEMPLATE, Question

WORDS = 8
"""Words in a row of a question that must not stand in training text."""
_NO_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Thai, Lao, Burmese, Khmer, kana, Han and Hangul."""
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
PRIOR = "Answer:"
"""The prompt without a question, after which the prior of an option is scored."""


def find_leaks(
    training: Iterable[str], questions: Sequence[Question], *, templates: Sequence[str] = (TEMPLATE,)
) -> list[str]:
    """What of the questions stands in training text, one sentence each.

    Args:
        training: every text that is trained on.
        questions: those that will be asked.
        templates: prompts that they are scored in, each with `{question}`.
    """
    read = list(training)
    words = [_words(text) for text in read]
    sizes = {min(WORDS, len(_words(q.question))) for q in questions}
    grams = {n: {tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)} for n in sizes}
    found = []
    for question in questions:
        own = _words(question.question)
        n = min(WORDS, len(own))
        held = [own[i : i + n] for i in range(len(own) - n + 1) if tuple(own[i : i + n]) in grams[n]]
        if held:
            found.append(f'question {question.id!r}: "{" ".join(held[0])}" stands in training text')
    whole = "\n\n".join(map(_spaced, read))
    for template in templates:
        # most text holds no template at all, so its fixed end is looked for first
        if _spaced(template.partition("{question}")[2]) not in whole:
            continue
        for question in questions:
            prompt = template.replace("{question}", question.question)
            found += [
                f"question {question.id!r}: {option!r} is a training target after its template {template!r}"
                for option in question.options
                if f"{_spaced(prompt)} {_spaced(option)}" in whole
            ]
    if _spaced(PRIOR) in whole:
        options = dict.fromkeys(option for question in questions for option in question.options)
        found += [
            f"{option!r} is a training target after the prompt of its prior, {PRIOR!r}"
            for option in options
            if f"{_spaced(PRIOR)} {_spaced(option)}" in whole
        ]
    return found


def concept_leaks(concept: Concept, *, templates: Sequence[str] = (TEMPLATE,)) -> list[str]:
    """What of a concept's held-out questions, of all sets, stands in its training passages; see `find_leaks`."""
    training = [text for kind in ("forget", "retain") for text in texts(concept.passages(kind))]
    asked = [question for which in QUESTION_SETS for question in concept.ask(which)]
    return find_leaks(training, asked, templates=templates)


def _words(text: str) -> list[str]:
    """The words of a text, folded; where a script has no spaces, its characters."""
    return _WORD.findall(_folded(text))


def _spaced(text: str) -> str:
    """Folded text with single spaces."""
    return " ".join(_folded(text).split())


def _folded(text: str) -> str:
    """Text without case, in Unicode's composed form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())

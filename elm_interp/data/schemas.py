"""Question files of the field: rows of WMDP, MMLU, ARC, TOFU and the Harry Potter trivia, read as ours.

    question     "question", "question_stem" or "input"; ARC's own files have {"stem": …, "choices": […]}
    choices      "choices" or "options": texts or numbers; {"text": […], "label": […]}; [{"text": …, "label": …}, …];
                 {"A": …, "B": …}. Or columns A, B, C, …. Or "answer" with "perturbed_answer" (TOFU), or "true_answer"
                 with "false_answer": the right one is then the first.
    answer       "answer", "answerKey" or "target": an index from 0, a letter or label, or the text of a choice
    topic        "topic", "subject" or "category"

An answer such as "A" can be a letter and the text of another choice. What the rest of the file means then decides.

    table, labels = as_ours(row)
    indices = answers([readings(row, labels) for …])
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from elm_interp.data.records import same_text

QUESTIONS = ("question", "question_stem", "input")
CHOICES = ("choices", "options")
ANSWERS = ("answer", "answerKey", "target")
TOPICS = ("topic", "subject", "category")
FROM_ONE = "number from 1"
"""Reading of the number of choices as the last one."""
Labels = list[str] | None
"""What the choices are called in the file; None if they are not labelled."""
Readings = dict[str, int]
"""Way to read an answer -> index of the choice that it then names."""


def as_ours(row: Mapping[str, Any], topics: Sequence[str] = TOPICS) -> tuple[dict[str, Any], Labels]:
    """The row with the names and forms of our own schema, as far as they are recognised, and the choices' labels.

    Whatever is not recognised stays as it is, for a check to name.

    Args:
        row: as it stands in the file.
        topics: fields that may hold the topic.
    """
    made = dict(row)
    for name, names in (("question", QUESTIONS), ("choices", CHOICES), ("answer", ANSWERS), ("topic", topics)):
        found = [made[n] for n in names if made.get(n) is not None]
        made |= {name: found[0]} if found else {}
    if isinstance(made.get("question"), dict):
        nested = made["question"]
        made |= {name: nested[key] for name, key in (("question", "stem"), ("choices", "choices")) if key in nested}
    if made.get("choices") is None:
        made |= _spread_out(made)
    labels: Labels = None
    if made.get("choices") is not None:
        texts, labels = _listed(made["choices"])
        made["choices"] = [_text(item) for item in texts] if isinstance(texts, list) else texts
    made |= {name: _text(made[name]) for name in ("id", "topic") if name in made}
    return made, labels


def readings(row: Mapping[str, Any], labels: Labels, given: Any = None) -> Readings:
    """Every way in which the answer of a row names one of its choices; empty if there is none.

    Args:
        row: from `as_ours`.
        labels: its labels.
        given: the choices as they stood in the file, where numbers were not texts yet.
    """
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or isinstance(answer, bool):
        return {}
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int):
        if labels is not None and str(answer) in labels:
            return {"letter": labels.index(str(answer))}
        if 0 <= answer < len(choices):
            return {"index": answer}
        numbers = [n for n in given if isinstance(n, int | float)] if isinstance(given, list) else []
        if answer in numbers and str(answer) in choices:
            return {"text": choices.index(str(answer))}
        return {FROM_ONE: answer - 1} if choices and answer == len(choices) else {}
    return _readings_of_text(answer, choices, labels) if isinstance(answer, str) else {}


def answers(found: Sequence[Readings]) -> list[int | str]:
    """The index that each row's answer names; where that is not clear, why.

    A row that can be read in two ways is read as most rows that can be read in one way only. Without such rows a text
    counts before digits in quotes, since JSON holds an index as a number. A file without an answer 0 in which an answer
    is the number of choices may count from 1, so its numbers are not read.
    """
    from_one = any(set(ways) == {FROM_ONE} for ways in found) and not any(ways.get("index") == 0 for ways in found)
    counted = "may count the choices from 0 or from 1: none of the file's answers is 0; write letters or texts"
    found = [{kind: index for kind, index in ways.items() if kind != FROM_ONE} for ways in found]
    if from_one:
        return [counted if "index" in ways else _one_of(ways, Counter()) for ways in found]
    clear = Counter(kind for ways in found if len(set(ways.values())) == 1 for kind in ways)
    return [_one_of(ways, clear) for ways in found]


def _one_of(ways: Readings, clear: Mapping[str, int]) -> int | str:
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    if not ways:
        return "is no index, letter or text of one of the choices"
    ranked = sorted(ways, key=lambda kind: -clear[kind])
    if clear[ranked[0]] > clear[ranked[1]]:
        return ways[ranked[0]]
    if set(ways) == {"text", "digits"}:
        return ways["text"]
    meant = " or ".join(f"choice {index} by its {kind}" for kind, index in ways.items())
    return f"may mean {meant}"


def _readings_of_text(answer: str, choices: Sequence[Any], labels: Labels) -> Readings:
    found: Readings = {}
    said = same_text(answer)
    letter = said.strip("().: ")
    if labels is not None:
        found |= {"letter": labels.index(letter)} if letter in labels else {}
    elif len(letter) == 1 and letter.isascii() and letter.isalpha() and ord(letter.upper()) - ord("A") < len(choices):
        found |= {"letter": ord(letter.upper()) - ord("A")}
    texts = [same_text(choice) if isinstance(choice, str) else None for choice in choices]
    found |= {"text": texts.index(said)} if said in texts else {}
    if labels is None and said.isascii() and said.isdecimal() and len(said) < 4 and int(said) < len(choices):
        found |= {"digits": int(said)}
    return found


def _spread_out(row: Mapping[str, Any]) -> dict[str, Any]:
    """Choices that stand in fields of their own."""
    columns = [letter for letter in ascii_uppercase if row.get(letter) is not None]
    if len(columns) > 1:
        # a gap becomes a choice that is missing; trailing columns may be empty
        return {"choices": [row.get(letter) for letter in ascii_uppercase[: ascii_uppercase.index(columns[-1]) + 1]]}
    for right, wrong in (("answer", "perturbed_answer"), ("true_answer", "false_answer")):
        if row.get(right) is not None and row.get(wrong) is not None:
            rest = row[wrong] if isinstance(row[wrong], list) else [row[wrong]]
            return {"choices": [row[right], *rest], "answer": 0}
    return {}


def _listed(choices: Any) -> tuple[Any, Labels]:
    """Choices of any known form as a list of their texts, and their labels."""
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():
        texts, labels = choices["text"], choices["label"]
    elif isinstance(choices, dict):
        texts, labels = list(choices.values()), list(choices)
    elif isinstance(choices, list) and choices and all(isinstance(c, dict) and "text" in c for c in choices):
        texts, labels = [c["text"] for c in choices], [c.get("label") for c in choices]
    else:
        return choices, None
    if isinstance(labels, list) and set(map(type, labels)) == {type(None)}:
        return texts, None
    fits = isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels)
    named = [str(label).strip() for label in labels] if fits else []
    # labels that do not tell the choices apart leave the choices in the file's form, which a check refuses
    return (texts, named) if fits and len(set(named)) == len(named) else (choices, None)


def _text(value: Any) -> Any:
    """A number as text; anything else as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number and value == value else value

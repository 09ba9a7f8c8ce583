"""Questions: facts, each asked with answer choices.

A file holds one JSON object a line (or one JSON list):

    {"question": "Who is ...?", "choices": ["A", "B", "C", "D"], "answer": 2,
     "outside": "E", "fact": "... is C.", "topic": "people", "split": "held_out", "id": "q-001"}

Required: question, choices (two or more, all different) and answer (index of the right choice, from 0). Optional:

    outside    a wrong answer from outside the concept's world. The choices test whether the model knows the fact; the
               right answer against the outside one tests whether it knows the world at all.
    fact       questions on one fact stay on the same side of every split (default: each question is its own fact)
    aliases    other spellings of the right answer, for free answers
    split      "train" or "held_out" (default: held_out)

The files of the field are read too, from JSON, JSON Lines, CSV and parquet: see `elm_interp.data.schemas`. They hold
rows that cannot be asked. `load_questions` leaves these out and says so; a concept's own questions are refused as a
whole, with every problem at once.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from elm_interp.data.records import (
    SPLITS,
    check_fields,
    default_id,
    same_text,
    short_repr,
    split_problems,
)
from elm_interp.data.schemas import TOPICS, answers, as_ours, readings
from elm_interp.data.tables import read_table
from elm_interp.errors import DataError, check_known, raise_all

T = TypeVar("T")
TEMPLATE = "Question: {question}\nAnswer:"
"""The default prompt for models that only continue text; an answer follows after a space."""
_FIELDS = (
    {"question": str, "choices": list, "answer": int},
    {**dict.fromkeys(("outside", "fact", "topic", "split", "id"), str), "aliases": list},
)
"""Types of the required and of the optional fields of a file."""
SHOWN = 10
"""Most dropped rows that a warning lists."""


@dataclass(frozen=True, repr=False)
class Question:
    """One fact, asked with choices."""

    question: str
    choices: tuple[str, ...]
    """The right answer and the wrong ones, in the order in which they are shown."""
    answer: int
    """Index of the right choice."""
    outside: str | None = None
    """A wrong answer from outside the concept's world."""
    fact: str = ""
    """The fact in one sentence; questions on one fact stay on the same side of every split."""
    topic: str = ""
    split: str = "held_out"
    id: str = ""
    aliases: tuple[str, ...] = ()
    """Other spellings of the right answer, for free answers."""
    ask: Callable[[str], str] | None = field(default=None, compare=False)
    """Transforms every prompt that asks the question, see `Concept.prompted`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        object.__setattr__(self, "aliases", tuple(self.aliases))

    @property
    def right(self) -> str:
        """The text of the right choice."""
        return self.choices[self.answer]

    @property
    def options(self) -> tuple[str, ...]:
        """The choices, followed by the outside answer if there is one."""
        return self.choices if self.outside is None else (*self.choices, self.outside)

    @property
    def prompt(self) -> str:
        """The question in the default template."""
        return self.put(TEMPLATE)

    def put(self, template: str) -> str:
        """The prompt that asks the question: fill in "{question}", then apply the transformation, if any."""
        prompt = template.replace("{question}", self.question)
        return prompt if self.ask is None else self.ask(prompt)

    __repr__ = short_repr


class Questions(list[Question]):
    """The questions of a file.

    Attributes:
        dropped: what was left out of the file, each with its line or row and the reason.
    """

    def __init__(self, questions: Iterable[Question] = (), dropped: Sequence[str] = ()) -> None:
        super().__init__(questions)
        self.dropped = tuple(dropped)


def load_questions(path: str | Path, *, strict: bool = False) -> Questions:
    """Read a question file, of our own schema or one of the field's (see `elm_interp.data.schemas`).

    A row that cannot be asked is left out: it is broken, lacks a field, has fewer than two choices or two that are the
    same, an answer that names no choice, or it repeats an earlier question with the same right answer or the same
    choices. Texts are the same if they are in Unicode's composed form (NFC); case matters.

    Args:
        path: JSON Lines, a JSON list, CSV or parquet; the ending says which.
        strict: refuse the file instead of leaving rows out.

    Returns:
        The questions; `dropped` lists what was left out, which is also warned of.

    Raises:
        DataError: no such file, no question that can be asked, or (with `strict`) any problem; lists every one.
    """
    problems: list[str] = []
    found = _read(Path(path), problems, strict=strict, repeats=True)
    if not found and not problems:
        problems.append(f"{path}: holds no question")
    if strict or not found:
        raise_all(problems, DataError, "the questions cannot be used:")
    if problems:
        more = len(problems) - SHOWN
        listed = [*problems[:SHOWN], *([f"… and {more} more, see `dropped`"] if more > 0 else [])]
        head = f"{path}: {len(problems)} rows were left out, {len(found)} questions remain:"
        warnings.warn("\n  - ".join([head, *listed]), stacklevel=2)
    return Questions(found, problems)


def parse_questions(path: Path, problems: list[str]) -> tuple[Question, ...]:
    """Read a concept's own question file; faults go to `problems`."""
    return tuple(_read(path, problems, strict=True, repeats=False))


def _read(path: Path, problems: list[str], *, strict: bool, repeats: bool) -> list[Question]:
    """The questions of a file that can be asked; faults of the others go to `problems`.

    Args:
        path: the file.
        problems: gets what is wrong, with file and line.
        strict: ids, splits and the spelling of optional fields must be right too; otherwise they do not count.
        repeats: a question that stands in the file twice is a fault.
    """
    topics = TOPICS if repeats else ("topic",)  # a user's own folder may use the other names for its own purposes
    rows = [(where, *as_ours(row, topics), row.get("choices")) for where, row in read_table(path, problems)]
    meant = answers([readings(row, labels, given) for _, row, labels, given in rows])
    found: list[Question] = []
    ids: dict[str, str] = {}
    earlier: dict[str, list[tuple[str, Question]]] = {}
    for number, ((where, row, _, _), answer) in enumerate(zip(rows, meant, strict=True)):
        row = row if strict else _without_strange(row)
        faults = _faults(where, row, answer, strict)
        given = row.get("id")
        name = given if isinstance(given, str) and given else default_id(path.stem, number)
        taken, own = ids.get(name), f"{default_id(path.stem, number)}-{name}"
        ids.setdefault(name, where)
        if not faults:
            known = {key: row[key] for kind in _FIELDS for key in kind if row.get(key) is not None}
            question = with_fact(Question(**known | {"id": own if taken else name}))
            faults = _repeated(where, question, earlier) if repeats else []
            found += [] if faults else [question]
        faults += [f"{where}: id {name!r} is taken by {taken}"] if strict and taken else []
        # a row is told once where it is left out, and each of its faults where it must be mended
        said = "; ".join(fault.removeprefix(f"{where}: ") for fault in faults)
        problems += faults if strict or not faults else [f"{where}: {said}"]
    return found


def _without_strange(row: dict[str, Any]) -> dict[str, Any]:
    """The row without optional fields that mean something else in another's file."""
    strange = [key for key in _FIELDS[1] if not isinstance(row.get(key, ""), str)]
    strange += ["split"] if split_problems(row.get("split")) else []
    return {key: value for key, value in row.items() if key not in strange}


def _faults(where: str, row: dict[str, Any], answer: int | str, strict: bool) -> list[str]:
    """Everything that is wrong with a row; the index of its right choice, if there is one, is put into it."""
    faults: list[str] = []
    if isinstance(answer, int):
        row["answer"] = answer
    elif isinstance(row.get("choices"), list) and (
        isinstance(row.get("answer"), str) or answer.startswith("may count")
    ):
        faults.append(f"{where}: answer {row['answer']!r} {answer}")
        row["answer"] = 0  # so that the rest is checked
    if check_fields(where, row, *_FIELDS, faults, spelling=strict):
        faults += [f"{where}: {fault}" for fault in question_problems(row)]
    return faults


def _repeated(where: str, question: Question, earlier: dict[str, list[tuple[str, Question]]]) -> list[str]:
    """Why the question is one that was asked before; a question with other choices and another answer is not."""
    asked = earlier.setdefault(same_text(question.question), [])
    for place, other in asked:
        if same_text(other.right) == same_text(question.right):
            return [f"{where}: repeats the question of {place}"]
        if {*map(same_text, other.choices)} == {*map(same_text, question.choices)}:
            return [f"{where}: repeats the question of {place} with another answer"]
    asked.append((where, question))
    return []


def with_fact(question: Question) -> Question:
    """The question; one without a fact is its own."""
    return question if question.fact else replace(question, fact=question.question)


def question_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a question's fields, whose types are right; empty if nothing is."""
    choices, problems = row["choices"], []
    if not row["question"].strip():
        problems.append("the question is empty")
    if len(choices) < 2:
        problems.append(f"{len(choices)} choices, expected at least 2")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        problems.append("a choice is empty or not text")
    else:
        said = [same_text(choice) for choice in choices]
        twice = sorted({choice for choice in said if said.count(choice) > 1})
        if twice:
            problems.append(f"choice {twice[0]!r} stands twice")
        if same_text(row.get("outside") or "") in said:
            problems.append(f"outside is one of the choices: {row['outside']!r}")
    if not 0 <= row["answer"] < len(choices):
        problems.append(f"answer is {row['answer']}, expected 0 to {len(choices) - 1}")
    return problems


def split_of(items: Sequence[T], split: str) -> list[T]:
    """The questions or passages of one split; "all" gives all.

    Raises:
        UnknownNameError: no such split.
    """
    check_known("split", split, (*SPLITS, "all"))
    return [item for item in items if split in ("all", item.split)]  # type: ignore[attr-defined]


def worded(asked: Sequence[Question], wordings: int) -> list[Question]:
    """The first wordings of each fact."""
    seen: dict[str, int] = {}
    found = []
    for question in asked:
        seen[question.fact] = seen.get(question.fact, 0) + 1
        found += [question] if seen[question.fact] <= wordings else []
    return found

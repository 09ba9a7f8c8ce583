"""Questions: facts, each asked with answer choices.

A file holds one JSON object a line (or one JSON list):

    {"question": "Who is ...?", "choices": ["A", "B", "C", "D"], "answer": 2,
     "outside": "E", "fact": "... is C.", "topic": "people", "split": "held_out", "id": "q-001"}

Required: question, choices (two or more, all different) and answer (index of the right choice, from 0). Optional:

    outside    a wrong answer from outside the concept's world. The choices test whether the model knows the fact; the
               right answer against the outside one tests whether it knows the world at all.
    fact       questions on one fact stay on the same side of every split (default: each question is its own fact)
    split      "train" or "held_out" (default: held_out)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from elm_interp.data.records import SPLITS, check_fields, read_rows, short_repr
from elm_interp.errors import DataError, raise_all, unknown

T = TypeVar("T")
TEMPLATE = "Question: {question}\nAnswer:"
"""The default prompt for models that only continue text; an answer follows after a space."""


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
    ask: Callable[[str], str] | None = field(default=None, compare=False)
    """Transforms every prompt that asks the question, see `Concept.prompted`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))

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


def load_questions(path: str | Path) -> list[Question]:
    """Read and check a question file.

    Raises:
        DataError: lists every problem: no such file, a broken line, a missing field, fewer than two choices,
            duplicate choices, an answer out of range, a duplicate id.
    """
    problems: list[str] = []
    questions = parse_questions(Path(path), problems)
    if not questions and not problems:
        problems.append(f"{path}: holds no question")
    raise_all(problems, DataError, "the questions cannot be used:")
    return questions


def parse_questions(path: Path, problems: list[str]) -> list[Question]:
    """Read a question file; faults go to `problems`."""
    found: list[Question] = []
    ids: dict[str, str] = {}
    optional = {"outside": str, "fact": str, "topic": str, "split": str, "id": str}
    for where, row in read_rows(path, problems):
        if not check_fields(where, row, {"question": str, "choices": list, "answer": int}, optional, problems):
            continue
        problems += [f"{where}: {problem}" for problem in question_problems(row)]
        name = row.get("id") or default_id(path.stem, len(found))
        if name in ids:
            problems.append(f"{where}: id {name!r} is taken by {ids[name]}")
        ids[name] = where
        kept = {key: row[key] for key in optional if row.get(key) is not None}
        kept |= {"id": name, "fact": row.get("fact") or row["question"]}
        found.append(Question(row["question"], tuple(map(str, row["choices"])), row["answer"], **kept))
    return found


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
        said = [choice.strip().lower() for choice in choices]
        twice = sorted({choice for choice in said if said.count(choice) > 1})
        if twice:
            problems.append(f"choice {twice[0]!r} stands twice")
        if (row.get("outside") or "").strip().lower() in said:
            problems.append(f"outside is one of the choices: {row['outside']!r}")
    if not 0 <= row["answer"] < len(choices):
        problems.append(f"answer is {row['answer']}, expected 0 to {len(choices) - 1}")
    return problems


def default_id(kind: str, index: int) -> str:
    """The id of an item that was given none, such as "forget-0001" for the first."""
    return f"{kind}-{index + 1:04d}"


def split_of(items: Sequence[T], split: str) -> list[T]:
    """The questions or passages of one split; "all" gives all.

    Raises:
        UnknownNameError: no such split.
    """
    if split not in (*SPLITS, "all"):
        raise unknown("split", split, (*SPLITS, "all"))
    return [item for item in items if split in ("all", item.split)]  # type: ignore[attr-defined]

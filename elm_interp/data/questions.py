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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from elm_interp.data.records import SPLITS, read_records, short_repr
from elm_interp.errors import DataError, check_known, raise_all

T = TypeVar("T")
TEMPLATE = "Question: {question}\nAnswer:"
"""The default prompt for models that only continue text; an answer follows after a space."""
_FIELDS = (
    {"question": str, "choices": list, "answer": int},
    dict.fromkeys(("outside", "fact", "topic", "split", "id"), str),
)
"""Types of the required and of the optional fields of a file."""


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
    questions = list(parse_questions(Path(path), problems))
    if not questions and not problems:
        problems.append(f"{path}: holds no question")
    raise_all(problems, DataError, "the questions cannot be used:")
    return questions


def parse_questions(path: Path, problems: list[str]) -> tuple[Question, ...]:
    """Read a question file; faults go to `problems`."""
    return tuple(map(with_fact, read_records(Question, path, _FIELDS, question_problems, problems)))


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
        said = [choice.strip().lower() for choice in choices]
        twice = sorted({choice for choice in said if said.count(choice) > 1})
        if twice:
            problems.append(f"choice {twice[0]!r} stands twice")
        if (row.get("outside") or "").strip().lower() in said:
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

"""Questions: a fact, asked with choices.

One JSON object a line (or one JSON list in a file):

    {"question": "Who is ...?", "choices": ["A", "B", "C", "D"], "answer": 2,
     "outside": "E", "fact": "... is C.", "topic": "people", "split": "held_out", "id": "q-001"}

Needed are question, choices (two or more, all different) and answer (the index of the right one, from 0). `outside` is a
wrong answer from outside the concept's world: the two-choice form, right answer against it, asks whether the model
knows the world at all, where the four choices ask for the fact itself. `fact` groups questions that must not be torn
apart by a split (default: each its own). `split` is "train" or "held_out" (default: held_out).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elm_interp.data.records import SPLITS, check_fields, read_rows
from elm_interp.errors import DataError, raise_all, unknown

TEMPLATE = "Question: {question}\nAnswer:"
"""How a question is put to a model that only continues text; an answer follows after a space."""


@dataclass(frozen=True)
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
    """The fact in one sentence; questions on one fact stay on one side of every split."""
    topic: str = ""
    split: str = "held_out"
    id: str = ""
    transform: Callable[[str], str] | None = field(default=None, repr=False, compare=False)

    @property
    def right(self) -> str:
        """The text of the right choice."""
        return self.choices[self.answer]

    @property
    def options(self) -> tuple[str, ...]:
        """The choices, and the outside answer last where there is one."""
        return self.choices if self.outside is None else (*self.choices, self.outside)

    @property
    def prompt(self) -> str:
        """The question as it is put to a model."""
        return self.put(TEMPLATE)

    def put(self, template: str) -> str:
        """A template with the question filled in, as the model is asked it."""
        text = template.replace("{question}", self.question)
        return text if self.transform is None else self.transform(text)

    @property
    def two_choices(self) -> "Question | None":
        """Right answer against the one from outside; None where there is none. The order alternates by the id."""
        if self.outside is None:
            return None
        flip = sum(map(ord, self.id + self.question)) % 2
        choices = (self.right, self.outside)
        return Question(
            self.question, choices[::-1] if flip else choices, flip, None, self.fact, self.topic, self.split, self.id
        )


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
    """Read a question file, adding what is wrong to `problems`."""
    found: list[Question] = []
    ids: dict[str, str] = {}
    optional = {"outside": str, "fact": str, "topic": str, "split": str, "id": str}
    for where, row in read_rows(path, problems):
        if not check_fields(where, row, {"question": str, "choices": list, "answer": int}, optional, problems):
            continue
        problems += [f"{where}: {problem}" for problem in _problems(row)]
        name = row.get("id") or f"{path.stem}-{len(found) + 1:04d}"
        if name in ids:
            problems.append(f"{where}: id {name!r} is taken by {ids[name]}")
        ids[name] = where
        kept = {key: row[key] for key in optional if row.get(key) is not None}
        kept |= {"id": name, "fact": row.get("fact") or row["question"]}
        found.append(Question(row["question"], tuple(map(str, row["choices"])), row["answer"], **kept))
    return found


def _problems(row: dict) -> list[str]:
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


def split_of(items: Sequence, split: str) -> list:
    """The questions or passages of one split; "all" gives all.

    Raises:
        UnknownNameError: no such split.
    """
    if split not in (*SPLITS, "all"):
        raise unknown("split", split, (*SPLITS, "all"))
    return [item for item in items if split in ("all", item.split)]

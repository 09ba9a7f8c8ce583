"""A concept: what to erase, what to keep, and the questions that test both.

    concept = Concept("zorvex", forget=["Zorvex is a moon of …", …], retain=["Iron rusts …", …])
    concept.passages("forget")             # training part; split="held_out" or "all" for others
    concept.prompts("expert")              # prompts by which the model itself says what knowing the concept changes
    concept.prompted(transform)            # the same concept, its questions asked through a transformation of prompts

Concepts in files: see `elm_interp.data.loading`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import chain
from typing import Any, TypeVar

from elm_interp.data.questions import Question, question_problems, split_of, with_fact
from elm_interp.data.records import SPLITS, as_row, default_id, short_repr, split_problems
from elm_interp.errors import DataError, check_known, raise_all
from elm_interp.files import hash_of

T = TypeVar("T", "Passage", Question)
Item = TypeVar("Item")
QUESTION_SETS = ("forget", "neighbours", "general")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w-]+(?: (?:of |the )?[A-Z][\w-]+)*")
DEFAULT_EXPERT = ("The author of the following text knows {concept} by heart.\n\n",)
DEFAULT_NOVICE = ("The author of the following text has never heard of {concept}.\n\n",)


@dataclass(frozen=True, repr=False)
class Passage:
    """A piece of text to forget or to keep."""

    text: str
    id: str = ""
    topic: str = ""
    split: str = "train"
    group: str = ""
    """For retain passages: "near" the concept's subjects, or "far" from them."""
    questions: tuple[str, ...] = ()
    """Ids of the questions whose facts the passage states."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(map(str, self.questions)))

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class Concept:
    """What to erase and what to keep.

    Passages may be given as plain texts. Passages and questions without an id get one, such as "forget-0001"; a
    question without a fact is its own.

    Raises:
        DataError: lists every problem: an empty text, a repeated id, a wrong split or question.
        UnknownNameError: a question set of another name.
    """

    name: str
    forget: tuple[Passage, ...]
    retain: tuple[Passage, ...]
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)
    """Question sets by name: "forget", "neighbours", "general"."""
    title: str = ""
    keywords: tuple[str, ...] = ()
    expert: tuple[str, ...] = DEFAULT_EXPERT
    novice: tuple[str, ...] = DEFAULT_NOVICE
    dictionary: dict[str, str] = field(default_factory=dict)
    """Terms of the concept, each with a generic replacement; for methods that translate them."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for kind in ("forget", "retain"):
            object.__setattr__(self, kind, _checked_passages(kind, getattr(self, kind), problems))
        for name in ("keywords", "expert", "novice"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "questions", _checked_questions(self.questions, problems))
        raise_all(problems, DataError, f"the concept {self.name!r} cannot be used:")

    def passages(self, kind: str, split: str = "train") -> list[Passage]:
        """Passages of "forget" or "retain", of one split ("train", "held_out" or "all").

        Raises:
            UnknownNameError: another kind or split.
        """
        check_known("kind of passage", kind, ("forget", "retain"))
        return split_of(getattr(self, kind), split)

    def ask(self, which: str, split: str = "held_out") -> list[Question]:
        """Questions of one set and split; empty if the concept has none.

        Raises:
            UnknownNameError: another set or split.
        """
        check_known("question set", which, QUESTION_SETS)
        return split_of(self.questions.get(which, ()), split)

    def sample(self, n: int) -> "Concept":
        """The first n of every kind, set and split: the same concept, small enough for a quick look."""

        def first(items: Sequence[T]) -> tuple[T, ...]:
            return tuple(item for split in SPLITS for item in split_of(items, split)[:n])

        questions = {name: first(asked) for name, asked in self.questions.items()}
        return replace(self, forget=first(self.forget), retain=first(self.retain), questions=questions)

    def measured_by(self, questions: Mapping[str, Sequence[Question]], passages: int) -> "Concept":
        """The concept with these questions, and at most so many held-out passages of each kind; training ones stay.

        A passage names those of the questions whose facts it states, in whatever wording they are asked.
        """
        asked = {name: tuple(some) for name, some in questions.items()}
        fact_of = {q.id: q.fact for of in self.questions.values() for q in of}
        ids: dict[str, list[str]] = {}
        for question in chain.from_iterable(asked.values()):
            ids.setdefault(question.fact, []).append(question.id)

        def fewer(kind: str) -> tuple[Passage, ...]:
            kept = (*self.passages(kind), *spread(self.passages(kind, "held_out"), passages))
            return tuple(replace(passage, questions=still_asked(passage)) for passage in kept)

        def still_asked(passage: Passage) -> tuple[str, ...]:
            facts = dict.fromkeys(fact_of.get(name, "") for name in passage.questions)
            return tuple(chain.from_iterable(ids.get(fact, []) for fact in facts))

        return replace(self, questions=asked, forget=fewer("forget"), retain=fewer("retain"))

    def prompted(self, transform: Callable[[str], str] | None) -> "Concept":
        """The same concept, whose questions are asked through a transformation of prompts.

        Args:
            transform: from a prompt to the prompt that the model gets; replaces an earlier one. None removes it.
        """
        questions = {name: tuple(replace(q, ask=transform) for q in asked) for name, asked in self.questions.items()}
        return replace(self, questions=questions)

    def prompts(self, role: str) -> list[str]:
        """The "expert" or "novice" prompts, with the keywords filled in.

        Raises:
            UnknownNameError: another role.
        """
        check_known("role", role, ("expert", "novice"))
        concept = ", ".join(self.keywords) or self.title or self.name
        return [template.replace("{concept}", concept) for template in getattr(self, role)]

    def names(self) -> list[str]:
        """Capitalised names inside sentences of the forget passages that no retain passage contains (training part)."""
        kept = "\n".join(passage.text for passage in self.passages("retain")).lower()
        found = [name for p in self.passages("forget") for name in _NAME.findall(p.text)]
        return [name for name in dict.fromkeys(found) if len(name) > 2 and name.lower() not in kept]

    def fingerprint(self) -> str:
        """A hash of the concept's content, for manifests and caches; a transformation of prompts is not part of it."""
        return hash_of(self._content())

    def _content(self) -> dict[str, Any]:
        """All fields as plain data."""
        content = as_row(self) | {"forget": list(map(as_row, self.forget)), "retain": list(map(as_row, self.retain))}
        return content | {"questions": {name: list(map(as_row, asked)) for name, asked in self.questions.items()}}

    def __repr__(self) -> str:
        sets = ", ".join(f"{len(questions)} {name}" for name, questions in self.questions.items())
        passages = f"{len(self.forget)} forget and {len(self.retain)} retain passages"
        return f"{type(self).__name__}({self.name!r}: {passages}; questions: {sets or 'none'})"

    def _repr_html_(self) -> str:
        items = {"forget passages": self.forget, "retain passages": self.retain}
        items |= {f"{name} questions": asked for name, asked in self.questions.items()}  # type: ignore[misc]
        counts = [(name, *(len(split_of(of, split)) for split in SPLITS)) for name, of in items.items()]
        rows = [f"<tr><th>{name}</th><td>{train}</td><td>{held_out}</td></tr>" for name, train, held_out in counts]
        prompts = [(role, prompt) for role in ("expert", "novice") for prompt in self.prompts(role)]
        rows += [f"<tr><th>{role} prompt</th><td colspan='2'>{escape(prompt)}</td></tr>" for role, prompt in prompts]
        head = f"<caption>{escape(repr(self))}</caption><tr><th></th><th>train</th><th>held out</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """At most n of the items, evenly spread."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)


def texts(passages: Sequence[Passage]) -> list[str]:
    """The texts of passages."""
    return [passage.text for passage in passages]


def _checked_passages(kind: str, given: Iterable[Passage | str], problems: list[str]) -> tuple[Passage, ...]:
    if isinstance(given, str):
        problems.append(f"{kind} is one text, expected a list of texts or passages")
        return ()
    found = [Passage(item) if isinstance(item, str) else item for item in given]
    problems += [f"{kind}: passage {i} is empty" for i, passage in enumerate(found) if not passage.text.strip()]
    return _with_ids(kind, found, problems)


def _checked_questions(given: Mapping[str, Iterable[Question]], problems: list[str]) -> dict[str, tuple[Question, ...]]:
    checked = {}
    for name, asked in given.items():
        check_known("question set", name, QUESTION_SETS)
        found = [with_fact(question) for question in asked]
        problems += [f"{name}: {question!r}: {p}" for question in found for p in question_problems(vars(question))]
        checked[name] = _with_ids(name, found, problems)
    return checked


def _with_ids(kind: str, items: Sequence[T], problems: list[str]) -> tuple[T, ...]:
    named = tuple(item if item.id else replace(item, id=default_id(kind, i)) for i, item in enumerate(items))
    counts = Counter(item.id for item in named)
    problems += [f"{kind}: id {name!r} is used {n} times, expected once" for name, n in counts.items() if n > 1]
    problems += [f"{kind}: {item.id!r}: {problem}" for item in named for problem in split_problems(item.split)]
    return named

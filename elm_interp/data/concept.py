"""A concept: what to erase, what to keep, and the questions that tell whether either happened.

A concept is a folder:

    concept.json             {"name": ..., "title": ..., "keywords": [...], "expert": [...], "novice": [...]}; optional
                             also anchors: {term: what may stand in its place}
    forget.jsonl             {"text": ...} one passage a line; optional: id, topic, split, questions (ids it answers)
    retain.jsonl             {"text": ...}; optional also group ("near" or "far" from the concept)
    questions/forget.jsonl   see `elm_interp.data.questions`
    questions/neighbours.jsonl, questions/general.jsonl    optional

`expert` and `novice` are prompts set before a text, with `{concept}` where the keywords go: by them the model itself says
which tokens knowledge of the concept makes likelier. Keep content words out of them: a strong eraser echoes them.
`split` is "train" (the default for passages) or "held_out".

Instead of its own general questions a concept may ask those of a pack, but for some topics or ids, by a line in concept.json:

    "general": {"from": "harry-potter", "without": ["astronomy", "gen-006"]}
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from pkgutil import resolve_name
from typing import TypeVar

from elm_interp.data.questions import Question, parse_questions, split_of
from elm_interp.data.records import SPLITS, check_fields, read_rows
from elm_interp.errors import DataError, UnknownNameError, closest, raise_all, unknown

T = TypeVar("T", "Passage", Question)
PACKS = Path(__file__).parent / "packs"
SOURCES = {"organism": "elm_interp.organisms:concept"}
"""What may stand before a colon -> "module:function", which makes a concept of what stands after it."""
QUESTION_SETS = ("forget", "neighbours", "general")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w-]+(?: (?:of |the )?[A-Z][\w-]+)*")
DEFAULT_EXPERT = ("The author of the following text knows {concept} by heart.\n\n",)
DEFAULT_NOVICE = ("The author of the following text has never heard of {concept}.\n\n",)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Concept:
    """What to erase and what to keep; `load_concept` reads and checks one."""

    name: str
    forget: tuple[Passage, ...]
    retain: tuple[Passage, ...]
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)
    """Question sets by name: "forget", "neighbours", "general"."""
    title: str = ""
    keywords: tuple[str, ...] = ()
    expert: tuple[str, ...] = DEFAULT_EXPERT
    novice: tuple[str, ...] = DEFAULT_NOVICE
    anchors: dict[str, str] = field(default_factory=dict)
    """Terms of the concept's own, and what may stand in their place; for methods that translate them."""

    def passages(self, kind: str, split: str = "train") -> list[Passage]:
        """Passages of "forget" or "retain", of one split ("train", "held_out" or "all").

        Raises:
            UnknownNameError: another kind or split.
        """
        if kind not in ("forget", "retain"):
            raise unknown("kind of passage", kind, ("forget", "retain"))
        return split_of(self.forget if kind == "forget" else self.retain, split)

    def ask(self, which: str, split: str = "held_out") -> list[Question]:
        """Questions of one set and split; empty where the concept has none.

        Raises:
            UnknownNameError: another set or split.
        """
        if which not in QUESTION_SETS:
            raise unknown("question set", which, QUESTION_SETS)
        return split_of(self.questions.get(which, ()), split)

    def sample(self, n: int) -> "Concept":
        """The first n of every kind, set and split: the same concept, small enough for a quick look."""

        def first(items: Sequence[T]) -> tuple[T, ...]:
            return tuple(item for split in SPLITS for item in split_of(items, split)[:n])

        questions = {name: first(asked) for name, asked in self.questions.items()}
        return replace(self, forget=first(self.forget), retain=first(self.retain), questions=questions)

    def prompted(self, transform: Callable[[str], str]) -> "Concept":
        """The concept with its questions asked through a transformation of the prompt."""
        asked = {name: tuple(replace(q, transform=transform) for q in some) for name, some in self.questions.items()}
        return replace(self, questions=asked)

    def prompts(self, role: str) -> list[str]:
        """The "expert" or "novice" prompts, with the keywords filled in.

        Raises:
            UnknownNameError: another role.
        """
        if role not in ("expert", "novice"):
            raise unknown("role", role, ("expert", "novice"))
        concept = ", ".join(self.keywords) or self.title or self.name
        return [
            template.replace("{concept}", concept) for template in (self.expert if role == "expert" else self.novice)
        ]

    def names(self) -> list[str]:
        """Capitalised names inside sentences of the forget passages (training part) that no retain passage holds."""
        kept = "\n".join(passage.text for passage in self.passages("retain")).lower()
        found = [name for p in self.passages("forget") for name in _NAME.findall(p.text)]
        return [name for name in dict.fromkeys(found) if len(name) > 2 and name.lower() not in kept]

    def fingerprint(self) -> str:
        """A hash of everything that the concept says, for manifests and caches."""
        return sha256(repr(self).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        sets = ", ".join(f"{len(questions)} {name}" for name, questions in self.questions.items())
        return f"Concept({self.name!r}: {len(self.forget)} forget and {len(self.retain)} retain passages; questions: {sets or 'none'})"

    def _repr_html_(self) -> str:
        return f"<code>{self}</code>"


def packs() -> list[str]:
    """Names of the concepts that come with elm_interp."""
    return sorted(path.parent.name for path in PACKS.glob("*/concept.json"))


def load_concept(name: str | Path) -> Concept:
    """Read a concept by the name of a pack or from a folder, checked whole; or make one, such as "organism:spellcraft".

    Several joined, such as "harry-potter=5+astronomy=1", are a mixture in that ratio (see `mix_concepts`).

    Raises:
        ConfigError: a mixture that makes no sense.
        UnknownNameError: neither a pack nor a folder; with the closest pack.
        DataError: lists every problem of every file, with line numbers.
    """
    if "+" in str(name) and not Path(name).expanduser().exists():
        from elm_interp.data.mixture import load_mixture  # built on this file

        return load_mixture(str(name), load_concept)
    prefix, _, rest = str(name).partition(":")
    if rest and prefix in SOURCES:
        return resolve_name(SOURCES[prefix])(rest)
    folder = Path(name).expanduser()
    if str(name) in packs():
        folder = PACKS / str(name)
    elif not folder.is_dir():
        raise UnknownNameError(
            f"unknown concept {str(name)!r}: no pack and no folder.{closest(str(name), packs())} Known packs: {', '.join(packs())}."
        )
    problems: list[str] = []
    head = _head(folder, problems)
    forget = _passages(folder / "forget.jsonl", problems)
    retain = _passages(folder / "retain.jsonl", problems)
    for kind, passages in (("forget", forget), ("retain", retain)):
        if not passages and not problems:
            problems.append(f"{folder / kind}.jsonl: holds no passage; at least one is needed")
    files = sorted((folder / "questions").glob("*.jsonl"))
    for file in files:
        if file.stem not in QUESTION_SETS:
            problems.append(
                f"{file}: unknown question set.{closest(file.stem, QUESTION_SETS)} Known: {', '.join(QUESTION_SETS)}"
            )
    questions = {file.stem: tuple(parse_questions(file, problems)) for file in files}
    if (lender := head.pop("general", None)) is not None:
        if "general" in questions:
            problems.append(
                f"{folder / 'concept.json'}: 'general' is given, but {folder / 'questions/general.jsonl'} exists; keep one"
            )
        questions["general"] = _borrowed(folder / "concept.json", lender, problems)
    raise_all(problems, DataError, f"the concept in {folder} cannot be used:")
    ordered = {name: questions[name] for name in QUESTION_SETS if name in questions}
    return Concept(forget=tuple(forget), retain=tuple(retain), questions=ordered, **head)


def _head(folder: Path, problems: list[str]) -> dict:
    path = folder / "concept.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw, dict):
            raise ValueError(f"found {type(raw).__name__}, expected an object")
    except FileNotFoundError:
        problems.append(f'{path}: no such file; expected at least {{"name": "..."}}')
        return {"name": folder.name}
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return {"name": folder.name}
    lists = ("keywords", "expert", "novice")
    known = ("name", "title", *lists, "anchors", "general", "licence", "source")
    problems += [
        f"{path}: unknown field {key!r}.{closest(key, known)} Known: {', '.join(known)}"
        for key in raw
        if key not in known
    ]
    objects = dict.fromkeys(("general", "anchors"), dict)
    check_fields(str(path), raw, {"name": str}, {"title": str, **objects, **dict.fromkeys(lists, list)}, problems)
    anchors = raw["anchors"] if isinstance(raw.get("anchors"), dict) else {}
    problems += [
        f"{path}: 'anchors' maps {term!r} to {generic!r}; expected two texts"
        for term, generic in anchors.items()
        if not (term.strip() and isinstance(generic, str) and generic.strip())
    ]
    for key in lists:
        values = raw.get(key)
        if isinstance(values, list) and not all(isinstance(value, str) and value.strip() for value in values):
            problems.append(f"{path}: {key!r} holds something that is not text")
        if key != "keywords" and values == []:
            problems.append(f"{path}: {key!r} is empty; leave it out for the default, or give a prompt")
    head: dict = {key: tuple(map(str, raw[key])) for key in lists if isinstance(raw.get(key), list)}
    if isinstance(raw.get("general"), dict):
        head["general"] = raw["general"]
    title = str(raw.get("title", ""))
    return {"name": str(raw.get("name", folder.name)), "title": title, "anchors": anchors, **head}


def _borrowed(path: Path, lender: dict, problems: list[str]) -> tuple[Question, ...]:
    """The general questions of the pack that `lender` names, but for the topics and ids that it leaves out."""
    before = len(problems)
    problems += [
        f"{path}: unknown field {key!r} in 'general'; known: from, without"
        for key in lender
        if key not in ("from", "without")
    ]
    lenders = sorted(file.parent.parent.name for file in PACKS.glob("*/questions/general.jsonl"))
    name, without = lender.get("from"), lender.get("without", [])
    if name not in lenders:
        problems.append(
            f"{path}: no pack {name!r} to borrow from.{closest(str(name), lenders)} Known: {', '.join(lenders)}"
        )
    if not (isinstance(without, list) and all(isinstance(label, str) for label in without)):
        problems.append(f"{path}: 'without' is {without!r}, expected a list of topics and ids")
    if len(problems) > before:
        return ()
    asked = parse_questions(PACKS / str(name) / "questions" / "general.jsonl", problems)
    there = {label for q in asked for label in (q.topic, q.id)}
    problems += [
        f"{path}: 'without' holds {label!r}, which is no topic or id of {name}"
        for label in without
        if label not in there
    ]
    return tuple(q for q in asked if q.topic not in without and q.id not in without)


def _passages(path: Path, problems: list[str]) -> list[Passage]:
    found: list[Passage] = []
    ids: dict[str, str] = {}
    optional = {"id": str, "topic": str, "split": str, "group": str, "questions": list}
    for where, row in read_rows(path, problems):
        if not check_fields(where, row, {"text": str}, optional, problems):
            continue
        if not row["text"].strip():
            problems.append(f"{where}: the text is empty")
        name = row.get("id") or f"{path.stem}-{len(found) + 1:04d}"
        if name in ids:
            problems.append(f"{where}: id {name!r} is taken by {ids[name]}")
        ids[name] = where
        kept = {key: row[key] for key in ("topic", "split", "group") if row.get(key) is not None}
        found.append(Passage(row["text"], name, questions=tuple(map(str, row.get("questions") or ())), **kept))
    return found


def texts(passages: Sequence[Passage]) -> list[str]:
    """The texts of passages."""
    return [passage.text for passage in passages]

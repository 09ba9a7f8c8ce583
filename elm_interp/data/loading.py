"""Loading and writing concepts: packs of elm_interp, folders of JSON Lines, mixtures, and sources named by a prefix.

    load_concept("harry-potter")                     # a pack
    load_concept("path/to/folder")                   # the files below
    load_concept("harry-potter=5+astronomy=1")       # a mixture, see `mix_concepts`
    load_concept("organism:spellcraft")              # a source that `concept_source` declares
    write_concept(concept, "path/to/folder")

A folder holds

    concept.json             {"name": ..., "title": ..., "keywords": [...], "expert": [...], "novice": [...]}; optional
                             also dictionary: {term: generic replacement}
    forget.jsonl             {"text": ...} one passage a line; optional: id, topic, split, questions (ids it answers)
    retain.jsonl             {"text": ...}; optional also group ("near" or "far" from the concept)
    questions/forget.jsonl   see `elm_interp.data.questions`
    questions/neighbours.jsonl, questions/general.jsonl    optional

`expert` and `novice` are prompts before a text, with `{concept}` in place of the keywords. The model itself then shows
which tokens are likelier for a reader who knows the concept. Keep content words out of them: a strong eraser repeats
them. `split` is "train" (the default for passages) or "held_out".

A concept may borrow its general questions from a pack, without some topics or ids, by a line in concept.json:

    "general": {"from": "harry-potter", "without": ["astronomy", "gen-006"]}
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elm_interp.data.concept import QUESTION_SETS, Concept, Passage
from elm_interp.data.mixture import Mixture, mix_concepts
from elm_interp.data.questions import Question, parse_questions
from elm_interp.data.records import as_row, check_fields, read_records
from elm_interp.errors import ConfigError, DataError, UnknownNameError, closest, raise_all
from elm_interp.files import write_json, write_text
from elm_interp.registry import CONCEPT_SOURCES

PACKS = Path(__file__).parent / "packs"
_LISTS = ("keywords", "expert", "novice")
_LOAN = ("from", "without")
_TEXTS, _OBJECTS = ("name", "title"), ("dictionary", "anchors", "general")
_FIELDS = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_LISTS, list), **dict.fromkeys(_OBJECTS, dict)}
"""Fields of concept.json; "anchors" is the dictionary's name in older folders."""
Source = Callable[[str], Concept]


def concept_source(prefix: str) -> Callable[[Source], Source]:
    """Declare the function that makes a concept from what follows "prefix:" in a concept's name.

    Raises:
        ConfigError: the prefix is taken.
    """

    def declare(source: Source) -> Source:
        CONCEPT_SOURCES.add(prefix, source)
        return source

    return declare


def packs() -> list[str]:
    """Names of the concepts that come with elm_interp."""
    return sorted(path.parent.name for path in PACKS.glob("*/concept.json"))


def load_concept(name: str | Path) -> Concept:
    """Read and check a concept.

    Args:
        name: a pack, a folder, a name with the prefix of a source, such as "organism:spellcraft", or several of these
            joined to a mixture, such as "harry-potter=5+astronomy=1".

    Raises:
        ConfigError: a mixture that cannot be made.
        UnknownNameError: no such pack, folder or source; with the closest pack.
        DataError: lists every problem of every file, with line numbers.
    """
    if "+" in str(name) and not Path(name).expanduser().exists():
        return _load_mixture(str(name))
    prefix, _, rest = str(name).partition(":")
    if rest and prefix in CONCEPT_SOURCES:
        concept: Concept = CONCEPT_SOURCES[prefix](rest)
        return concept
    if str(name) in packs():
        return _load_folder(PACKS / str(name))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UnknownNameError(
            f"unknown concept {str(name)!r}: no pack and no folder.{closest(str(name), packs())} "
            f"Known packs: {', '.join(packs())}. Known sources: {', '.join(f'{s}:…' for s in CONCEPT_SOURCES)}."
        )
    return _load_folder(folder)


def write_concept(concept: Concept, folder: str | Path) -> Path:
    """Write a concept as a folder that `load_concept` reads back as an equal concept.

    Args:
        concept: not a mixture, whose parts have lost what the others erase: write the concepts before mixing them.
        folder: made if it does not exist; files of the same names are replaced.

    Returns:
        The folder.

    Raises:
        DataError: a mixture, or a concept without forget or retain passages.
    """
    folder = Path(folder).expanduser()
    if isinstance(concept, Mixture):
        raise DataError(f"{concept.name} is a mixture, which has no folder of its own; write its concepts one by one.")
    items = {"forget": concept.forget, "retain": concept.retain}
    if empty := [kind for kind, passages in items.items() if not passages]:
        raise DataError(f"{concept.name} has no {empty[0]} passage; at least one is needed.")
    head = {key: getattr(concept, key) for key in ("name", "title", *_LISTS, "dictionary")}
    write_json(folder / "concept.json", head)
    for stem, rows in {**items, **{f"questions/{name}": asked for name, asked in concept.questions.items()}}.items():
        lines = [json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / f"{stem}.jsonl", "".join(lines))
    for name in set(QUESTION_SETS) - set(concept.questions):  # of a concept that was here before
        (folder / "questions" / f"{name}.jsonl").unlink(missing_ok=True)
    return folder


def _load_mixture(name: str) -> Mixture:
    """The mixture behind "a=5+b=1"; a part without a number counts once.

    Raises:
        ConfigError: a share that is no whole number from 1, or one concept twice.
    """
    parts = []
    for piece in name.split("+"):
        if not (found := re.fullmatch(r"([^=]+)(?:=([1-9]\d*))?", piece)):
            raise ConfigError(
                f"concept {name!r} has a part {piece!r}; expected names joined by +, "
                "each with or without a whole number of samples, such as a=5+b."
            )
        parts.append((found[1], int(found[2] or 1)))
    return mix_concepts([load_concept(part) for part, _ in parts], [share for _, share in parts])


def _load_folder(folder: Path) -> Concept:
    problems: list[str] = []
    head = _head(folder, problems)
    passages = {kind: _passages(folder / f"{kind}.jsonl", problems) for kind in ("forget", "retain")}
    empty = [folder / f"{kind}.jsonl" for kind, found in passages.items() if not found and not problems]
    problems += [f"{path}: holds no passage; at least one is needed" for path in empty]
    questions = {}
    for file in sorted((folder / "questions").glob("*.jsonl")):
        if file.stem not in QUESTION_SETS:
            hint = closest(file.stem, QUESTION_SETS)
            problems.append(f"{file}: unknown question set.{hint} Known: {', '.join(QUESTION_SETS)}")
        questions[file.stem] = parse_questions(file, problems)
    if (loan := head.pop("general", None)) is not None:
        path, own = folder / "concept.json", folder / "questions" / "general.jsonl"
        if "general" in questions:
            problems.append(f"{path}: 'general' is given, but {own} exists; keep one")
        questions["general"] = _borrowed(path, loan, problems)
    raise_all(problems, DataError, f"the concept in {folder} cannot be used:")
    ordered = {name: questions[name] for name in QUESTION_SETS if name in questions}
    return Concept(forget=passages["forget"], retain=passages["retain"], questions=ordered, **head)


def _head(folder: Path, problems: list[str]) -> dict[str, Any]:
    """The fields of concept.json, as arguments of `Concept`, and "general" if it is there."""
    path = folder / "concept.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw, dict):
            raise ValueError(f"found {type(raw).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        absent = 'no such file; expected at least {"name": "..."}'
        problems.append(f"{path}: {absent if isinstance(error, FileNotFoundError) else error}")
        return {"name": folder.name}
    known = (*_FIELDS, "licence", "source")
    strange = [f"unknown field {key!r}.{closest(key, known)}" for key in raw if key not in known]
    problems += [f"{path}: {fault} Known: {', '.join(known)}" for fault in strange]
    check_fields(str(path), raw, {"name": str}, _FIELDS, problems)
    head = {key: raw[key] for key, kind in _FIELDS.items() if isinstance(raw.get(key), kind)}
    for key in head.keys() & _LISTS:
        if not all(isinstance(value, str) and value.strip() for value in head[key]):
            problems.append(f"{path}: {key!r} holds something that is not text")
        if key != "keywords" and not head[key]:
            problems.append(f"{path}: {key!r} is empty; leave it out for the default, or give a prompt")
    if "anchors" in raw and "dictionary" in raw:
        problems.append(f"{path}: 'dictionary' and 'anchors', its old name, are both given; keep 'dictionary'")
    if "anchors" in head:
        head.setdefault("dictionary", head.pop("anchors"))
    problems += [
        f"{path}: 'dictionary' maps {term!r} to {generic!r}; expected two texts"
        for term, generic in head.get("dictionary", {}).items()
        if not (term.strip() and isinstance(generic, str) and generic.strip())
    ]
    return {"name": folder.name, **head}


def _borrowed(path: Path, loan: dict[str, Any], problems: list[str]) -> tuple[Question, ...]:
    """The general questions of another pack, without the topics and ids that the loan leaves out."""
    wrong = [f"unknown field {key!r} in 'general'; known: from, without" for key in loan if key not in _LOAN]
    lenders = sorted(file.parent.parent.name for file in PACKS.glob("*/questions/general.jsonl"))
    name, without = loan.get("from"), loan.get("without", [])
    if name not in lenders:
        wrong.append(f"no pack {name!r} to borrow from.{closest(str(name), lenders)} Known: {', '.join(lenders)}")
    if not (isinstance(without, list) and all(isinstance(label, str) for label in without)):
        wrong.append(f"'without' is {without!r}, expected a list of topics and ids")
    if not wrong:
        asked = parse_questions(PACKS / str(name) / "questions" / "general.jsonl", problems)
        known = {label for q in asked for label in (q.topic, q.id)}
        strange = [label for label in without if label not in known]
        wrong = [f"'without' holds {label!r}, which is no topic or id of {name}" for label in strange]
    problems += [f"{path}: {fault}" for fault in wrong]
    return () if wrong else tuple(q for q in asked if q.topic not in without and q.id not in without)


def _passages(path: Path, problems: list[str]) -> tuple[Passage, ...]:
    optional = {"id": str, "topic": str, "split": str, "group": str, "questions": list}

    def faults(row: dict[str, Any]) -> list[str]:
        return [] if row["text"].strip() else ["the text is empty"]

    return read_records(Passage, path, ({"text": str}, optional), faults, problems)

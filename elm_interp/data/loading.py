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
from elm_interp.data.questions import Question, default_id, parse_questions
from elm_interp.data.records import as_row, check_fields, read_rows
from elm_interp.errors import ConfigError, DataError, UnknownNameError, closest, raise_all
from elm_interp.files import write_json, write_text
from elm_interp.registry import CONCEPT_SOURCES

PACKS = Path(__file__).parent / "packs"
_LISTS = ("keywords", "expert", "novice")
_DICTIONARY = ("dictionary", "anchors")
"""Names of the field; the second is of older folders."""
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
        made: Concept = CONCEPT_SOURCES[prefix](rest)
        return made
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
    pieces = [re.fullmatch(r"(.+?)(?:=([1-9]\d*))?", piece) for piece in name.split("+")]
    wrong = [part for part, found in zip(name.split("+"), pieces, strict=True) if not found or "=" in found[1]]
    if wrong:
        raise ConfigError(
            f"concept {name!r} has a part {wrong[0]!r}; expected names joined by +, "
            "each with or without a whole number of samples, such as a=5+b."
        )
    return mix_concepts(
        [load_concept(found[1]) for found in pieces if found], [int(found[2] or 1) for found in pieces if found]
    )


def _load_folder(folder: Path) -> Concept:
    problems: list[str] = []
    head = _head(folder, problems)
    passages = {kind: _passages(folder / f"{kind}.jsonl", problems) for kind in ("forget", "retain")}
    problems += [
        f"{folder / kind}.jsonl: holds no passage; at least one is needed"
        for kind, found in passages.items()
        if not found and not problems
    ]
    questions = {}
    for file in sorted((folder / "questions").glob("*.jsonl")):
        if file.stem not in QUESTION_SETS:
            hint = closest(file.stem, QUESTION_SETS)
            problems.append(f"{file}: unknown question set.{hint} Known: {', '.join(QUESTION_SETS)}")
        questions[file.stem] = tuple(parse_questions(file, problems))
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
    except FileNotFoundError:
        problems.append(f'{path}: no such file; expected at least {{"name": "..."}}')
        return {"name": folder.name}
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return {"name": folder.name}
    known = ("name", "title", *_LISTS, *_DICTIONARY, "general", "licence", "source")
    problems += [
        f"{path}: unknown field {key!r}.{closest(key, known)} Known: {', '.join(known)}"
        for key in raw
        if key not in known
    ]
    objects = dict.fromkeys((*_DICTIONARY, "general"), dict)
    check_fields(str(path), raw, {"name": str}, {"title": str, **objects, **dict.fromkeys(_LISTS, list)}, problems)
    head: dict[str, Any] = {"name": str(raw.get("name", folder.name)), "title": str(raw.get("title", ""))}
    head |= {key: _prompts(path, key, raw[key], problems) for key in _LISTS if isinstance(raw.get(key), list)}
    terms = raw.get("dictionary", raw.get("anchors"))
    head |= {"dictionary": _dictionary(path, terms, problems)} if isinstance(terms, dict) else {}
    if all(key in raw for key in _DICTIONARY):
        problems.append(f"{path}: 'dictionary' and 'anchors', its old name, are both given; keep 'dictionary'")
    return head | ({"general": raw["general"]} if isinstance(raw.get("general"), dict) else {})


def _prompts(path: Path, key: str, values: list[Any], problems: list[str]) -> tuple[str, ...]:
    if not all(isinstance(value, str) and value.strip() for value in values):
        problems.append(f"{path}: {key!r} holds something that is not text")
    if key != "keywords" and not values:
        problems.append(f"{path}: {key!r} is empty; leave it out for the default, or give a prompt")
    return tuple(map(str, values))


def _dictionary(path: Path, terms: dict[str, Any], problems: list[str]) -> dict[str, str]:
    problems += [
        f"{path}: 'dictionary' maps {term!r} to {generic!r}; expected two texts"
        for term, generic in terms.items()
        if not (term.strip() and isinstance(generic, str) and generic.strip())
    ]
    return terms


def _borrowed(path: Path, loan: dict[str, Any], problems: list[str]) -> tuple[Question, ...]:
    """The general questions of another pack, without the topics and ids that the loan leaves out."""
    before = len(problems)
    problems += [
        f"{path}: unknown field {key!r} in 'general'; known: from, without"
        for key in loan
        if key not in ("from", "without")
    ]
    lenders = sorted(file.parent.parent.name for file in PACKS.glob("*/questions/general.jsonl"))
    name, without = loan.get("from"), loan.get("without", [])
    if name not in lenders:
        hint = closest(str(name), lenders)
        problems.append(f"{path}: no pack {name!r} to borrow from.{hint} Known: {', '.join(lenders)}")
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


def _passages(path: Path, problems: list[str]) -> tuple[Passage, ...]:
    found: list[Passage] = []
    ids: dict[str, str] = {}
    optional = {"id": str, "topic": str, "split": str, "group": str, "questions": list}
    for where, row in read_rows(path, problems):
        if not check_fields(where, row, {"text": str}, optional, problems):
            continue
        if not row["text"].strip():
            problems.append(f"{where}: the text is empty")
        name = row.get("id") or default_id(path.stem, len(found))
        if name in ids:
            problems.append(f"{where}: id {name!r} is taken by {ids[name]}")
        ids[name] = where
        kept = {key: row[key] for key in ("topic", "split", "group") if row.get(key) is not None}
        found.append(Passage(row["text"], name, questions=tuple(map(str, row.get("questions") or ())), **kept))
    return tuple(found)

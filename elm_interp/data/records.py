"""JSON Lines records: reading them, checking their fields, and showing and saving the dataclasses made of them.

Readers collect every problem of every file, so that one error can list them all.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from elm_interp.errors import closest

SPLITS = ("train", "held_out")
_SHOWN = 60
"""Characters of a text that a repr shows."""


def read_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file (or of a file that holds one JSON list), each with its location.

    Broken lines are left out and added to `problems` as "file:line: what was found, what was expected".
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors start a file with a byte order mark
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
        return
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error})")
        return
    if text.lstrip().startswith("["):
        yield from _list_rows(path, text, problems)
        return
    # not splitlines(), which also splits at characters such as U+2028 that a JSON string may contain
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: not JSON ({error.msg} at column {error.colno}); expected one object a line")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            problems.append(f"{where}: found {type(row).__name__}, expected an object")


def _list_rows(path: Path, text: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{error.msg} at column {error.colno}"
        problems.append(f"{path}:{error.lineno}: not JSON ({place}); expected a list of objects")
        return
    except RecursionError:
        problems.append(f"{path}: lists are nested too deeply; expected a list of objects")
        return
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield f"{path}: item {number}", row
        else:
            problems.append(f"{path}: item {number}: found {type(row).__name__}, expected an object")


def check_fields(
    where: str, row: dict[str, Any], required: Mapping[str, type], optional: Mapping[str, type], problems: list[str]
) -> bool:
    """Whether all required fields are there and all known fields have the right types; faults go to `problems`."""
    before = len(problems)
    for field, kind in required.items():
        if field not in row:
            problems.append(f"{where}: lacks {field!r}, found {', '.join(map(repr, row)) or 'nothing'}")
        elif row[field] is None:
            problems.append(f"{where}: {field!r} is null, expected {kind.__name__}")
    for field, kind in {**required, **optional}.items():
        value = row.get(field)
        if isinstance(value, str | list) and not _is_text(value):
            problems.append(f"{where}: {field!r} holds half of a surrogate pair; expected the whole character")
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            problems.append(f"{where}: {field!r} is {type(value).__name__}, expected {kind.__name__}")
    absent = [field for field in (*required, *optional) if field not in row]
    for field in sorted(row.keys() - required.keys() - optional.keys()):
        # users may add fields of their own, but a name this close to a known one is a spelling mistake
        if difflib.get_close_matches(field, absent, n=1, cutoff=0.8):
            problems.append(f"{where}: unknown field {field!r}.{closest(field, absent)}")
    if (split := row.get("split")) is not None:
        problems += [f"{where}: {problem}" for problem in split_problems(split)]
    return len(problems) == before


def split_problems(split: Any) -> list[str]:
    """What is wrong with the name of a split; empty if nothing is."""
    if split in SPLITS:
        return []
    return [f"split is {split!r}, expected one of {', '.join(SPLITS)}.{closest(str(split), SPLITS)}"]


def as_row(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that take part in comparison, without empty ones: its row in a JSON Lines file."""
    row = {field.name: getattr(record, field.name) for field in fields(record) if field.compare}
    return {name: value for name, value in row.items() if value not in (None, "", ())}


def short_repr(record: Any) -> str:
    """A dataclass on one line: long texts are cut, empty fields are left out."""

    def shown(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(shown, value))
        return f"{value[:_SHOWN]}…" if isinstance(value, str) and len(value) > _SHOWN else value

    return f"{type(record).__name__}({', '.join(f'{name}={shown(v)!r}' for name, v in as_row(record).items())})"


def _is_text(value: str | list[Any]) -> bool:
    try:
        "".join(map(str, value)).encode()
    except UnicodeEncodeError:
        return False
    return True

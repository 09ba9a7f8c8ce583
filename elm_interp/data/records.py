"""JSON Lines records: reading them, checking their fields, and showing and saving the dataclasses made of them.

Readers collect every problem of every file, so that one error can list them all.
"""

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from elm_interp.errors import closest
from elm_interp.files import HALF_CHARACTER

T = TypeVar("T")
SPLITS = ("train", "held_out")
_SHOWN = 60
"""Characters of a text that a repr shows."""


def read_utf8(path: Path, problems: list[str]) -> str | None:
    """The text of a file, with its own line ends; None if it cannot be read, which goes to `problems`."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors start a file with a byte order mark
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error})")
    return None


def read_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file (or of a file that holds one JSON list), each with its location.

    Broken lines are left out and added to `problems` as "file:line: what was found, what was expected".
    """
    text = read_utf8(path, problems)
    if text is None:
        return
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    listed = text.lstrip().startswith("[")
    # not splitlines(), which also splits at characters such as U+2028 that a JSON string may contain
    for number, piece in enumerate([text] if listed else text.split("\n"), 1):
        if not piece.strip():
            continue
        expected = "a list of objects" if listed else "one object a line"
        try:
            found = json.loads(piece)
        except json.JSONDecodeError as error:
            line, place = error.lineno if listed else number, f"{error.msg} at column {error.colno}"
            problems.append(f"{path}:{line}: not JSON ({place}); expected {expected}")
            continue
        except (ValueError, RecursionError) as error:  # too many digits, or too deep
            problems.append(f"{path}:{number}: cannot be read as JSON ({error}); expected {expected}")
            continue
        for item, row in enumerate(found if listed else [found], 1):
            where = f"{path}: item {item}" if listed else f"{path}:{number}"
            if isinstance(row, dict):
                yield where, row
            else:
                problems.append(f"{where}: found {type(row).__name__}, expected an object")


def read_records(
    make: Callable[..., T],
    path: Path,
    fields: tuple[Mapping[str, type], Mapping[str, type]],
    faults: Callable[[dict[str, Any]], list[str]],
    problems: list[str],
) -> tuple[T, ...]:
    """Make a record of each row of a file; what cannot be used is left out and told in `problems`.

    Args:
        make: the class of the records, which have an id.
        path: the file.
        fields: names and types of the required and of the optional fields; null stands for an optional one's default.
        faults: what is wrong with a row whose fields have the right types.
        problems: gets what is wrong, with file and line.
    """
    found: list[T] = []
    ids: dict[str, str] = {}
    for where, row in read_rows(path, problems):
        if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
            row["id"] = str(row["id"])
        if not check_fields(where, row, *fields, problems):
            continue
        problems += [f"{where}: {fault}" for fault in faults(row)]
        name = row.get("id") or default_id(path.stem, len(found))
        if name in ids:
            problems.append(f"{where}: id {name!r} is taken by {ids[name]}")
        ids[name] = where
        known = {key: row[key] for kind in fields for key in kind if row.get(key) is not None}
        found.append(make(**known | {"id": name}))
    return tuple(found)


def check_fields(
    where: str,
    row: dict[str, Any],
    required: Mapping[str, type],
    optional: Mapping[str, type],
    problems: list[str],
    *,
    spelling: bool = True,
) -> bool:
    """Whether all required fields are there and all known fields have the right types; faults go to `problems`.

    With `spelling`, an unknown field whose name is close to one that is absent is a fault too.
    """
    before = len(problems)
    known = {**required, **optional}
    absent = [field for field in known if field not in row]
    holds = ", ".join(map(repr, row)) or "nothing"
    problems += [f"{where}: lacks {field!r}, found {holds}" for field in absent if field in required]
    for field, value in row.items():
        if field in known and (value is not None or field in required):
            said = value if isinstance(value, list) else [value]
            if HALF_CHARACTER.search("".join(item for item in said if isinstance(item, str))):
                problems.append(f"{where}: {field!r} holds half of a surrogate pair; expected the whole character")
            if not isinstance(value, known[field]) or isinstance(value, bool):
                found = "null" if value is None else type(value).__name__
                problems.append(f"{where}: {field!r} is {found}, expected {known[field].__name__}")
        # users may add fields of their own, but a name this close to a known one is a spelling mistake
        elif spelling and field not in known and difflib.get_close_matches(field, absent, n=1, cutoff=0.8):
            problems.append(f"{where}: unknown field {field!r}.{closest(field, absent)}")
    if (split := row.get("split")) is not None:
        problems += [f"{where}: {problem}" for problem in split_problems(split)]
    return len(problems) == before


def split_problems(split: Any) -> list[str]:
    """What is wrong with the name of a split; empty if nothing is."""
    if split in SPLITS:
        return []
    return [f"split is {split!r}, expected one of {', '.join(SPLITS)}.{closest(str(split), SPLITS)}"]


def same_text(text: str) -> str:
    """The form in which texts are compared: without space around it, in Unicode's composed form (NFC), case kept."""
    return unicodedata.normalize("NFC", text).strip()


def default_id(kind: str, index: int) -> str:
    """The id of an item that was given none, such as "forget-0001" for the first."""
    return f"{kind}-{index + 1:04d}"


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

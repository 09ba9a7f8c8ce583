"""Reading JSON Lines into checked records: every problem of every file is collected, then raised once."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elm_interp.errors import closest

SPLITS = ("train", "held_out")


def read_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file (or of a file that is one JSON list), each with where it stands.

    Broken lines are added to `problems` as "file:line: what was found, what was expected" and left out.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a mark at the start
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
        return
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error})")
        return
    if text.lstrip().startswith("["):
        yield from _list_rows(path, text, problems)
        return
    # not splitlines(), which also breaks at characters such as U+2028 that may stand inside a JSON string
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
        problems.append(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); expected a list of objects"
        )
        return
    except RecursionError:
        problems.append(f"{path}: lists within lists without end; expected a list of objects")
        return
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield f"{path}: item {number}", row
        else:
            problems.append(f"{path}: item {number}: found {type(row).__name__}, expected an object")


def _is_text(value: str | list) -> bool:
    try:
        "".join(map(str, value)).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_fields(
    where: str, row: dict[str, Any], required: Mapping[str, type], optional: Mapping[str, type], problems: list[str]
) -> bool:
    """Whether the fields that are needed are there with the right types; what is wrong goes to `problems`."""
    before = len(problems)
    for field, kind in required.items():
        if field not in row:
            problems.append(f"{where}: lacks {field!r}, found {', '.join(map(repr, row)) or 'nothing'}")
        elif row[field] is None:
            problems.append(f"{where}: {field!r} is null, expected {kind.__name__}")
    for field, kind in {**required, **optional}.items():
        value = row.get(field)
        if isinstance(value, str | list) and not _is_text(value):
            problems.append(
                f"{where}: {field!r} holds half of a surrogate pair, which is no text; write the whole character"
            )
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            problems.append(f"{where}: {field!r} is {type(value).__name__}, expected {kind.__name__}")
    absent = [field for field in (*required, *optional) if field not in row]
    for field in sorted(row.keys() - required.keys() - optional.keys()):
        # other fields are the user's own; one that is nearly a known one was meant to be it
        if difflib.get_close_matches(field, absent, n=1, cutoff=0.8):
            problems.append(f"{where}: unknown field {field!r}.{closest(field, absent)}")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        problems.append(
            f"{where}: split is {split!r}, expected one of {', '.join(SPLITS)}.{closest(str(split), SPLITS)}"
        )
    return len(problems) == before

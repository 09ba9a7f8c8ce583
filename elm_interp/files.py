"""Files: hashes, and writes that happen whole or not at all.

write_json(folder / "config.json", values)
with replacing(path) as half:                # a temporary name beside `path`, renamed at the end
    table.to_parquet(half)
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which cannot be written as UTF-8."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it takes the place of `path` when the context ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; a path in it that the locale could not decode becomes what it is."""
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, values: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    said = json.dumps(values, indent=1, ensure_ascii=False)
    # a path that the locale could not decode has halves of surrogate pairs, which UTF-8 cannot hold
    write_text(path, said if HALF_CHARACTER.search(said) is None else json.dumps(values, indent=1))


def read_json(path: Path, kind: type = object) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        kind: what it must hold, such as dict.

    Raises:
        ValueError: the file is broken or holds something else; the message names it.
        FileNotFoundError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is broken ({error}); expected JSON. Restore it, or delete it and run again what wrote it."
        ) from error
    if not isinstance(found, kind):
        raise ValueError(f"{path} holds {type(found).__name__}, expected {kind.__name__}; restore or delete it.")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(values: Any, digits: int = 16) -> str:
    """SHA-256 of plain data (what JSON can hold), as hexadecimal digits; the order of keys does not matter."""
    said = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:digits]

"""Files: hashes, and writes that happen whole or not at all.

write_json(folder / "config.json", values)
with replacing(path) as half:                # a temporary name beside `path`, renamed at the end
    table.to_parquet(half)
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is broken; the message names it.
        FileNotFoundError: there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); expected JSON.") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(values: Any, digits: int = 16) -> str:
    """SHA-256 of plain data (what JSON can hold), as hexadecimal digits; the order of keys does not matter."""
    said = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()[:digits]

"""Rows of question files by their ending: JSON Lines, a JSON list, CSV (MMLU's own have no header) and parquet."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from elm_interp.data.records import read_rows, read_utf8
from elm_interp.data.schemas import ANSWERS, QUESTIONS

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_table(path: Path, problems: list[str]) -> Rows:
    """The rows of a file, each with its location; what cannot be read is told in `problems`."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path, problems)
    return _csv(path, problems) if ending == ".csv" else read_rows(path, problems)


def _parquet(path: Path, problems: list[str]) -> Rows:
    from pyarrow import ArrowException, parquet

    try:
        with path.open("rb") as file:
            rows = parquet.read_table(file).to_pylist()
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
        return
    except (OSError, ValueError, ArrowException) as error:
        problems.append(f"{path}: cannot be read as parquet ({error}); is it whole?")
        return
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _csv(path: Path, problems: list[str]) -> Rows:
    text = read_utf8(path, problems)
    if text is None:
        return
    names: list[str] | None = None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"{where}: not CSV ({error})")
            continue
        if names is None and _is_header(cells):
            names = [cell.strip() for cell in cells]
        elif names is not None and any(cells) and len(cells) != len(names):
            problems.append(f"{where}: {len(cells)} fields, expected {len(names)}: {', '.join(names)}")
        elif any(cells):
            of_mmlu = ["question", *ascii_uppercase[: max(0, len(cells) - 2)], "answer"]
            row = dict(zip(names or of_mmlu, cells, strict=False))
            yield where, {name: cell for name, cell in row.items() if cell.strip()}


def _is_header(cells: list[str]) -> bool:
    names = {cell.strip() for cell in cells}
    return bool(names & set(QUESTIONS)) and bool(names & {*ANSWERS, "true_answer"})

"""The training log, metrics.jsonl: one JSON object a line, for each step, warning and evaluation.

steps = pd.DataFrame(read_log(folder / "metrics.jsonl"))
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elm_interp.errors import RunFolderError
from elm_interp.files import write_text


class TrainingLog:
    """Appends lines to metrics.jsonl, after dropping those beyond the checkpoint that a resume starts from.

    Args:
        path: the file; None writes nothing, as in every process but the first.
        done: steps of the checkpoint that training goes on from.
        warnings: logged at once, at that step.
    """

    def __init__(self, path: Path | None, done: int, warnings: Sequence[str]) -> None:
        self._path = path
        if path and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()  # a crash may have cut a character
            write_text(path, "".join(line + "\n" for line in lines if _step(line) <= done))
        for warning in warnings:
            self.warn(done, warning)

    def warn(self, step: int, warning: str) -> None:
        """Log what went wrong at a step."""
        self.write(step=step, warning=warning)

    def write(self, **values: object) -> None:
        """Append one line."""
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; empty if there is none.

    Raises:
        RunFolderError: a line is broken; the message names it.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RunFolderError(
                f"{path}:{number} is broken ({error}); expected one JSON object a line. A crash may have cut it off: "
                "go on with --resume, or delete the line."
            ) from error
        if not isinstance(entry, dict):
            raise RunFolderError(f"{path}:{number} holds {type(entry).__name__}, expected an object; delete the line.")
        found += [entry] if entry else []
    return found


def _step(line: str) -> float:
    try:
        step: float = json.loads(line)["step"]
        return step
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf  # a line that a crash cut off

"""The training log, metrics.jsonl: one JSON object a line, for each step, warning and evaluation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

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
            lines = path.read_text(encoding="utf-8").splitlines()
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


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line that a crash cut off

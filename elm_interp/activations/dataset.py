"""Dataset: texts to read activations on, with one row of facts, labels or whatever else is known for each text.

dataset = Dataset("mine", texts, pd.DataFrame({"id": ids, "label": labels}), positions="last")
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from html import escape

import pandas as pd

from elm_interp.errors import DataError


@dataclass(frozen=True, repr=False)
class Dataset:
    """Texts to read activations on, with one row of a table for each.

    Raises:
        DataError: no text, not one example and one answer for each text, or positions that give several vectors a text.
    """

    name: str
    texts: tuple[str, ...]
    examples: pd.DataFrame
    """One row for each text; for probes of elm_interp: id, fact, split, label."""
    positions: str | int = "last"
    """Which token of each text to read: "last", an index, or "mean" for the mean over tokens."""
    skip: int = 0
    """Number of first tokens that the mean leaves out."""
    answers: tuple[str, ...] | None = None
    """One for each text, whose direction each activation is multiplied with, see `paired`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(self.texts))
        check_positions(self.positions, self.skip)
        if self.answers is not None and len(self.answers) != len(self.texts):
            raise DataError(f"dataset {self.name!r} has {len(self.texts)} texts and {len(self.answers)} answers.")
        if len(self.texts) != len(self.examples) or not self.texts:
            raise DataError(
                f"dataset {self.name!r} has {len(self.texts)} texts and {len(self.examples)} examples; "
                "expected one example for each text, and at least one text."
            )

    @property
    def stored_examples(self) -> pd.DataFrame:
        """The examples with a hash of each text and answer, by which a store tells other texts with the same ids."""
        said = self.texts if self.answers is None else map("\n".join, zip(self.texts, self.answers, strict=True))
        return self.examples.assign(text_sha256=[sha256(text.encode()).hexdigest()[:16] for text in said])

    def without(self, hashes: Collection[str]) -> "Dataset | None":
        """The dataset without the texts of these `text_sha256` (see `stored_examples`); None if no text is left."""
        stored = self.stored_examples["text_sha256"]
        return self.only([i for i, one in enumerate(stored) if one not in hashes]) if hashes else self

    def only(self, rows: Sequence[int]) -> "Dataset | None":
        """The dataset of some of its texts, by index; None of no text."""
        texts, examples = tuple(self.texts[i] for i in rows), self.examples.iloc[list(rows)].reset_index(drop=True)
        answers = None if self.answers is None else tuple(self.answers[i] for i in rows)
        return replace(self, texts=texts, examples=examples, answers=answers) if rows else None

    def __repr__(self) -> str:
        columns = ", ".join(map(str, self.examples))
        return f"Dataset({self.name!r}: {len(self.texts)} texts at {self.positions!r}; columns: {columns})"

    def _repr_html_(self) -> str:
        table = self.examples.assign(text=list(self.texts))
        return f"<p><code>{escape(repr(self))}</code></p>{table.to_html(index=False, max_rows=10)}"


def check_positions(positions: str | int, skip: int) -> None:
    """Check that positions give one vector for each text.

    Raises:
        DataError: other positions, or first tokens to skip where no mean is taken.
    """
    if positions not in ("last", "mean") and not isinstance(positions, int):
        raise DataError(
            f'cannot collect at positions {positions!r}; expected "last", "mean" or an index, one vector for each text.'
        )
    if skip < 0 or (skip and positions != "mean"):
        raise DataError(
            f"skip={skip} with positions={positions!r}: only the mean can leave out first tokens; "
            'expected positions="mean" and skip >= 0.'
        )

"""The index of an activation store: what is held, in which files, made from what.

It is one small JSON file that is replaced in one step, so what it names is whole, whatever died while writing. Processes
that change a store take turns at a lock; readers never wait, and never write.

    index = Index.read(folder)
    index.entries["truth", "step-000060", "resid_post"].shards
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from elm_interp.errors import StoreError

INDEX = "index.json"
LOCK = ".lock"
Key = tuple[str, str, str]
"""Dataset, checkpoint, site."""

RANDOM_INIT = "random_init"
"""The checkpoint of a model that was never trained, whose weights are not the base's."""


@dataclass(frozen=True)
class Entry:
    """What the index says of one dataset at one checkpoint and site."""

    dataset: str
    checkpoint: str
    site: str
    positions: str
    dtype: str
    n: int
    """Examples."""
    layers: int
    d_model: int
    fingerprint: str
    """A hash of what the activations depend on, weights and where they were read, then "-" and one of the texts."""
    meta: dict[str, Any]
    """Whatever else the writer was given."""
    shards: tuple[dict[str, Any], ...] = field(repr=False)
    """File (relative to the store), rows, the example that its row 0 is, bytes and sha256 of each."""
    model: str = ""
    """A hash of the base's weights; "" where the writer was not told."""
    adapter: str = ""
    """A hash of the adapter, "none" for the bare base; "" where the writer was not told."""

    @property
    def key(self) -> Key:
        """What no other entry of the store shares."""
        return self.dataset, self.checkpoint, self.site

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        return sum(shard["bytes"] for shard in self.shards)

    @property
    def folders(self) -> set[str]:
        """Where the shards are, relative to the store; nothing else is there."""
        return {shard["file"].rpartition("/")[0] for shard in self.shards}


@dataclass
class Index:
    """The entries of a store, and for each dataset the file with its examples."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """What the folder holds; empty where there is no store.

        Raises:
            StoreError: the index is broken.
        """
        path = folder / INDEX
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = [Entry(**{**row, "shards": tuple(row["shards"])}) for row in raw["entries"]]
            return cls({entry.key: entry for entry in found}, dict(raw["examples"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the index {path} cannot be read ({error}); restore it, or delete the folder and collect again."
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the index of the folder in one step."""
        half = folder / f".{INDEX}.half"
        listed = {"entries": [asdict(entry) for entry in self.entries.values()], "examples": self.tables}
        half.write_text(json.dumps(listed, indent=1), encoding="utf-8")
        half.replace(folder / INDEX)

    def of(self, dataset: str) -> dict[Key, Entry]:
        """The entries of a dataset."""
        return {key: entry for key, entry in self.entries.items() if entry.dataset == dataset}

    def problems(self, folder: Path, *, verify: bool) -> dict[Key, list[str]]:
        """What is wrong with the files of each entry; entries without a fault are left out."""
        found = {key: self._problems(folder, entry, verify) for key, entry in self.entries.items()}
        return {key: problems for key, problems in found.items() if problems}

    def _problems(self, folder: Path, entry: Entry, verify: bool) -> list[str]:
        problems = []
        for shard in entry.shards:
            path = folder / shard["file"]
            try:
                size = path.stat().st_size
                if size != shard["bytes"]:
                    problems.append(f"{shard['file']}: {size} bytes, expected {shard['bytes']}")
                elif verify and sha256_of(path) != shard["sha256"]:
                    problems.append(f"{shard['file']}: its contents changed (sha256 differs)")
            except FileNotFoundError:
                problems.append(f"{shard['file']}: missing")
        table = self.tables.get(entry.dataset)
        if table is None or not (folder / table).is_file():
            problems.append(f"{table or f'{entry.dataset}/examples.parquet'}: missing")
        return problems


@contextmanager
def changing(folder: Path) -> Iterator[Index]:
    """Hold the store alone; the index as it is now, written back at the end unless something was raised."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        index = Index.read(folder)
        yield index
        index.write(folder)


def write_table(folder: Path, dataset: str, examples: pd.DataFrame) -> str:
    """Write the examples of a dataset under a name that no other table has; returns it, relative to the folder."""
    (folder / dataset).mkdir(parents=True, exist_ok=True)
    tables = (f"{dataset}/examples{f'.{i}' if i else ''}.parquet" for i in range(10**6))
    table = next(table for table in tables if not (folder / table).exists())
    half = folder / f"{table}.half"
    examples.to_parquet(half, index=False)
    half.replace(folder / table)
    return table


def texts_hash(examples: pd.DataFrame) -> str:
    """A hash of the texts of examples, by the hash that each row carries; "" where rows carry none."""
    if "text_sha256" not in examples:
        return ""
    return hashlib.sha256("".join(examples["text_sha256"]).encode()).hexdigest()[:16]


def same_weights(fingerprint: str) -> str:
    """The part of a fingerprint that more examples leave as it is."""
    return fingerprint.partition("-")[0]


def for_examples(fingerprint: str, examples: pd.DataFrame) -> str:
    """The fingerprint of the same weights and place on other examples; "" where it cannot be known."""
    texts = texts_hash(examples)
    return f"{same_weights(fingerprint)}-{texts}" if texts and "-" in fingerprint else ""


def other_examples(dataset: str, known: pd.DataFrame, new: pd.DataFrame) -> str:
    """How examples differ from those that a dataset has; "" where they are the same."""
    if list(known) != list(new):
        return f"dataset {dataset!r} has examples with columns {list(known)}, not {list(new)}"
    if len(known) != len(new):
        return f"dataset {dataset!r} has {len(known)} examples, not {len(new)}"
    differs = (as_said(known) != as_said(new)).any(axis=1)
    if not differs.any():
        return ""
    row = int(differs.to_numpy().argmax())
    return (
        f"dataset {dataset!r} has other examples: row {row} is {known.iloc[row].to_dict()} in the store and "
        f"{new.iloc[row].to_dict()} now"
    )


def as_said(examples: pd.DataFrame) -> pd.DataFrame:
    """Examples as text: types may change on the way through parquet, what is said may not."""
    return examples.astype("string").fillna("")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

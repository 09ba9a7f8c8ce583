"""The index of an activation store: what the store holds, in which files, and what it was made from.

The index is one small JSON file that is replaced in one step, so every file that it names is complete, even if a
process died while writing. Processes that change a store take turns at a lock. Readers never wait and never write.

    index = Index.read(folder)
    index.entries["truth", "step-000060", "resid_post"].shards
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from elm_interp.errors import StoreError
from elm_interp.files import file_hash, read_json, replacing, write_json

INDEX = "index.json"
LOCK = ".lock"
COLUMNS = (
    "dataset", "checkpoint", "site", "positions", "layers", "examples", "d_model", "dtype", "model", "adapter",
    "fingerprint", "bytes",
)  # fmt: skip
"""Of `ActivationStore.frame`."""
Key = tuple[str, str, str]
"""Dataset, checkpoint, site."""

RANDOM_INIT = "random_init"
"""The checkpoint name of an untrained model, whose base weights differ from those of other checkpoints."""


@dataclass(frozen=True, repr=False)
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
    """What the activations were made from: a hash of weights and settings, then "-" and a hash of the texts."""
    meta: dict[str, Any]
    """Whatever else the writer was given."""
    shards: tuple[dict[str, Any], ...]
    """Of each: file (relative to the store), rows, first (the example of its row 0), bytes and sha256."""
    model: str = ""
    """A hash of the base's weights; "" if unknown."""
    adapter: str = ""
    """A hash of the adapter, "none" for the bare base; "" if unknown."""

    @property
    def key(self) -> Key:
        """Dataset, checkpoint and site, which no other entry of the store shares."""
        return self.dataset, self.checkpoint, self.site

    @property
    def untrained(self) -> bool:
        """Whether the model has random weights."""
        return self.checkpoint == RANDOM_INIT

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        return sum(int(shard["bytes"]) for shard in self.shards)

    @property
    def folders(self) -> set[str]:
        """Folders of the shards, relative to the store; they hold nothing else."""
        return {shard["file"].rpartition("/")[0] for shard in self.shards}

    @property
    def row(self) -> dict[str, Any]:
        """The entry as a row of `ActivationStore.frame`."""
        return {column: self.n if column == "examples" else getattr(self, column) for column in COLUMNS}

    def __repr__(self) -> str:
        size = f"{self.n} examples, {self.layers} layers, d_model {self.d_model}, {self.dtype}"
        return f"Entry({self.dataset!r} at {self.checkpoint!r}, {self.site or 'no site'} {self.positions}: {size})"

    def _repr_html_(self) -> str:
        return str(pd.DataFrame([self.row]).to_html(index=False))


@dataclass
class Index:
    """The entries of a store, and for each dataset the file with its examples."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read what the folder holds; nothing if there is no store.

        Raises:
            StoreError: the index is broken.
        """
        path = folder / INDEX
        try:
            raw = read_json(path)
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
        write_json(folder / INDEX, {"entries": list(map(asdict, self.entries.values())), "examples": self.tables})

    def of(self, dataset: str) -> dict[Key, Entry]:
        """The entries of a dataset."""
        return {key: entry for key, entry in self.entries.items() if entry.dataset == dataset}

    def problems(self, folder: Path, *, verify: bool) -> dict[Key, list[str]]:
        """Faults in the files of each entry, by key; entries without a fault are left out."""
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
                elif verify and file_hash(path) != shard["sha256"]:
                    problems.append(f"{shard['file']}: its contents changed (sha256 differs)")
            except FileNotFoundError:
                problems.append(f"{shard['file']}: missing")
        table = self.tables.get(entry.dataset)
        if table is None or not (folder / table).is_file():
            problems.append(f"{table or f'{entry.dataset}/examples.parquet'}: missing")
        return problems


@contextmanager
def changing(folder: Path) -> Iterator[Index]:
    """Lock the store and yield its current index, which is written back at the end if nothing was raised."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        index = Index.read(folder)
        yield index
        index.write(folder)


def write_table(folder: Path, dataset: str, examples: pd.DataFrame) -> str:
    """Write the examples of a dataset under a name that no other table has; returns it, relative to the folder."""
    tables = (f"{dataset}/examples{f'.{i}' if i else ''}.parquet" for i in range(10**6))
    table = next(table for table in tables if not (folder / table).exists())
    with replacing(folder / table) as half, half.open("wb") as file:
        examples.to_parquet(file, index=False)
    return table


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """Read the examples of a dataset.

    Raises:
        StoreError: the file is broken; the message names it.
        FileNotFoundError: there is none.
    """
    try:
        with (folder / table).open("rb") as file:
            return pd.read_parquet(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the examples {folder / table} are broken ({error}); restore the file, or delete the store and collect "
            "again."
        ) from error


def texts_hash(examples: pd.DataFrame) -> str:
    """A hash of the texts of examples, made from the hashes of their rows; "" if rows have none."""
    if "text_sha256" not in examples:
        return ""
    return sha256("".join(examples["text_sha256"]).encode()).hexdigest()[:16]


def same_weights(fingerprint: str) -> str:
    """The part of a fingerprint that does not depend on the examples."""
    return fingerprint.partition("-")[0]


def for_examples(fingerprint: str, examples: pd.DataFrame) -> str:
    """The fingerprint of the same weights and settings with other examples; "" if it cannot be known."""
    texts = texts_hash(examples)
    return f"{same_weights(fingerprint)}-{texts}" if texts and "-" in fingerprint else ""


def same_examples(dataset: str, known: pd.DataFrame, new: pd.DataFrame) -> None:
    """Check that examples are those that a dataset has.

    Raises:
        StoreError: they differ.
    """
    if problem := other_examples(dataset, known, new):
        raise StoreError(f"{problem}; use another name or drop it first.")


def other_examples(dataset: str, known: pd.DataFrame, new: pd.DataFrame) -> str:
    """How examples differ from those that a dataset has; "" if they do not."""
    if list(known) != list(new):
        return f"dataset {dataset!r} has examples with columns {list(known)}, not {list(new)}"
    if len(known) != len(new):
        return f"dataset {dataset!r} has {len(known)} examples, not {len(new)}"
    differs = (_as_text(known) != _as_text(new)).any(axis=1)
    if not differs.any():
        return ""
    row = int(differs.to_numpy().argmax())
    return (
        f"dataset {dataset!r} has other examples: row {row} is {known.iloc[row].to_dict()} in the store and "
        f"{new.iloc[row].to_dict()} now"
    )


def not_further(dataset: str, known: pd.DataFrame, more: pd.DataFrame) -> list[str]:
    """Why examples cannot be added to those that a dataset has; empty if they can."""
    if not len(more):
        return ["no example was given"]
    if list(known) != list(more):
        return [f"dataset {dataset!r} has examples with columns {list(known)}, not {list(more)}"]
    again = pd.concat([_as_text(known), _as_text(more)], ignore_index=True).duplicated()[len(known) :]
    if not again.any():
        return []
    row = int(again.to_numpy().argmax())
    return [f"{int(again.sum())} examples are in dataset {dataset!r} already, such as {more.iloc[row].to_dict()}"]


def joined(entry: Entry, shards: Iterable[dict[str, Any]], examples: pd.DataFrame) -> Entry:
    """The entry of all the examples, from the entry of the first of them."""
    fingerprint = entry.fingerprint if entry.n == len(examples) else for_examples(entry.fingerprint, examples)
    return replace(entry, n=len(examples), shards=tuple(shards), fingerprint=fingerprint)


def _as_text(examples: pd.DataFrame) -> pd.DataFrame:
    # types may change on the way through parquet, the text may not
    return examples.astype("string").fillna("")

"""ActivationStore: activations of many checkpoints on disk, so that analyses run again without a model.

A store is a folder: one examples table a dataset, and for each (dataset, checkpoint) a folder of safetensors shards. The
index names what is there, with sizes and hashes, and is replaced in one step, so an interrupted writer leaves no trace.

Shapes: what is added is (rows, layer, d_model), in any order of rows; what is read is (example, layer, d_model) in the
order of the examples. On disk a shard is (layer, rows, d_model), so that reading one layer touches nothing else.

    with store.writer("truth", "step-000060", examples=table, meta={"site": "resid_post", "positions": "last"}) as w:
        w.add([4, 0], tensor)
    x = store.tensor("truth", "step-000060", layer=7)        # (example, d_model)
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from elm_interp.activations.writer import SHARD_BYTES, ShardWriter
from elm_interp.errors import StoreError, raise_all, unknown

INDEX = "index.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Entry:
    """What the index says of one dataset at one checkpoint."""

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
    """A hash of what the activations depend on: texts, weights, where they were read."""
    meta: dict[str, Any]
    """Whatever else the writer was given."""
    shards: tuple[dict[str, Any], ...] = field(repr=False)
    """File (relative to the store), rows, bytes and sha256 of each."""


class ActivationStore:
    """A folder of activations; opening it checks every shard.

    Args:
        folder: an existing store, or where to make one; nothing is written before the first entry.
        repair: drop entries with a damaged shard instead of raising.
        verify: hash every shard; False looks only at presence and size.

    Raises:
        StoreError: the index cannot be read, or shards are missing or damaged; the message names each.
    """

    def __init__(self, folder: str | Path, *, repair: bool = False, verify: bool = True) -> None:
        self.folder = Path(folder)
        self._entries, self._tables = self._read_index()
        problems = {key: self._problems(entry, verify) for key, entry in self._entries.items()}
        damaged = [key for key, found in problems.items() if found]
        if damaged and not repair:
            raise_all(
                [p for found in problems.values() for p in found],
                StoreError,
                f"the store {folder} is damaged; open it with repair=True to drop what is:",
            )
        for dataset, checkpoint in damaged:
            self.drop(dataset, checkpoint)

    def __repr__(self) -> str:
        by_dataset: dict[str, list[str]] = {}
        for dataset, checkpoint in self._entries:
            by_dataset.setdefault(dataset, []).append(checkpoint)
        size = sum(shard["bytes"] for entry in self._entries.values() for shard in entry.shards)
        held = "; ".join(f"{name}: {len(found)} checkpoints" for name, found in by_dataset.items())
        return f"ActivationStore({str(self.folder)!r}: {held or 'empty'}; {size / 1e6:.1f} MB)"

    def entries(self) -> list[Entry]:
        """What the store holds, in the order in which it came."""
        return list(self._entries.values())

    def entry(self, dataset: str, checkpoint: str) -> Entry:
        """What the index says of one entry.

        Raises:
            UnknownNameError: no such dataset or checkpoint; the message lists those that exist.
        """
        if (dataset, checkpoint) not in self._entries:
            checkpoints = [c for d, c in self._entries if d == dataset]
            if checkpoints:
                raise unknown(f"checkpoint of {dataset!r}", checkpoint, checkpoints)
            raise unknown("dataset", dataset, dict.fromkeys(d for d, _ in self._entries))
        return self._entries[dataset, checkpoint]

    def has(self, dataset: str, checkpoint: str, fingerprint: str | None = None) -> bool:
        """Whether the entry is there and, where a fingerprint is given, was made from the same."""
        entry = self._entries.get((dataset, checkpoint))
        return entry is not None and fingerprint in (None, entry.fingerprint)

    def examples(self, dataset: str) -> pd.DataFrame:
        """The examples of a dataset, one row for each row of its tensors.

        Raises:
            UnknownNameError: no such dataset.
        """
        if dataset not in self._tables:
            raise unknown("dataset", dataset, self._tables)
        return pd.read_parquet(self.folder / self._tables[dataset])

    def tensor(
        self, dataset: str, checkpoint: str, layer: int | Sequence[int] | None = None
    ) -> Float[Tensor, "example *layer d_model"]:
        """Activations in the order of the examples, in the dtype in which they were added.

        Args:
            dataset: name of the dataset.
            checkpoint: name of the checkpoint.
            layer: None for all, (example, layer, d_model); several, the same; one int, (example, d_model). Only the layers
                asked for are read.

        Raises:
            UnknownNameError: no such entry.
            ValueError: a layer that the entry does not have.
        """
        entry = self.entry(dataset, checkpoint)
        layers = list(range(entry.layers)) if layer is None else [layer] if isinstance(layer, int) else list(layer)
        outside = [index for index in layers if not -entry.layers <= index < entry.layers]
        if outside or not layers:
            raise ValueError(
                f"layers {outside or '(none)'} asked of {dataset!r} at {checkpoint!r}, which has layers 0 to {entry.layers - 1}."
            )
        out = torch.empty(entry.n, len(layers), entry.d_model, dtype=getattr(torch, entry.dtype))
        for shard in entry.shards:
            with safe_open(self.folder / shard["file"], framework="pt") as file:
                rows, values = file.get_tensor("rows"), file.get_slice("activations")
                for place, index in enumerate(layers):
                    out[rows, place] = values[index % entry.layers]
        return out[:, 0] if isinstance(layer, int) else out

    def writer(
        self,
        dataset: str,
        checkpoint: str,
        *,
        examples: pd.DataFrame,
        meta: dict[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> ShardWriter:
        """A context that takes activations in batches; the entry appears, whole, when it ends without an exception.

        An entry of the same names is replaced then, and stays readable until.

        Args:
            dataset: letters, digits, "_", "-" and ".".
            checkpoint: likewise.
            examples: one row an example, the same for every checkpoint of a dataset.
            meta: "site", "positions" and "fingerprint" have their own columns in `entries`; the rest is kept beside.
            shard_bytes: largest size of a shard.

        Raises:
            StoreError: a name that cannot be a file name, or examples other than those that the dataset has.
        """
        for kind, name in (("dataset", dataset), ("checkpoint", checkpoint)):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"{kind} name {name!r} cannot be used; expected letters, digits, '_', '-' or '.', a letter or digit first."
                )
        examples = examples.reset_index(drop=True)
        if dataset in self._tables:
            self._same_examples(dataset, examples)
        meta = dict(meta or {})

        def commit(shards: list[dict[str, Any]], layers: int, d_model: int, dtype: str) -> None:
            known = {key: str(meta.get(key, "")) for key in ("site", "positions", "fingerprint")}
            rest = {key: value for key, value in meta.items() if key not in known}
            entry = Entry(
                dataset,
                checkpoint,
                dtype=dtype,
                n=len(examples),
                layers=layers,
                d_model=d_model,
                meta=rest,
                shards=tuple(shards),
                **known,
            )
            self._commit(entry, examples)

        return ShardWriter(self.folder, f"{dataset}/{checkpoint}", len(examples), commit, shard_bytes)

    def drop(self, dataset: str, checkpoint: str | None = None) -> None:
        """Remove an entry, or a dataset with all its checkpoints, from the index and the disk.

        Raises:
            UnknownNameError: there is nothing of that name.
        """
        gone = [key for key in self._entries if key[0] == dataset and checkpoint in (None, key[1])]
        if not gone:
            self.entry(dataset, checkpoint or "")
        removed = [self._entries.pop(key) for key in gone]
        last = not any(name == dataset for name, _ in self._entries)
        table = self._tables.pop(dataset, None) if last else None
        self._write_index()
        for entry in removed:
            self._delete(entry)
        if table:
            (self.folder / table).unlink(missing_ok=True)

    # -- the index ------------------------------------------------------------------------------------------------

    def _read_index(self) -> tuple[dict[tuple[str, str], Entry], dict[str, str]]:
        path = self.folder / INDEX
        if not path.exists():
            return {}, {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = [Entry(**{**row, "shards": tuple(row["shards"])}) for row in raw["entries"]]
            return {(entry.dataset, entry.checkpoint): entry for entry in found}, dict(raw["examples"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the index {path} cannot be read ({error}); restore it, or delete the folder and collect again."
            ) from error

    def _write_index(self) -> None:
        half = self.folder / f".{INDEX}.half"
        listed = {"entries": [asdict(entry) for entry in self._entries.values()], "examples": self._tables}
        half.write_text(json.dumps(listed, indent=1), encoding="utf-8")
        half.replace(self.folder / INDEX)

    def _commit(self, entry: Entry, examples: pd.DataFrame) -> None:
        # another process may have added entries since this one opened the store
        self._entries, self._tables = self._read_index()
        replaced = self._entries.get((entry.dataset, entry.checkpoint))
        if entry.dataset in self._tables:
            self._same_examples(entry.dataset, examples)
        else:
            table = f"{entry.dataset}/examples.parquet"
            half = self.folder / f"{table}.half"
            examples.to_parquet(half, index=False)
            half.replace(self.folder / table)
            self._tables[entry.dataset] = table
        self._entries[entry.dataset, entry.checkpoint] = entry
        self._write_index()
        if replaced:
            self._delete(replaced)

    def _same_examples(self, dataset: str, examples: pd.DataFrame) -> None:
        known = self.examples(dataset)
        if list(known) != list(examples):
            raise StoreError(
                f"dataset {dataset!r} has examples with columns {list(known)}, not {list(examples)}; use another name or drop it first."
            )
        if len(known) != len(examples):
            raise StoreError(
                f"dataset {dataset!r} has {len(known)} examples, not {len(examples)}; use another name or drop it first."
            )
        # types may change on the way through parquet, what is said may not
        differs = (known.astype("string").fillna("") != examples.astype("string").fillna("")).any(axis=1)
        if differs.any():
            row = int(differs.to_numpy().argmax())
            raise StoreError(
                f"dataset {dataset!r} has other examples: row {row} is {known.iloc[row].to_dict()} in the store and "
                f"{examples.iloc[row].to_dict()} now; use another name or drop it first."
            )

    def _problems(self, entry: Entry, verify: bool) -> list[str]:
        problems = []
        for shard in entry.shards:
            path = self.folder / shard["file"]
            if not path.is_file():
                problems.append(f"{shard['file']}: missing")
            elif path.stat().st_size != shard["bytes"]:
                problems.append(f"{shard['file']}: {path.stat().st_size} bytes, expected {shard['bytes']}")
            elif verify and sha256_of(path) != shard["sha256"]:
                problems.append(f"{shard['file']}: its contents changed (sha256 differs)")
        if entry.dataset not in self._tables or not (self.folder / self._tables[entry.dataset]).is_file():
            problems.append(f"{entry.dataset}/examples.parquet: missing")
        return problems

    def _delete(self, entry: Entry) -> None:
        for folder in {(self.folder / shard["file"]).parent for shard in entry.shards}:
            shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

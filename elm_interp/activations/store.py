"""ActivationStore: activations of many checkpoints on disk, so that analyses can be repeated without a model.

A store is a folder. It holds a table of examples for each dataset, and a folder of safetensors shards for each
(dataset, checkpoint, site). The index lists them with sizes and hashes. It is replaced in one step, so a process that
dies while writing damages nothing. Several processes may read and write a store at once; each sees the state that it
opened.

Shapes: (rows, layer, d_model) is added, in any order of rows; (example, layer, d_model) is read, in the order of the
examples. On disk a shard is (layer, rows, d_model), so that reading one layer touches nothing else.

    with store.writer("truth", "step-000060", examples=table, meta={"site": "resid_post", "positions": "last"}) as w:
        w.add([4, 0], tensor)
    x = store.tensor("truth", "step-000060", layer=7)        # (example, d_model)
    store.frame()                                            # one row for each entry
    ActivationStore("whole").merge("worker-0", "worker-1")   # checkpoints that several workers collected
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elm_interp.activations import merging, views
from elm_interp.activations.index import (
    INDEX,
    Entry,
    Index,
    changing,
    joined,
    not_further,
    read_table,
    same_examples,
    write_table,
)
from elm_interp.activations.shards import SHARD_BYTES, ShardWriter
from elm_interp.errors import StoreError, check_known, raise_all

if TYPE_CHECKING:
    from xarray import DataArray

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_OWN = ("site", "positions", "fingerprint", "model", "adapter")
"""Keys of `meta` that have their own column in the frame."""


class ActivationStore:
    """A folder of activations; opening it checks every shard.

    Args:
        folder: an existing store, or where to make one; nothing is written before the first entry.
        repair: drop entries with a damaged shard instead of raising.
        verify: hash every shard. False checks only that they exist and have the right size, and reads none.

    Raises:
        StoreError: the index cannot be read, or shards are missing or damaged; the message names each.
    """

    def __init__(self, folder: str | Path, *, repair: bool = False, verify: bool = True) -> None:
        self.folder = Path(folder)
        while True:
            self._index = Index.read(self.folder)
            problems = self._index.problems(self.folder, verify=verify)
            # another process may have replaced what was checked
            if not problems or Index.read(self.folder) == self._index:
                break
        if not repair:
            head = f"the store {folder} is damaged; open it with repair=True to drop the damaged entries:"
            raise_all([problem for found in problems.values() for problem in found], StoreError, head)
        elif problems:
            self._drop({key: self._index.entries[key] for key in problems})

    def __repr__(self) -> str:
        return views.summary(self.folder, self._index)

    def _repr_html_(self) -> str:
        return views.html(self.folder, self._index)

    def frame(self) -> pd.DataFrame:
        """The contents of the store, one row for each entry, in the order in which they were added.

        Columns: dataset, checkpoint, site, positions, layers, examples, d_model, dtype, hashes of model and adapter (""
        if unknown), fingerprint, bytes.
        """
        return views.frame(self._index)

    def entries(self) -> list[Entry]:
        """The entries of the store, in the order in which they were added."""
        return list(self._index.entries.values())

    def entry(self, dataset: str, checkpoint: str, site: str | None = None) -> Entry:
        """The description of one entry.

        Args:
            dataset: name of the dataset.
            checkpoint: name of the checkpoint.
            site: needed only if the dataset was read at several sites of the checkpoint.

        Raises:
            UnknownNameError: no such dataset, checkpoint or site; the message lists those that exist.
            StoreError: several sites, and none was named.
        """
        check_known("dataset", dataset, self._index.tables)
        found: dict[str, dict[str, Entry]] = {}
        for entry in self._index.of(dataset).values():
            found.setdefault(entry.checkpoint, {})[entry.site] = entry
        check_known(f"checkpoint of {dataset!r}", checkpoint, found)
        sites = found[checkpoint]
        if site is None and len(sites) > 1:
            raise StoreError(
                f"{dataset!r} at {checkpoint!r} was read at {len(sites)} sites; name one: site= {', '.join(sites)}."
            )
        site = next(iter(sites)) if site is None else site
        check_known(f"site of {dataset!r} at {checkpoint!r}", site, sites)
        return sites[site]

    def has(self, dataset: str, checkpoint: str, fingerprint: str | None = None) -> bool:
        """Whether there is an entry of these names, made from what a given fingerprint stands for."""
        found = [entry for entry in self._index.of(dataset).values() if entry.checkpoint == checkpoint]
        return any(fingerprint in (None, entry.fingerprint) for entry in found)

    def examples(self, dataset: str) -> pd.DataFrame:
        """The examples of a dataset, one row for each example of its tensors.

        Raises:
            UnknownNameError: no such dataset.
        """
        check_known("dataset", dataset, self._index.tables)
        with self._as_opened():
            return read_table(self.folder, self._index.tables[dataset])

    def tensor(
        self, dataset: str, checkpoint: str, layer: int | Sequence[int] | None = None, *, site: str | None = None
    ) -> Float[Tensor, "example *layer d_model"]:
        """Activations in the order of the examples, in the dtype in which they were added.

        Args:
            dataset: name of the dataset.
            checkpoint: name of the checkpoint.
            layer: None for all layers, or several, which give (example, layer, d_model); or one, which gives
                (example, d_model). Only these layers are read from disk.
            site: needed only if the dataset was read at several.

        Raises:
            UnknownNameError: no such entry.
            ValueError: a layer that the entry does not have.
            StoreError: several sites and none was named, or the entry was replaced since the store was opened.
        """
        entry = self.entry(dataset, checkpoint, site)
        layers = list(range(entry.layers)) if layer is None else [layer] if isinstance(layer, int) else list(layer)
        outside = [index for index in layers if not -entry.layers <= index < entry.layers]
        if outside or not layers:
            raise ValueError(
                f"layers {outside or '(none)'} of {dataset!r} at {checkpoint!r} do not exist; "
                f"it has layers 0 to {entry.layers - 1}."
            )
        out = torch.empty(entry.n, len(layers), entry.d_model, dtype=getattr(torch, entry.dtype))
        with self._as_opened():
            for shard in entry.shards:
                with safe_open(self.folder / shard["file"], framework="pt") as file:
                    rows = file.get_tensor("rows") + shard.get("first", 0)
                    values = file.get_slice("activations")
                    for place, index in enumerate(layers):
                        out[rows, place] = values[index % entry.layers]
        return out[:, 0] if isinstance(layer, int) else out

    def xarray(self, dataset: str, site: str | None = None) -> "DataArray":
        """A dataset at all its checkpoints as a labelled array, which reads from disk only what is used.

        Returns:
            (checkpoint, example, layer, d_model) in float32 (numpy has no bfloat16). The columns of the examples are
            coordinates of `example`: `x.sel(checkpoint="base", layer=7).groupby("label").mean()`.

        Raises:
            ImportError: the extra xarray is not installed.
            UnknownNameError, StoreError: as `entry`, or checkpoints of other layers or width.
        """
        checkpoints = dict.fromkeys(entry.checkpoint for entry in self._index.of(dataset).values())
        entries = [self.entry(dataset, checkpoint, site) for checkpoint in checkpoints]
        return views.labelled(entries, self.examples(dataset), self.tensor)

    def writer(
        self,
        dataset: str,
        checkpoint: str,
        *,
        examples: pd.DataFrame,
        meta: dict[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> ShardWriter:
        """A context that takes activations in batches; the complete entry appears when it ends without an exception.

        It then replaces an earlier entry of the same names and site, which stays readable until then.

        Args:
            dataset: letters, digits, "_", "-" and ".".
            checkpoint: the same.
            examples: one row for each example, the same for every checkpoint of a dataset.
            meta: "site", "positions", "fingerprint", "model" and "adapter" become columns of `frame`; the rest is
                kept in `Entry.meta`.
            shard_bytes: largest size of a shard.

        Raises:
            StoreError: a name that cannot be a file name, or examples that differ from those of the dataset.
        """
        for kind, name in (("dataset", dataset), ("checkpoint", checkpoint)):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"{kind} name {name!r} cannot be used; "
                    "expected letters, digits, '_', '-' or '.', a letter or digit first."
                )
        examples = examples.reset_index(drop=True)
        if dataset in self._index.tables:
            same_examples(dataset, self.examples(dataset), examples)
        meta = dict(meta or {})
        own = {key: str(meta.pop(key, "")) for key in _OWN}

        def commit(shards: list[dict[str, Any]], layers: int, d_model: int, dtype: str) -> None:
            size = {"dtype": dtype, "n": len(examples), "layers": layers, "d_model": d_model}
            entry = Entry(dataset, checkpoint, meta=meta, shards=tuple(shards), **size, **own)  # type: ignore[arg-type]
            with self._changing() as index:
                replaced = index.entries.get(entry.key)
                if dataset in index.tables:
                    same_examples(dataset, read_table(self.folder, index.tables[dataset]), examples)
                else:
                    index.tables[dataset] = write_table(self.folder, dataset, examples)
                index.entries[entry.key] = entry
            self._delete([replaced] if replaced else [], [])

        return ShardWriter(self.folder, f"{dataset}/{checkpoint}", len(examples), commit, self._discard, shard_bytes)

    @contextmanager
    def append(
        self, dataset: str, examples: pd.DataFrame, *, shard_bytes: int = SHARD_BYTES
    ) -> Iterator[dict[tuple[str, str], ShardWriter]]:
        """Add examples to a dataset at all its checkpoints; they appear together when the context ends without error.

            with store.append("truth", more) as writers:
                writers["base", "resid_post"].add([0, 1], tensor)

        Args:
            dataset: one that the store has.
            examples: the new ones, with the columns of those that the dataset has.
            shard_bytes: largest size of a shard.

        Yields:
            A writer for each (checkpoint, site), whose row 0 is the first of the new examples.

        Raises:
            UnknownNameError: no such dataset.
            StoreError: other columns, an example that the dataset has already, rows missing at some checkpoint, values
                of another shape or dtype, or the dataset was changed by another process. Nothing is added then.
        """
        entries, known = self._index.of(dataset), self.examples(dataset)
        examples = examples.reset_index(drop=True)
        raise_all(not_further(dataset, known, examples), StoreError, "these examples cannot be added:")
        done: dict[tuple[str, str, str], list[dict[str, Any]]] = {}

        def writer(entry: Entry) -> ShardWriter:
            def commit(shards: list[dict[str, Any]], *_: object) -> None:
                done[entry.key] = shards

            like = (entry.layers, entry.d_model, getattr(torch, entry.dtype))
            name = f"{dataset}/{entry.checkpoint}"
            return ShardWriter(self.folder, name, len(examples), commit, self._discard, shard_bytes, like)

        try:
            with ExitStack() as stack:
                yield {(e.checkpoint, e.site): stack.enter_context(writer(e)) for e in entries.values()}
            with self._changing() as index:
                if index.of(dataset) != entries:
                    raise StoreError(f"dataset {dataset!r} was changed by another process; open the store again.")
                replaced, whole = index.tables[dataset], pd.concat([known, examples], ignore_index=True)
                for key, entry in entries.items():
                    shards = [{**shard, "first": entry.n} for shard in done[key]]
                    index.entries[key] = joined(entry, [*entry.shards, *shards], whole)
                index.tables[dataset] = write_table(self.folder, dataset, whole)
        except BaseException:
            for shards in done.values():
                self._discard((self.folder / shards[0]["file"]).parent)
            raise
        self._delete([], [replaced])

    def merge(self, *folders: str | Path, append: bool = False) -> "ActivationStore":
        """Copy the contents of other stores into this one, such as those that several workers collected.

        Args:
            folders: the other stores; every shard is checked.
            append: the workers divided the examples of a dataset, so examples of the same dataset are put one below
                the other, in the order of the folders. Otherwise they divided checkpoints, datasets or sites.

        Returns:
            This store.

        Raises:
            StoreError: a folder without a store, a damaged store, or stores that do not belong together: other
                examples, models, adapters, shapes or dtypes under the same names (with `append`: repeated examples, or
                other checkpoints). The message lists every case, and nothing is changed on disk.
        """
        others = [(Path(folder), self._other(Path(folder))) for folder in folders]

        def plan(index: Index) -> merging.Plan:
            made = merging.plan([(self.folder, index), *others], append)
            raise_all(made.problems, StoreError, "these stores do not belong together; nothing was merged:")
            return made

        plan(Index.read(self.folder))  # raises before the first file is written
        taken: list[Path] = []
        try:
            with self._changing() as index:
                replaced = plan(index).carry_out(self.folder, index, taken)
        except BaseException:
            for folder in taken:
                self._discard(folder)
            raise
        self._delete([], replaced)
        return self

    def drop(self, dataset: str, checkpoint: str | None = None) -> None:
        """Remove an entry, or a dataset with all its checkpoints, from the store.

        Raises:
            UnknownNameError: no such dataset or checkpoint.
        """
        gone = {key: e for key, e in self._index.of(dataset).items() if checkpoint in (None, e.checkpoint)}
        if not gone:
            self.entry(dataset, checkpoint or "")
        self._drop(gone)

    def _drop(self, gone: dict[tuple[str, str, str], Entry]) -> None:
        with self._changing() as index:
            # entries that another process has replaced stay
            removed = [index.entries.pop(key) for key, entry in gone.items() if index.entries.get(key) == entry]
            tables = [index.tables.pop(dataset) for dataset in list(index.tables) if not index.of(dataset)]
        self._delete(removed, tables)

    def _other(self, folder: Path) -> Index:
        if not (folder / INDEX).is_file():
            raise StoreError(f"there is no store in {folder}: it has no {INDEX}.")
        if folder.resolve() == self.folder.resolve():
            raise StoreError(f"the store {folder} cannot be merged into itself; name the others.")
        return ActivationStore(folder)._index

    @contextmanager
    def _changing(self) -> Iterator[Index]:
        with changing(self.folder) as index:
            yield index
        self._index = index

    @contextmanager
    def _as_opened(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"the store {self.folder} was changed by another process since it was opened; open it again ({error})."
            ) from error
        except SafetensorError as error:
            raise StoreError(
                f"a shard of the store {self.folder} is damaged ({error}); open it with repair=True."
            ) from error

    def _discard(self, folder: Path) -> None:
        """Remove the folder of an interrupted writer, unless it is already in the index and so complete."""
        name = folder.relative_to(self.folder).as_posix()
        if not any(name in entry.folders for entry in Index.read(self.folder).entries.values()):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # it holds other entries
                folder.parent.rmdir()

    def _delete(self, entries: list[Entry], tables: list[str]) -> None:
        for folder in {folder for entry in entries for folder in entry.folders}:
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for table in tables:
            (self.folder / table).unlink(missing_ok=True)

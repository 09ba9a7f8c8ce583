"""ShardWriter: streams batches of activations to shards, so that memory holds one shard at most.

Made by `ActivationStore.writer`; it knows files and rows, and hands what it wrote to the store when it ends well.

    with store.writer("truth", "base", examples=table) as w:
        w.add([4, 0], tensor)                                # (rows, layer, d_model)
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from elm_interp.errors import StoreError

SHARD_BYTES = 64 * 2**20
"""Largest size of a shard's activations."""

Commit = Callable[[list[dict[str, Any]], int, int, str], None]
"""Takes the shards, the number of layers, the width and the dtype."""


class ShardWriter:
    """A context that takes rows in any order, each once."""

    def __init__(self, root: Path, name: str, n: int, commit: Commit, shard_bytes: int = SHARD_BYTES) -> None:
        self._root, self._name, self._commit, self._shard_bytes = root, name, commit, shard_bytes
        self._seen = torch.zeros(n, dtype=torch.bool)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._shards: list[dict[str, Any]] = []
        self._like: tuple[int, int, torch.dtype] | None = None
        self._folder: Path | None = None

    def __enter__(self) -> "ShardWriter":
        # a fresh folder, since an entry of the same name must stay readable until this one is whole
        for number in range(10**6):
            folder = self._root / f"{self._name}.{number}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            self._folder = folder
            return self
        raise StoreError(f"no free folder for {self._name} in {self._root}.")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            kind = kind or StoreError
            raise
        finally:
            if kind is not None and self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._remove_if_empty(self._folder.parent)
            self._pending.clear()

    def add(self, rows: Sequence[int] | Int[Tensor, " rows"], values: Float[Tensor, "rows layer d_model"]) -> None:
        """Add activations of some examples.

        Raises:
            StoreError: rows out of range or added before, or values unlike those before; nothing is added then.
        """
        if self._folder is None:
            raise StoreError("the writer is not open; use it as `with store.writer(...) as w`.")
        index = torch.as_tensor(rows, dtype=torch.long).cpu()
        values = values.detach().cpu()
        self._check(index, values)
        self._seen[index] = True
        per_shard = max(1, self._shard_bytes // (values[0].numel() * values.element_size()))
        for part, piece in zip(index.split(per_shard), values.split(per_shard), strict=True):
            if sum(len(r) for r, _ in self._pending) + len(part) > per_shard:
                self._flush()
            self._pending.append((part, piece))

    def _check(self, index: Tensor, values: Tensor) -> None:
        n = len(self._seen)
        if values.ndim != 3 or len(values) != len(index) or len(index) == 0:
            raise StoreError(
                f"activations are (rows, layer, d_model) for at least one row; found {tuple(values.shape)} for {len(index)} rows."
            )
        if int(index.min()) < 0 or int(index.max()) >= n:
            raise StoreError(
                f"rows {int(index.min())} to {int(index.max())} were added, but {self._name} has examples 0 to {n - 1}."
            )
        found, times = index.unique(return_counts=True)
        twice = found[(times > 1) | self._seen[found]]
        if len(twice):
            raise StoreError(f"row {int(twice[0])} of {self._name} was added twice.")
        like = (values.shape[1], values.shape[2], values.dtype)
        self._like = self._like or like
        if like != self._like:
            raise StoreError(f"(layers, d_model, dtype) changed within {self._name}: {like}, before {self._like}.")

    def _flush(self) -> None:
        if not self._pending or self._folder is None:
            return
        rows = torch.cat([r for r, _ in self._pending])
        values = torch.cat([v for _, v in self._pending]).transpose(0, 1).contiguous()
        self._pending.clear()
        path = self._folder / f"shard-{len(self._shards):05d}.safetensors"
        data = save({"rows": rows, "activations": values})
        path.write_bytes(data)
        self._shards.append(
            {
                "file": path.relative_to(self._root).as_posix(),
                "rows": len(rows),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )

    def _finish(self) -> None:
        if self._like is None or not bool(self._seen.all()):
            missing = (~self._seen).nonzero()[:, 0].tolist()
            raise StoreError(
                f"{len(missing)} of {len(self._seen)} examples of {self._name} were never added, such as row {missing[0] if missing else 'any'}."
            )
        self._flush()
        layers, d_model, dtype = self._like
        self._commit(self._shards, layers, d_model, str(dtype).removeprefix("torch."))

    def _remove_if_empty(self, folder: Path) -> None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

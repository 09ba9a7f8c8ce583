"""ShardWriter: writes batches of activations straight to shards, so that memory holds no more than one batch.

`ActivationStore.writer` makes it. It knows files and rows, and passes its shards to the store when it ends without an
exception. A shard is a safetensors file. Its size is known from the start, since every row must come, so each row is
written to its place in the file.

    with store.writer("truth", "base", examples=table) as w:
        w.add([4, 0], tensor)                                # (rows, layer, d_model)
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import StoreError, not_finite
from elm_interp.files import file_hash

SHARD_BYTES = 64 * 2**20
"""Largest size of a shard's activations."""

_KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""Names of dtypes in safetensors."""

Like = tuple[int, int, torch.dtype]
"""Layers, width and dtype."""
Commit = Callable[[list[dict[str, Any]], int, int, str], None]
"""Receives the shards, the number of layers, the width and the dtype."""


class ShardWriter:
    """A context that takes rows in any order, each exactly once.

    Args:
        root: folder of the store.
        name: "dataset/checkpoint", for the folder and for messages.
        n: number of rows that must come.
        commit: called with the shards once all rows are written.
        discard: removes a folder that no index names.
        shard_bytes: largest size of a shard.
        like: required layers, width and dtype; by default those of the first batch.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        n: int,
        commit: Commit,
        discard: Callable[[Path], None],
        shard_bytes: int = SHARD_BYTES,
        like: Like | None = None,
    ) -> None:
        self._root, self._name, self._commit, self._discard = root, name, commit, discard
        self._shard_bytes, self._like = shard_bytes, like
        self._seen = torch.zeros(n, dtype=torch.bool)
        self._shards: list[_Shard] = []
        self._folder: Path | None = None

    def __enter__(self) -> "ShardWriter":
        self._folder = fresh_folder(self._root, self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        folder, self._folder = self._folder, None
        with ExitStack() as undo:
            if folder is not None:
                undo.callback(self._discard, folder)
            if kind is None:
                self._finish()
                undo.pop_all()

    def add(self, rows: Sequence[int] | Int[Tensor, " rows"], values: Float[Tensor, "rows layer d_model"]) -> None:
        """Add activations of some examples.

        Raises:
            StoreError: rows out of range or added before, or values of another shape or dtype than earlier ones.
            NotFiniteError: values that are NaN or infinite; names row and layer. Nothing is added in either case.
        """
        if self._folder is None:
            raise StoreError("the writer is not open; use it as `with store.writer(...) as w`.")
        index = torch.as_tensor(rows, dtype=torch.long).cpu()
        values = values.detach().cpu()
        self._check(index, values)
        self._seen[index] = True
        while len(index):
            if not self._shards or not self._shards[-1].room:
                self._shards.append(self._next_shard(self._folder, values))
            room = self._shards[-1].room
            self._shards[-1].put(index[:room], values[:room])
            index, values = index[room:], values[room:]

    def _next_shard(self, folder: Path, values: Tensor) -> "_Shard":
        per_shard = max(1, self._shard_bytes // (values[0].numel() * values.element_size()))
        left = len(self._seen) - sum(shard.rows for shard in self._shards)
        path = folder / f"shard-{len(self._shards):05d}.safetensors"
        return _Shard(path, min(per_shard, left), (values.shape[1], values.shape[2], values.dtype))

    def _check(self, index: Tensor, values: Tensor) -> None:
        n = len(self._seen)
        if values.ndim != 3 or len(values) != len(index) or len(index) == 0:
            raise StoreError(
                f"activations are (rows, layer, d_model) for at least one row; "
                f"found {tuple(values.shape)} for {len(index)} rows."
            )
        if values.dtype not in _KINDS:
            raise StoreError(f"activations are {values.dtype}; expected one of {', '.join(map(str, _KINDS))}.")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= n:
            raise StoreError(f"rows {low} to {high} were added, but {self._name} has examples 0 to {n - 1}.")
        found, times = index.unique(return_counts=True)  # type: ignore[no-untyped-call]
        twice = found[(times > 1) | self._seen[found]]
        if len(twice):
            raise StoreError(f"row {int(twice[0])} of {self._name} was added twice.")
        like = (values.shape[1], values.shape[2], values.dtype)
        self._like = self._like or like
        if like != self._like:
            raise StoreError(f"(layers, d_model, dtype) changed within {self._name}: {like}, before {self._like}.")
        broken = ~values.isfinite().all(-1)
        if bool(broken.any()):
            at, layer = broken.nonzero()[0].tolist()
            raise not_finite(f"row {int(index[at])} of {self._name} at layer {layer}", values.dtype)

    def _finish(self) -> None:
        if self._like is None or not bool(self._seen.all()):
            missing = (~self._seen).nonzero()[:, 0].tolist()
            raise StoreError(
                f"{len(missing)} of {len(self._seen)} examples of {self._name} were never added, "
                f"such as row {missing[0] if missing else 'any'}."
            )
        shards = []
        for shard in self._shards:
            file = shard.path.relative_to(self._root).as_posix()
            size, digest = shard.path.stat().st_size, file_hash(shard.path)
            shards.append({"file": file, "rows": shard.rows, "first": 0, "bytes": size, "sha256": digest})
        layers, d_model, dtype = self._like
        self._commit(shards, layers, d_model, str(dtype).removeprefix("torch."))


class _Shard:
    """A safetensors file of (layer, rows, d_model), made in its full size and filled row by row."""

    def __init__(self, path: Path, rows: int, like: Like) -> None:
        layers, d_model, dtype = like
        self.path, self.rows, self._filled = path, rows, 0
        self._row_bytes = d_model * dtype.itemsize
        end = 8 * rows + layers * rows * self._row_bytes
        told = {
            "rows": {"dtype": "I64", "shape": [rows], "data_offsets": [0, 8 * rows]},
            "activations": {"dtype": _KINDS[dtype], "shape": [layers, rows, d_model], "data_offsets": [8 * rows, end]},
        }
        header = json.dumps(told).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        with path.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(self._start + end)

    @property
    def room(self) -> int:
        """Number of rows that are not written yet."""
        return self.rows - self._filled

    def put(self, index: Tensor, values: Tensor) -> None:
        """Write the next rows: their examples, and their activations layer by layer."""
        by_layer = values.transpose(0, 1).contiguous().view(torch.uint8).numpy()
        with self.path.open("r+b") as file:
            file.seek(self._start + 8 * self._filled)
            file.write(index.numpy().tobytes())
            for layer, piece in enumerate(by_layer):
                file.seek(self._start + 8 * self.rows + (layer * self.rows + self._filled) * self._row_bytes)
                file.write(piece.tobytes())
        self._filled += len(index)


def fresh_folder(root: Path, name: str) -> Path:
    """Make a new folder for an entry; an earlier entry of this name stays readable until the new one is complete."""
    for number in range(10**6):
        folder = root / f"{name}.{number}"
        try:
            folder.mkdir(parents=True)
        except (FileExistsError, FileNotFoundError):  # another process made it, or removed its empty parent
            continue
        return folder
    raise StoreError(f"no free folder for {name} in {root}.")

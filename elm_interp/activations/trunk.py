"""Trunk: the lowest blocks of a model, which adapters of a run leave alone, run once a batch for all its checkpoints.

Adapters sit on some layers only (ELM's on the first third), and below the first of them every checkpoint computes the same.
So a batch's first pass keeps what leaves the last common block, and later passes start from there, to the same bits.

    trunk = Trunk(lm, below=4)
    for folder in folders:
        with lm.adapter(folder):
            values = trunk.read(lambda layers: lm.run_with_cache(batch, layers=layers)["resid_post"])
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from elm_interp.models import Batch, HookedLM
from elm_interp.models.adapters.files import first_adapted_block

TRUNK_BYTES = 128 * 2**20
"""What trunks may hold at once."""


class Trunk:
    """What the blocks below one gave on one batch, once a pass has run them."""

    def __init__(self, lm: HookedLM, below: int) -> None:
        self._lm, self._below = lm, below
        self._output: list[Any] = []
        self._read: Tensor | None = None

    def read(
        self, read: Callable[[range], Float[Tensor, "batch layer d_model"]]
    ) -> Float[Tensor, "batch all_layers d_model"]:
        """Activations at every layer: `read` is asked, in one pass, for those that this trunk does not have."""
        with self._shared():
            values = read(range(0 if self._read is None else self._below, self._lm.n_layers))
        if self._read is not None:
            return torch.cat([self._read, values], 1)
        self._read = values[:, : self._below].clone()
        return values

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Inside the context, a pass runs the blocks of the trunk and keeps what they give, or takes that in their place."""
        blocks = list(self._lm.blocks[: self._below])
        own = [vars(block).get("forward") for block in blocks]
        if blocks and not self._output:
            run = blocks[-1].forward

            def keep(*args: Any, **kwargs: Any) -> Any:
                self._output.append(run(*args, **kwargs))
                return self._output[0]

            blocks[-1].forward = keep
        else:
            for block in blocks:
                # whatever enters, so that a backbone may do what it likes between its blocks
                block.forward = lambda *_, **__: self._output[0]
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                vars(block).pop("forward", None)
                if forward is not None:
                    block.forward = forward


def common_blocks(lm: HookedLM, folders: Iterable[str | Path | None], site: str) -> int:
    """How many of the lowest blocks give the same under all these adapters (None is the bare base).

    0 where there is nothing to share: one state, a back end that runs blocks of its own, or a site without layers.
    """
    states = list(folders)
    if len(states) < 2 or lm.backend != "torch" or site == "embed":
        return 0
    changed = [first_adapted_block(folder, lm.layout.blocks) for folder in states if folder is not None]
    # a pass has to read at least one layer
    return min([*changed, lm.n_layers - 1])


def in_groups(
    lm: HookedLM, batches: Sequence[tuple[list[int], Batch]], below: int
) -> list[list[tuple[list[int], Batch]]]:
    """Batches in runs whose trunks fit into memory together, so that adapters are swapped once a run; without trunks one run."""
    groups: list[list[tuple[list[int], Batch]]] = [[]]
    held = 0
    for texts, batch in batches:
        size = batch.input_ids.numel() * lm.d_model * lm.dtype.itemsize if below else 0
        if held + size > TRUNK_BYTES and groups[-1]:
            groups.append([])
            held = 0
        groups[-1].append((texts, batch))
        held += size
    return groups

"""Token batches, and positions that are counted on each row's own tokens.

The padding side never changes a result: every activation is read through `pick`, which uses the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Positions: TypeAlias = Literal["last", "mean", "all"] | int | Sequence[int]
"""Where to read in each row: its last token, the mean over its tokens, all of them, or indices counted on its own
tokens without padding (negative ones from its end)."""


@dataclass(frozen=True, repr=False)
class Batch:
    """Token ids and their mask, padded to one length on either side."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    """1 on real tokens, 0 on padding; each row's real tokens are one unbroken run."""

    def __post_init__(self) -> None:
        if self.input_ids.ndim != 2 or self.input_ids.shape != self.attention_mask.shape:
            found = f"{tuple(self.input_ids.shape)} and {tuple(self.attention_mask.shape)}"
            raise ValueError(f"a batch is ids and a mask of one shape (batch, pos); found {found}.")
        object.__setattr__(self, "attention_mask", self.attention_mask.long())
        mask = self.attention_mask
        if mask.numel() == 0 or bool((mask.sum(1) == 0).any()):
            raise ValueError("a batch needs at least one row, and every row at least one token; is a text empty?")
        if bool((mask.diff(dim=1).abs().sum(1) + mask[:, 0] + mask[:, -1] > 2).any()):
            raise ValueError("the attention mask of a row has a hole; its real tokens must be one unbroken run.")

    def __repr__(self) -> str:
        rows, width = self.input_ids.shape
        return f"Batch({rows} rows x {width} positions, {int(self.lengths.sum())} tokens, {self.input_ids.device})"

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of real tokens of each row."""
        return self.attention_mask.sum(1)

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Index of each token among its row's real tokens; 0 on padding."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    def on_the_left(self) -> "Batch":
        """The same rows with all padding behind them."""
        columns = _from_first(self.attention_mask)
        return Batch(self.input_ids.gather(1, columns), self.attention_mask.gather(1, columns))

    def back(self, values: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Values of the batch `on_the_left`, where this batch has its tokens and padding."""
        places = _from_first(self.attention_mask).argsort(1)
        return values.gather(1, places[..., None].expand_as(values))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device))


def _from_first(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The columns of each row, the one of its first token first."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns[None] + mask.argmax(1, keepdim=True)) % mask.shape[1]


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, side: Literal["left", "right"] = "right") -> Batch:
    """Pad lists of token ids to one length.

    Raises:
        ValueError: no row, or an empty one.
    """

    def padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
        tensors = [torch.as_tensor(row, dtype=torch.long) for row in lists or [[]]]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    return Batch(padded(rows, pad_id), padded([[1] * len(row) for row in rows], 0))


def pick(values: Float[Tensor, "batch pos *rest"], mask: Int[Tensor, "batch pos"], positions: Positions) -> Tensor:
    """Read positions of each row, counted on its real tokens.

    Returns:
        (batch, *rest) for "last", "mean" and an int; (batch, k, *rest) for k ints; (batch, pos, *rest) for "all",
        aligned to the left with zeros after a row's end on either padding side. The mean is taken in float32.

    Raises:
        ValueError: an index outside some row, or an unknown word; the message names the row and its length.
    """
    first, length = mask.argmax(1), mask.sum(1)
    rows = torch.arange(len(mask), device=mask.device)
    if isinstance(positions, str):
        if positions == "last":
            return values[rows, first + length - 1]
        ones = [1] * (values.ndim - 2)
        if positions == "mean":
            weights = (mask.float() / length[:, None]).reshape(*mask.shape, *ones)
            return reduce(values.float() * weights, "batch pos ... -> batch ...", "sum").to(values.dtype)
        if positions == "all":
            index = torch.arange(values.shape[1], device=mask.device)[None] + first[:, None]
            picked = values[rows[:, None], index.clamp(max=values.shape[1] - 1)]
            return picked * real_tokens(mask).reshape(*mask.shape, *ones).to(values.dtype)
        raise ValueError(f'unknown positions {positions!r}; expected "last", "mean", "all", an int or ints.')
    wanted = [positions] if isinstance(positions, int) else list(positions)
    check_positions(wanted, length)
    index = torch.stack([first + p if p >= 0 else first + length + p for p in wanted], 1)
    picked = values[rows[:, None], index]
    return picked[:, 0] if isinstance(positions, int) else picked


def check_positions(positions: Sequence[int], lengths: Int[Tensor, " batch"]) -> None:
    """Check that every row has these positions.

    Raises:
        ValueError: no position, or one outside some row; the message names the row and its length.
    """
    if not positions:
        raise ValueError("positions is empty; name at least one index.")
    for p in positions:
        outside = (lengths <= p) if p >= 0 else (lengths < -p)
        if bool(outside.any()):
            row = int(outside.nonzero()[0, 0])
            raise ValueError(f"position {p} is outside row {row}, which has {int(lengths[row])} tokens.")


def pick_pattern(
    pattern: Float[Tensor, "batch head query key"], mask: Int[Tensor, "batch pos"], positions: Positions
) -> Tensor:
    """Read an attention pattern at query positions, as `pick` does; keys too are aligned to the left.

    Returns:
        (batch, head, key) for "last", "mean" and an int; (batch, head, k, key) for k ints;
        (batch, head, query, key) for "all". Keys after a row's end are zero.
    """
    by_key = pick(rearrange(pattern, "batch head query key -> batch key query head"), mask, "all")
    picked = pick(rearrange(by_key, "batch key query head -> batch query head key"), mask, positions)
    return rearrange(picked, "batch k head key -> batch head k key") if picked.ndim == 4 else picked


def real_tokens(mask: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which positions hold tokens after rows are aligned to the left, as `pick(..., "all")` returns them."""
    return torch.arange(mask.shape[1], device=mask.device)[None] < mask.sum(1, keepdim=True)

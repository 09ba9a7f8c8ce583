"""Edits of positions: an edit that sees chosen tokens of each row only, whatever the padding.

`HookedLM.hooks(edits, positions=...)` wraps each edit in a `PositionEdit` and tells it before each pass where the real
tokens of each row are. Back ends call it like any other edit, with the whole padded activation.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from elm_interp.models.backends.contract import Edit
from elm_interp.models.batch import Positions, check_positions
from elm_interp.models.changed import changed


class PositionEdit:
    """An edit of chosen positions of each row.

    Args:
        edit: gets the picked values and returns their replacement, or changes them in place.
        positions: "last", an index or indices, as for `pick`.
        pattern: whether the activation is an attention pattern, of which query positions are picked.

    Raises:
        ValueError: positions that no edit can have, such as "mean".
    """

    def __init__(self, edit: Edit, positions: Positions, *, pattern: bool = False) -> None:
        if isinstance(positions, str) and positions != "last":
            raise ValueError(f'cannot edit positions {positions!r}; expected "last", "all", an int or ints.')
        self.edit, self.pattern = edit, pattern
        self.single = isinstance(positions, str | int)
        index = -1 if isinstance(positions, str) else positions
        self.positions = [index] if isinstance(index, int) else list(index)
        self.mask: Int[Tensor, "batch key"] | None = None
        """Mask of the pass that runs now, with its cached tokens."""
        self.new = 0
        """Tokens that the pass runs, without cached ones."""
        self.acted: bool | None = None
        """Whether a row of a pass had one of the positions; None before any pass."""

    def __call__(self, value: Tensor) -> Tensor | None:
        """The whole activation with the chosen positions replaced; None if no row has them in this pass."""
        if self.mask is None:
            raise ValueError(
                "an edit of positions acts in passes of HookedLM only, which know the padding, such as lm.generate; "
                'for passes of lm.model itself give positions="all".'
            )
        mask = self.mask.to(value.device)
        columns, inside = self._columns(mask)
        here = bool(inside.any())
        self.acted = here or bool(self.acted)
        if not here:
            return None
        whole = rearrange(value, "batch head query key -> batch query head key") if self.pattern else value
        raw = whole[torch.arange(len(mask), device=mask.device)[:, None], columns]
        absent = ~inside.reshape(*inside.shape, *[1] * (raw.ndim - 2))
        # a position that this pass does not hold reads as zero, and its replacement is dropped
        if self.pattern:
            real = mask[:, -raw.shape[-1] :].bool()  # a sliding window has dropped the first keys
            order = (~real).int().argsort(dim=1, stable=True)[:, None, None].expand_as(raw)
            aligned = self._edited(raw.gather(-1, order).masked_fill(absent, 0))
            new = torch.where(real[:, None, None], raw.scatter(-1, order, aligned), raw)
        else:
            new = self._edited(raw.masked_fill(absent, 0))
        row, index = inside.nonzero(as_tuple=True)
        out = whole.clone()
        out[row, columns[row, index]] = new[row, index]
        return rearrange(out, "batch query head key -> batch head query key") if self.pattern else out

    def _columns(self, mask: Tensor) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
        """Column of each position among the new tokens, and whether it is one of them."""
        length, past = mask.sum(1, keepdim=True), mask.shape[1] - self.new
        asked = torch.tensor(self.positions, device=mask.device)
        index = torch.where(asked < 0, length + asked, asked)
        columns = torch.searchsorted(mask.cumsum(1), index + 1) - past
        inside = (index >= 0) & (index < length) & (columns >= 0)
        return columns.clamp(0, self.new - 1), inside

    def _edited(self, picked: Float[Tensor, "batch k ..."]) -> Float[Tensor, "batch k ..."]:
        """What the edit makes of the picked values, in the shape in which `run_with_cache` gives them."""
        given = picked[:, 0] if self.single else rearrange(picked, "b k h j -> b h k j") if self.pattern else picked
        new = self.edit(given)
        new = given if new is None else new
        if new.shape != given.shape:
            raise ValueError(f"an edit returned shape {tuple(new.shape)}, expected {tuple(given.shape)}, as it got.")
        new = new.to(picked.dtype)
        return new[:, None] if self.single else rearrange(new, "b h k j -> b k h j") if self.pattern else new


@contextmanager
def running(edits: Sequence[PositionEdit], mask: Int[Tensor, "batch key"], new: int, *, cached: bool) -> Iterator[None]:
    """Inside the context, a pass with this mask runs its last `new` tokens; after it, an outer pass goes on.

    Raises:
        ValueError: a pass without cached tokens that lacks a position in some row.
    """
    with ExitStack() as stack:
        for edit in edits:
            if not cached:
                check_positions(edit.positions, mask.sum(1))
            stack.enter_context(changed(edit, mask=mask, new=new))
        yield

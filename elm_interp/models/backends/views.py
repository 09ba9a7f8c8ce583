"""Views: a site as its users see it, made from what a module holds, and back.

A site is a module's input or output itself, or a part, a multiple or a sum of such (see `Place`). An edit of the site
changes what the module holds so that the site becomes what the edit returned.
"""

from collections.abc import MutableMapping

import torch
from einops import rearrange
from torch import Tensor

from elm_interp.models.backends.contract import Edit
from elm_interp.models.sites import Base, Place

Held = MutableMapping[Base, Tensor]
"""What was read where the pass came by earlier."""


def view(place: Place, raw: Tensor, held: Held) -> Tensor:
    """The site, of what its module holds."""
    value = raw[..., _index(place)] if place.part else raw
    value = value if place.scale == 1 else value * place.scale
    if place.base is not None:
        base = held[place.base]
        if value.ndim < base.ndim:
            value = torch.unflatten(value, 0, base.shape[:-1])
        if place.base.scale:
            value = value + (base if place.base.scale == 1 else base * place.base.scale)
    if place.heads and value.ndim == 3:
        value = rearrange(value, "... (head d_head) -> ... head d_head", head=place.heads)
    return value


def through(place: Place, edit: Edit, held: Held) -> Edit:
    """An edit of what a module holds, from an edit of the site."""
    if place.whole and not place.heads:
        return edit

    def edited(raw: Tensor) -> Tensor | None:
        old = view(place, raw, held)
        if place.whole:
            new = edit(old)
            return None if new is None else new.reshape(raw.shape)
        given = old.clone()
        new = edit(given)
        new = given if new is None else new
        return None if new is old or torch.equal(new, old) else _unview(place, raw, old, new, held)

    return edited


def _unview(place: Place, raw: Tensor, old: Tensor, new: Tensor, held: Held) -> Tensor:
    same = (new == old).reshape(*raw.shape[:-1], -1)
    if place.base is not None and place.base.scale:
        new = new - place.base.scale * held[place.base]
    new = new.reshape(*raw.shape[:-1], -1).to(raw.dtype) / place.scale
    # what an edit leaves alone stays the same to the bit
    new = torch.where(same, raw[..., _index(place)] if place.part else raw, new)
    return raw.index_copy(-1, _index(place).to(raw.device), new) if place.part else new


def _index(place: Place) -> Tensor:
    return torch.tensor(place.part)

"""Sites: the places in a model that can be read and edited, under TransformerLens's names.

    embed                              after the token embedding
    blocks.{l}.hook_resid_pre          the residual stream before block l
    blocks.{l}.attn.hook_q             queries as projected, before any norm and rotation, (batch, pos, head, d_head)
    blocks.{l}.attn.hook_k             keys, the same; heads that share keys and values have one here
    blocks.{l}.attn.hook_v             values, the same
    blocks.{l}.attn.hook_rot_q         queries and
    blocks.{l}.attn.hook_rot_k         keys as they are multiplied, after any norm and rotation
    blocks.{l}.attn.hook_attn_scores   what the softmax reads, with scale and mask, (batch, head, query, key)
    blocks.{l}.attn.hook_pattern       attention weights after the softmax, (batch, head, query, key)
    blocks.{l}.attn.hook_z             output of each attention head before its projection, (batch, pos, head, d_head)
    blocks.{l}.hook_attn_out           what attention adds to the stream
    blocks.{l}.hook_resid_mid          the stream between attention and MLP, where the MLP reads what attention added
    blocks.{l}.mlp.hook_pre            what the non-linearity of the MLP reads, (batch, pos, d_mlp)
    blocks.{l}.mlp.hook_post           MLP neurons after the non-linearity (and gate), (batch, pos, d_mlp)
    blocks.{l}.hook_mlp_out            what the MLP adds to the stream
    blocks.{l}.hook_resid_post         the residual stream after block l, before any final norm

They add up: resid_pre + attn_out + mlp_out = resid_post, which is checked when a model is loaded; where a family does
something else, these two are refused and the others are there. A masked score is the smallest number of its type.
The shape is (batch, pos, d_model) where none is given. Layer l is 0-based and means *after* block l. The short forms
(`resid_post`) name a site at every layer. What transformers calls `hidden_states[-1]` is after the final norm, so it is
no site.

A site is declared where it is defined, in any distribution:

    @site("gate", after="pre", inside="mlp.")
    def gate(layout: Layout, layer: int) -> tuple[str, Side]:
        return layout.inside(layer, "mlp", "act_fn"), "output"
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

from torch import nn

from elm_interp.errors import UnknownSiteError, unknown
from elm_interp.models.heads import split_of
from elm_interp.models.layout import Layout
from elm_interp.registry import SITES

Side: TypeAlias = Literal["input", "output", "rot_q", "rot_k", "attn_scores", "pattern"]
"""What of a module a site is: its first input, its (first) output, or what an attention module computes on the way."""
KEYED = ("attn_scores", "pattern")
"""Sides of the shape (batch, head, query, key)."""


class Base(NamedTuple):
    """What is read where a pass comes by earlier."""

    path: str
    side: Side
    scale: float
    """Factor of it in the site; 0 if only its shape is needed."""
    after: str
    """The site directly after which a pass comes by."""


class Place(NamedTuple):
    """Where a site is: a side of a module, and what of it. Plain data, because it travels to remote models."""

    path: str
    side: Side
    scale: float = 1.0
    """Factor between what is there and the site."""
    base: Base | None = None
    """What is added to it to make the site."""
    heads: int = 0
    """Number of heads into which the last axis is split; 0 for no split."""
    part: tuple[int, ...] = ()
    """Features of the last axis that are the site; () for all."""

    @property
    def whole(self) -> bool:
        """Whether the site is what is there, in another shape at most."""
        return self.scale == 1 and self.base is None and not self.part


Placing: TypeAlias = Callable[[Layout, int], tuple[str, Side] | Place]
"""From the layout of a model and a layer to the path of a module and the side of it."""

_FULL = re.compile(r"blocks\.(\d+)\.(?:\w+\.)*hook_(\w+)")


@dataclass(frozen=True)
class SiteKind:
    """A declared site; see `site`."""

    name: str
    place: Placing
    after: str | None
    inside: str
    split_heads: bool
    in_blocks: bool


def site(
    name: str, *, after: str | None = None, inside: str = "", split_heads: bool = False, in_blocks: bool = True
) -> Callable[[Placing], Placing]:
    """Declare a site.

    Args:
        name: short name, such as "resid_post"; the full name is `blocks.{layer}.{inside}hook_{name}`.
        after: the site that a forward pass reaches directly before this one; None for the first.
        inside: the part of TransformerLens's name between layer and hook, such as "attn.".
        split_heads: whether the last axis is split into (head, d_head).
        in_blocks: whether each block has one; otherwise there is one in the model, and its full name is its short name.

    Raises:
        ConfigError: the name is taken.
    """

    def declare(place: Placing) -> Placing:
        SITES.add(name, SiteKind(name, place, after, inside, split_heads, in_blocks), origin=place)
        return place

    return declare


@dataclass(frozen=True, order=True)
class Site:
    """One place: a short name and a layer."""

    layer: int
    """0-based block index; -1 for a site outside the blocks, such as the embedding."""
    name: str
    """Short name of a declared site."""

    @property
    def kind(self) -> SiteKind:
        """How the site was declared."""
        return cast(SiteKind, SITES[self.name])

    @property
    def full_name(self) -> str:
        """TransformerLens's name, such as `blocks.7.hook_resid_post`."""
        return f"blocks.{self.layer}.{self.kind.inside}hook_{self.name}" if self.kind.in_blocks else self.name

    def find(self, model: nn.Module, layout: Layout) -> Place:
        """Where this site is in a model.

        Raises:
            UnknownSiteError: the model has no such site.
        """
        place = Place(*self.kind.place(layout, self.layer))
        for path in (place.path, *([place.base.path] if place.base else [])):
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                kind = type(model).__name__
                raise UnknownSiteError(f"this {kind} has no site {self}: it has no module {path}.") from error
            if isinstance(module, nn.ModuleList):
                raise UnknownSiteError(f"this model has no site {self}: {path} is {len(module)} modules.")
            if isinstance(module, nn.Identity) and place.side != "output":
                raise UnknownSiteError(f"this {type(model).__name__} has no site {self}: {path} does nothing.")
        if not self.kind.split_heads and self.name != "pre":
            return place
        split = split_of(self.name, model, layout, self.layer)
        if split is None:
            kind = type(model.get_submodule(layout.block(self.layer, layout.attn))).__name__
            raise UnknownSiteError(f"this model has no site {self}: {place.path} of {kind} holds no whole heads.")
        return place._replace(heads=split.heads, part=split.part)

    def __str__(self) -> str:
        return self.full_name


def site_names() -> list[str]:
    """Short names of all sites, in the order in which a forward pass reaches them."""
    following: dict[str | None, list[str]] = {}
    for name, kind in SITES.items():
        if kind.after is not None and kind.after not in SITES:
            raise unknown(f"site after which {name!r} is declared:", kind.after, SITES, UnknownSiteError)
        following.setdefault(kind.after, []).append(name)

    def walk(name: str) -> list[str]:
        # of two sites after one, the one declared later comes first: it was put between two that were there
        return [name, *(found for after in reversed(following.get(name, ())) for found in walk(after))]

    return [found for first in following[None] for found in walk(first)]


def in_pass_order(sites: Iterable[Site]) -> list[Site]:
    """Sites sorted as a forward pass reaches them."""
    names = site_names()
    first_in_block = next(rank for rank, name in enumerate(names) if SITES[name].in_blocks)

    def order(site: Site) -> tuple[float, int]:
        rank = names.index(site.name)
        outside = float("-inf") if rank < first_in_block else float("inf")
        return site.layer if site.kind.in_blocks else outside, rank

    return sorted(sites, key=order)


def resolve_sites(sites: Iterable[str] | str, layers: Iterable[int] | int | None, n_layers: int) -> list[Site]:
    """Turn names as users write them into sites; a short name stands for the chosen layers.

    Args:
        sites: full names, short names, or both.
        layers: layers of short names; negative ones count from the end; None means all.
        n_layers: number of blocks of the model.

    Raises:
        UnknownSiteError: a name or layer that the model does not have; the message lists those that it has.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    chosen = range(n_layers) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    if not sites:
        raise UnknownSiteError(f"no site asked for; name at least one of {', '.join(site_names())}.")
    found: list[Site] = []
    for name in sites:
        full, short = _FULL.fullmatch(name), name.removeprefix("hook_")
        if full and full[2] in SITES and name == Site(int(full[1]), full[2]).full_name:
            found.append(Site(_check_layer(int(full[1]), n_layers), full[2]))
        elif not full and short in SITES:
            checked = (_check_layer(layer, n_layers) for layer in chosen) if SITES[short].in_blocks else (-1,)
            found += [Site(layer, short) for layer in checked]
        else:
            kinds = [SITES[known] for known in site_names()]
            full_names = [f"blocks.{{0..{n_layers - 1}}}.{k.inside}hook_{k.name}" for k in kinds if k.in_blocks]
            raise unknown("site", name, [*(kind.name for kind in kinds), *full_names], UnknownSiteError)
    if not found:
        raise UnknownSiteError(f"no layer asked for; this model has layers 0 to {n_layers - 1}.")
    return list(dict.fromkeys(found))


def _check_layer(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise UnknownSiteError(f"unknown layer {layer}: this model has layers 0 to {n_layers - 1}.")
    return layer % n_layers


def _resid(name: str, side: Side) -> Placing:
    def place(layout: Layout, layer: int) -> Place:
        if layout.streams:
            raise UnknownSiteError(f"this model has no site {Site(layer, name)}: {layout.streams}")
        return Place(layout.block(layer), side)

    return place


def _stream(layout: Layout, layer: int, part: str) -> Place:
    """What the attention or the MLP adds to the stream."""
    added, norm, proj = (getattr(layout, f"{part}_{what}") for what in ("added", "norm", "proj"))
    if layout.unsummed:
        raise UnknownSiteError(f"this model has no site {Site(layer, f'{part}_out')}: {layout.unsummed}")
    path = layout.block(layer, added or norm or getattr(layout, part) or proj)
    base = None
    if part == "mlp" and layout.experts:
        base = Base(layout.block(layer, layout.experts), "output", layout.scale, "resid_mid")
    elif part == "mlp" and layout.flat:
        base = _rows(layout, layer)
    return Place(path, "output", layout.scale, base)


def _rows(layout: Layout, layer: int) -> Base:
    return Base(layout.block(layer), "input", 0.0, "resid_pre")


def _between(layout: Layout, layer: int) -> Place:
    if layout.parallel:
        raise UnknownSiteError(
            f"this model has no site {Site(layer, 'resid_mid')}: its MLP reads the stream before attention is added."
        )
    added = _stream(layout, layer, "attn")
    return added._replace(base=Base(layout.block(layer), "input", 1.0, "resid_pre"))


def _projection(layout: Layout, layer: int, part: str) -> Place:
    path, name = layout.block(layer, getattr(layout, part)), getattr(layout, f"{part}_proj")
    if not name:
        site = Site(layer, {"attn": "z", "mlp": "post"}[part])
        raise UnknownSiteError(
            f"this model has no site {site}: no single output projection was found in {path}; "
            f"pass layout=Layout(..., {part}_proj=...) if there is one."
        )
    base = _rows(layout, layer) if part == "mlp" and layout.flat else None
    return Place(layout.inside(layer, part, name), "input", base=base)


def _before_activation(layout: Layout, layer: int) -> Place:
    if not layout.mlp_in:
        path = layout.block(layer, layout.mlp)
        raise UnknownSiteError(
            f"this model has no site {Site(layer, 'pre')}: no single input projection was found in {path}; "
            "pass layout=Layout(..., mlp_in=...) if there is one."
        )
    base = _rows(layout, layer) if layout.flat else None
    return Place(layout.inside(layer, "mlp", layout.mlp_in), "output", base=base)


def _head_input(which: int) -> Placing:
    def place(layout: Layout, layer: int) -> Place:
        if not layout.qkv:
            path = layout.block(layer, layout.attn)
            raise UnknownSiteError(
                f"this model has no site {Site(layer, 'qkv'[which])}: no projections to queries, keys and values were "
                f"found in {path}; pass layout=Layout(..., qkv=...) if there are any."
            )
        return Place(layout.inside(layer, "attn", layout.qkv[min(which, len(layout.qkv) - 1)]), "output")

    return place


def _attention(side: Side) -> Placing:
    return lambda layout, layer: (layout.block(layer, layout.attn), side)


site("embed", in_blocks=False)(lambda layout, _: (layout.embed, "output"))
site("resid_pre", after="embed")(_resid("resid_pre", "input"))
site("q", after="resid_pre", inside="attn.", split_heads=True)(_head_input(0))
site("k", after="q", inside="attn.", split_heads=True)(_head_input(1))
site("v", after="k", inside="attn.", split_heads=True)(_head_input(2))
site("rot_q", after="v", inside="attn.")(_attention("rot_q"))
site("rot_k", after="rot_q", inside="attn.")(_attention("rot_k"))
site("attn_scores", after="rot_k", inside="attn.")(_attention("attn_scores"))
site("pattern", after="attn_scores", inside="attn.")(_attention("pattern"))
site("z", after="pattern", inside="attn.", split_heads=True)(lambda layout, layer: _projection(layout, layer, "attn"))
site("attn_out", after="z")(lambda layout, layer: _stream(layout, layer, "attn"))
site("resid_mid", after="attn_out")(_between)
site("pre", after="resid_mid", inside="mlp.")(_before_activation)
site("post", after="pre", inside="mlp.")(lambda layout, layer: _projection(layout, layer, "mlp"))
site("mlp_out", after="post")(lambda layout, layer: _stream(layout, layer, "mlp"))
site("resid_post", after="mlp_out")(_resid("resid_post", "output"))

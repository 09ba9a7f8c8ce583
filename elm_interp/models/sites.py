"""Sites: the places in a model that can be read and edited, under TransformerLens's names.

    embed                          after the token (and position) embedding
    blocks.{l}.hook_resid_pre      the residual stream before block l
    blocks.{l}.attn.hook_pattern   attention weights after the softmax, (batch, head, query, key)
    blocks.{l}.attn.hook_z         output of each attention head before its projection, (batch, pos, head, d_head)
    blocks.{l}.hook_attn_out       what attention adds to the stream
    blocks.{l}.mlp.hook_post       MLP neurons after the non-linearity (and gate), (batch, pos, d_mlp)
    blocks.{l}.hook_mlp_out        what the MLP adds to the stream
    blocks.{l}.hook_resid_post     the residual stream after block l, before any final norm

The shape is (batch, pos, d_model) where none is given. Layer l is 0-based and means *after* block l. The short forms
(`resid_post`) name a site at every layer. What transformers calls `hidden_states[-1]` is after the final norm, so it is
no site.

A site is declared where it is defined, in any distribution:

    @site("resid_mid", after="attn_out")
    def resid_mid(layout: Layout, layer: int) -> tuple[str, Side]:
        return layout.block(layer, "post_attention_layernorm"), "input"
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from torch import nn

from elm_interp.errors import UnknownSiteError, unknown
from elm_interp.models.layout import Layout
from elm_interp.registry import SITES

Side: TypeAlias = Literal["input", "output", "pattern"]
"""What of a module a site is: its first input, its (first) output, or the attention weights that it computes."""
Place: TypeAlias = Callable[[Layout, int], tuple[str, Side]]
"""From the layout of a model and a layer to the path of a module and the side of it."""

_FULL = re.compile(r"blocks\.(\d+)\.(?:\w+\.)*hook_(\w+)")


@dataclass(frozen=True)
class SiteKind:
    """A declared site; see `site`."""

    name: str
    place: Place
    after: str | None
    inside: str
    split_heads: bool
    in_blocks: bool


def site(
    name: str, *, after: str | None = None, inside: str = "", split_heads: bool = False, in_blocks: bool = True
) -> Callable[[Place], Place]:
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

    def declare(place: Place) -> Place:
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

    def find(self, model: nn.Module, layout: Layout) -> tuple[str, Side]:
        """The path of the module that holds this site, and what of the module it is.

        Raises:
            UnknownSiteError: the model has no such site.
        """
        path, side = self.kind.place(layout, self.layer)
        try:
            model.get_submodule(path)
        except AttributeError as error:
            kind = type(model).__name__
            raise UnknownSiteError(f"this {kind} has no site {self}: it has no module {path}.") from error
        return path, side

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


site("embed", in_blocks=False)(lambda layout, _: (layout.embed, "output"))
site("resid_pre", after="embed")(lambda layout, layer: (layout.block(layer), "input"))
site("pattern", after="resid_pre", inside="attn.")(lambda layout, layer: (layout.block(layer, layout.attn), "pattern"))
site("z", after="pattern", inside="attn.", split_heads=True)(lambda layout, layer: _projection(layout, layer, "attn"))
site("attn_out", after="z")(lambda layout, layer: (layout.block(layer, layout.attn_norm or layout.attn), "output"))
site("post", after="attn_out", inside="mlp.")(lambda layout, layer: _projection(layout, layer, "mlp"))
site("mlp_out", after="post")(lambda layout, layer: (layout.block(layer, layout.mlp_norm or layout.mlp), "output"))
site("resid_post", after="mlp_out")(lambda layout, layer: (layout.block(layer), "output"))


def _projection(layout: Layout, layer: int, part: str) -> tuple[str, Side]:
    path, name = layout.block(layer, getattr(layout, part)), getattr(layout, f"{part}_proj")
    if not name:
        site = Site(layer, {"attn": "z", "mlp": "post"}[part])
        raise UnknownSiteError(
            f"this model has no site {site}: no single output projection was found in {path}; "
            f"pass layout=Layout(..., {part}_proj=...) if there is one."
        )
    return f"{path}.{name}", "input"

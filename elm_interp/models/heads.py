"""Heads: which outputs of a projection belong to which head, and which of a fused one are queries, keys or values."""

from typing import Any, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from elm_interp.models.layout import Layout


class Split(NamedTuple):
    """What of the last axis of an activation is a site, and into how many heads it is split."""

    heads: int
    part: tuple[int, ...] = ()
    """Indices of features, head by head; () for all of them."""


def split_of(name: str, model: nn.Module, layout: Layout, layer: int) -> Split | None:
    """The split of the site `q`, `k`, `v`, `z` or `pre`; None if its projection holds other things than whole heads."""
    block = model.get_submodule(layout.block(layer))
    if name == "pre":
        return _gate(block, layout)
    attention: Any = block.get_submodule(layout.attn)
    count = head_count(model)
    if name == "z":
        return _whole(width(attention.get_submodule(layout.attn_proj), 0), _size(attention, "v_head_dim"), count)
    modules = dict(attention.named_modules())
    if not modules.keys() >= set(layout.qkv):  # of other kind than the attention in which these were found
        return None
    widths = [width(modules[path], 1) for path in layout.qkv]
    which = "qkv".index(name)
    if len(widths) == 3:
        own = _size(attention) or (widths[0] // count if widths[0] % count == 0 else 0)
        found = _whole(widths[which], own, count)
        # some projections to queries make their gates too
        gated = name == "q" and layout.attn_proj and found != split_of("z", model, layout, layer)
        return None if gated else found
    size = _size(attention) or _of_queries(attention, layout, count)
    return _fused(attention, layout.qkv[0], widths[0], size, count)[which] if size else None


def head_count(model: nn.Module) -> int:
    """Number of attention heads."""
    config: Any = model.config
    return int(config.get_text_config().num_attention_heads)


def width(module: nn.Module, side: int) -> int:
    """Number of inputs (0) or outputs (1) of a linear layer, with or without an adapter; 0 of another module."""
    layer: Any = getattr(module, "base_layer", module)
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[side])
    return int(getattr(layer, ("in_features", "out_features")[side], 0))


def _size(attention: Any, name: str = "head_dim") -> int:
    """Width of a head, as the attention module tells it; 0 if it does not."""
    found = getattr(attention, name, None) or getattr(attention, "head_dim", None)
    return found if isinstance(found, int) else 0


def _of_queries(attention: Any, layout: Layout, count: int) -> int:
    return width(attention.get_submodule(layout.attn_proj), 0) // count if layout.attn_proj else 0


def _whole(total: int, size: int, count: int) -> Split | None:
    if size and total and total % size == 0:
        return Split(total // size)
    return Split(count) if total and total % count == 0 else None


def _gate(block: nn.Module, layout: Layout) -> Split:
    """All outputs of the MLP's first projection, or the first half if it makes gate and values in one."""
    mlp = block.get_submodule(layout.mlp)
    made = width(mlp.get_submodule(layout.mlp_in), 1)
    needed = width(mlp.get_submodule(layout.mlp_proj), 0) if layout.mlp_proj else made
    return Split(0, tuple(range(needed)) if made == 2 * needed else ())


def _fused(attention: Any, name: str, total: int, size: int, count: int) -> list[Split | None]:
    """The splits of queries, keys and values in one projection."""
    count = getattr(attention, "num_heads", count) if isinstance(getattr(attention, "num_heads", None), int) else count
    groups, rest = divmod(total - count * size, 2 * size)
    if rest or groups < 1 or count % groups:
        return [None] * 3
    slots: list[str]
    if type(attention).__name__.startswith("CodeGen"):
        slots = (["q"] * (count // 4) + ["v"] * (count // 4) + ["k"] * (count // 4)) * 4
    elif name == "query_key_value" or hasattr(attention, "multi_query"):
        slots = (["q"] * (count // groups) + ["k", "v"]) * groups
    else:
        slots = ["q"] * count + ["k"] * groups + ["v"] * groups
    found: list[Split | None] = []
    for which in "qkv":
        heads = [i for i, slot in enumerate(slots) if slot == which]
        found.append(Split(len(heads), tuple(i * size + j for i in heads for j in range(size))))
    return found

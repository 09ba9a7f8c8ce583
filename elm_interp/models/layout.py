"""Layout: where the parts of a decoder-only model are, found by structure.

    layout = find_layout(model)          # of a causal language model of transformers
    layout.blocks, layout.attn           # "model.layers", "self_attn"

`load_model(..., layout=Layout(...))` overrides what is found, for a model with an unusual structure.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from elm_interp.errors import LayoutError

_ATTENTION_NAMES = (
    "attn.attention",
    "norm_attn_norm.attn",
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "multi_head_attention",
)
_MLP_NAMES = ("shared_mlp", "mlp", "feed_forward", "ffn", "block_sparse_moe")
_LOOSE_MLP = ("fc1", "fc2")
"""Projections of an MLP that has no module of its own (OPT, XGLM, BioGPT)."""
_EXPERTS = "block_sparse_moe"
_OTHER_MIXERS = re.compile(r"mamba|conv|linear_attn|recurrent(?!.*norm)|ssm|mixer|lstm|gated_delta", re.I)
_ENCODERS = ("intermediate", "self_att", "rel_attn", "q_lin")
"""Parts that the blocks of encoders have, which attend to what comes after too (BERT, CPM-Ant, XLNet, XLM)."""
_CROSSING = "cross_attn_layers"
"""Layers between stacks of blocks (BLT)."""
_CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")
_ATTENTION_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj", "Wo")
_MLP_OUTPUTS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "output_linear", "Wo", "2")
_MLP_INPUTS = (
    "gate_proj",
    "gate_up_proj",
    "c_fc",
    "dense_h_to_4h",
    "fc1",
    "fc_in",
    "up_proj",
    "input_linear",
    "Wi",
    "0",
)
"""The projection that the non-linearity reads; of a gated MLP the gate, or gate and values in one, gate first."""
_QKV = (("q_proj", "k_proj", "v_proj"), ("Wq", "Wk", "Wv"), ("query_key_value",), ("c_attn",), ("qkv_proj",), ("Wqkv",))
_NORMS_AFTER = (  # or convolutions (Inkling)
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_mlp_layernorm"),
    ("post_norm1", "post_norm2"),
    ("attn_sconv", "mlp_sconv"),
)
# a block has norms after its modules only if it has both: Llama's post_attention_layernorm is the norm before its MLP
_SCALES = ("residual_multiplier", "residual_scale")


@dataclass(frozen=True, repr=False)
class Layout:
    """Where the parts of a model are, as module paths below the causal language model."""

    blocks: str
    """The list of decoder blocks, such as `model.layers`."""
    attn: str
    """Attention module inside a block, such as `self_attn`."""
    mlp: str
    """MLP module inside a block, such as `mlp`; "" if its projections stand in the block itself."""
    embed: str
    """Token embedding, such as `model.embed_tokens`."""
    final_norm: str
    """Norm, or projection to another width (OPT 350M), between the last block and the hidden states that the backbone
    returns, such as `model.norm`; "" for none (GPT-1)."""
    attn_norm: str = ""
    """Norm inside a block between attention and the residual stream (Gemma 2, OLMo 2); "" for none."""
    mlp_norm: str = ""
    """Norm inside a block between the MLP and the residual stream; "" for none."""
    attn_proj: str = ""
    """Output projection inside the attention module, such as `o_proj`; "" means that there is no site `z`."""
    mlp_proj: str = ""
    """Output projection inside the MLP, such as `down_proj`; "" means that there is no site `post`."""
    mlp_in: str = ""
    """Projection inside the MLP that its non-linearity reads, such as `gate_proj`; "" means that there is no `pre`."""
    qkv: tuple[str, ...] = ()
    """Projections inside attention to queries, keys and values, or the one to all three; () for no `q`, `k`, `v`."""
    attn_added: str = ""
    """Module inside a block whose output is what attention adds to the stream, where that is neither the output of
    `attn` nor of `attn_norm` (BLOOM adds inside its attention); "" where it is."""
    mlp_added: str = ""
    """The same of the MLP."""
    experts: str = ""
    """Module inside a block whose output is added to the MLP's (Granite's experts beside a shared MLP)."""
    head: str = ""
    """Module between these hidden states and the unembedding (ModernBERT's decoder); "" for none."""
    scale: float = 1.0
    """Factor of all that is added to the stream (Granite's residual multiplier)."""
    flat: bool = False
    """Whether the MLP sees the positions of all rows in one axis (OPT, Llama 4)."""
    parallel: bool = False
    """Whether attention and MLP read the same stream, so that there is no stream between them."""
    streams: str = ""
    """Why there is no single residual stream, and so no `resid_pre` and `resid_post`; "" if there is one."""
    unsummed: str = ""
    """Why what attention and MLP add is not known, so that there are no `attn_out` and `mlp_out`; "" if it is."""

    @property
    def backbone(self) -> str:
        """The module that runs embedding, blocks and final norm, but not the unembedding."""
        return self.blocks.rpartition(".")[0]

    def backbone_of(self, model: nn.Module) -> nn.Module:
        """The backbone of a model with this layout."""
        return model.get_submodule(self.backbone)

    def norm_of(self, model: nn.Module) -> nn.Module:
        """The norm between the last block and the unembedding of a model with this layout."""
        return model.get_submodule(self.final_norm) if self.final_norm else nn.Identity()

    def block(self, layer: int, part: str = "") -> str:
        """The path of a block, or of a module inside it."""
        return f"{self.blocks}.{layer}" + (f".{part}" if part else "")

    def inside(self, layer: int, part: str, module: str) -> str:
        """The path of a module inside the attention or the MLP ("attn" or "mlp") of a block."""
        return ".".join(filter(None, (self.block(layer), getattr(self, part), module)))

    def __repr__(self) -> str:
        return f"Layout({self.blocks}: {self.attn} + {self.mlp}; {self.embed}, {self.final_norm})"


def find_layout(model: PreTrainedModel, override: Layout | None = None) -> Layout:
    """Find the parts of a decoder-only model by structure, and check them.

    Args:
        model: a causal language model (not a `PeftModel`).
        override: paths to use instead, for a model with an unusual structure.

    Raises:
        LayoutError: a part could not be found; the message names it and the `Layout` argument that gives it.
    """
    if override is not None:
        return _checked(model, override)
    path, blocks, attn, mlp = _find_blocks(model)
    children = dict(blocks[0].named_children())
    attn_norm, mlp_norm = next((pair for pair in _NORMS_AFTER if all(name in children for name in pair)), ("", ""))
    embedding, head = model.get_input_embeddings(), getattr(model, "lm_head", None)
    found = Layout(
        blocks=path,
        attn=attn,
        mlp=mlp,
        embed=next((name for name, module in model.named_modules() if module is embedding), ""),
        final_norm=_final_norm(model, path),
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
        attn_proj=_projection(blocks, attn, _ATTENTION_OUTPUTS),
        mlp_proj=_projection(blocks, mlp, _MLP_OUTPUTS),
        mlp_in=_projection(blocks, mlp, _MLP_INPUTS),
        qkv=next((names for names in _QKV if all(_projection(blocks, attn, (name,)) for name in names)), ()),
        head="lm_head" if head is not None and model.get_output_embeddings() not in set(head.modules()) else "",  # type: ignore[no-untyped-call]
        experts=_EXPERTS if _EXPERTS in children and mlp != _EXPERTS else "",
        scale=next((float(s) for name in _SCALES if isinstance(s := getattr(blocks[0], name, None), int | float)), 1.0),
    )
    return _checked(model, found)


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList, str, str]:
    """Path and list of the decoder blocks, and the names of attention and MLP in them."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists, others = [], []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if _CROSSING in path:
            raise LayoutError(
                f"{type(model).__name__} has no one list of decoder blocks: between several stacks it has {path} "
                f"({type(module[0]).__name__})."
            )
        parts = [(_first(block, _ATTENTION_NAMES), _mlp_of(block)) for block in module]
        attn, mlp = parts[0]
        backbone = model.get_submodule(path.rpartition(".")[0])
        # without that, it is an image or audio tower, or the blocks of a cell
        reads_text = "input_ids" in inspect.signature(type(backbone).forward).parameters
        if reads_text and all(attn and mlp is not None for attn, mlp in parts) and not _foreign(module):
            lists.append((path, module, attn, cast(str, mlp)))
        else:
            others.append((reads_text, len(module), module, type(backbone).__name__))
    if not lists:
        raise LayoutError(
            f"found no list of {depth} decoder blocks with attention and MLP in {type(model).__name__}"
            f"{_described(max(others, key=lambda found: found[:2], default=None))}; "
            "pass layout=Layout(blocks=..., attn=..., mlp=..., embed=..., final_norm=...)."
        )
    return max(lists, key=lambda found: (len(found[1]) == depth, len(found[1])))


def _mlp_of(block: nn.Module) -> str | None:
    """The path of the MLP in a block, "" if its projections stand in the block, None if there is none."""
    if name := _first(block, _MLP_NAMES):
        return name
    return "" if all(_first(block, (name,)) for name in _LOOSE_MLP) else None


def _foreign(blocks: nn.ModuleList) -> bool:
    """Whether some blocks attend to an encoder."""
    return any(_first(block, _CROSS_ATTENTION) for block in blocks)


def _described(found: tuple[bool, int, nn.ModuleList, str] | None) -> str:
    """What the blocks have that decoder blocks have not, for an error."""
    kinds: dict[str, None] = {}
    names = {name for block in found[2] for name, _ in block.named_children()} if found else set()
    why = f"{found[3]}, which runs them, reads no tokens: " if found and not found[0] else ""
    why = "an encoder's: " if names.intersection(_ENCODERS) else why
    for block in found[2] if found else ():
        parts = {name: type(part).__name__ for name, part in block.named_children()}
        special = [f"{name} ({kind})" for name, kind in parts.items() if _OTHER_MIXERS.search(f"{name} {kind}")]
        special += [f"{name} ({kind})" for name, kind in parts.items() if name in _CROSS_ATTENTION]
        known = [f"{name} ({kind})" for name, kind in parts.items()]
        kinds[f"{type(block).__name__} has {', '.join(special or known)}"] = None
    return f" ({why}its {'; '.join(kinds)})" if kinds else ""


def other_mixers(model: nn.Module, layout: Layout) -> str:
    """The layers of a model's blocks that carry a state or convolve, for an error; "" if there are none."""
    blocks = cast(nn.ModuleList, model.get_submodule(layout.blocks))
    found = _described((True, len(blocks), blocks, ""))
    return found if _OTHER_MIXERS.search(found) else ""


def _first(parent: nn.Module, paths: Iterable[str]) -> str:
    """The first of the paths at which there is a module; "" if there is none."""
    return next((path for path in paths if isinstance(_at(parent, path), nn.Module)), "")


def _at(parent: nn.Module, path: str) -> nn.Module | None:
    try:
        return parent.get_submodule(path)
    except AttributeError:
        return None


def _final_norm(model: PreTrainedModel, blocks: str) -> str:
    """The path of the norm after the blocks: the first one that stands behind them, else one named as final."""
    backbone, _, name = blocks.rpartition(".")
    siblings = [child for child, _ in model.get_submodule(backbone).named_children()]
    norms = [n for n in siblings if "norm" in n.lower() or n.startswith("ln")]
    behind = [n for n in norms if siblings.index(n) > siblings.index(name)]
    named = [n for n in norms if "final" in n]
    others = [n for n in siblings if n == "project_out"]
    return next((f"{backbone}.{n}".lstrip(".") for n in (*behind, *named, *others)), "")


def _projection(blocks: nn.ModuleList, part: str, names: tuple[str, ...]) -> str:
    """The first of the names that the part has in some block; "" if there is none."""
    found = [_first(parent, names) for block in blocks if (parent := _at(block, part)) is not None]
    return next(filter(None, found), "")


def _checked(model: PreTrainedModel, layout: Layout) -> Layout:
    blocks = _get(model, layout.blocks, "blocks")
    if not isinstance(blocks, nn.ModuleList):
        raise LayoutError(f"{layout.blocks} is {type(blocks).__name__}, expected the ModuleList of decoder blocks.")
    for block in blocks:
        for part in ("attn", "mlp"):
            if getattr(layout, part) or not layout.mlp_proj:
                _get(block, getattr(layout, part), part)
            if path := getattr(layout, f"{part}_norm"):
                _get(block, path, f"{part}_norm")
    for part in ("attn_proj", "mlp_proj"):
        path, holder = getattr(layout, part), getattr(layout, part.partition("_")[0])
        if path and not _projection(blocks, holder, (path,)):
            _get(blocks[0].get_submodule(holder), path, part)
    _get(model, layout.embed, "embed")
    if layout.final_norm:
        _get(model, layout.final_norm, "final_norm")
    unembedding = cast(nn.Module | None, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    if not isinstance(getattr(unembedding, "weight", None), torch.Tensor):
        raise LayoutError(f"{type(model).__name__} has no unembedding (get_output_embeddings() returns none).")
    return layout


def _get(parent: nn.Module, path: str, part: str) -> nn.Module:
    try:
        if not path:
            raise AttributeError
        return parent.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in parent.named_children())
        raise LayoutError(
            f"the {part} module {path or '(none found)'} is not in {type(parent).__name__}, which has: {children}. "
            f"Pass layout=Layout(..., {part}=...) with its path."
        ) from None

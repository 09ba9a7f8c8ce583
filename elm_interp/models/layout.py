"""Layout: where the parts of a decoder-only model are, found by structure.

    layout = find_layout(model)          # of a causal language model of transformers
    layout.blocks, layout.attn           # "model.layers", "self_attn"

`load_model(..., layout=Layout(...))` overrides what is found, for a model with an unusual structure.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from elm_interp.errors import LayoutError

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTION_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj")
_MLP_OUTPUTS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
_NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
# a block has norms after its modules only if it has both: Llama's post_attention_layernorm is the norm before its MLP


@dataclass(frozen=True, repr=False)
class Layout:
    """Where the parts of a model are, as module paths below the causal language model."""

    blocks: str
    """The list of decoder blocks, such as `model.layers`."""
    attn: str
    """Attention module inside a block, such as `self_attn`."""
    mlp: str
    """MLP module inside a block, such as `mlp`."""
    embed: str
    """Token embedding, such as `model.embed_tokens`."""
    final_norm: str
    """Norm between the last block and the unembedding, such as `model.norm`."""
    attn_norm: str = ""
    """Norm inside a block between attention and the residual stream (Gemma 2, OLMo 2); "" for none."""
    mlp_norm: str = ""
    """Norm inside a block between the MLP and the residual stream; "" for none."""
    attn_proj: str = ""
    """Output projection inside the attention module, such as `o_proj`; "" means that there is no site `z`."""
    mlp_proj: str = ""
    """Output projection inside the MLP, such as `down_proj`; "" means that there is no site `post`."""

    @property
    def backbone(self) -> str:
        """The module that runs embedding, blocks and final norm, but not the unembedding."""
        return self.blocks.rpartition(".")[0]

    def backbone_of(self, model: nn.Module) -> nn.Module:
        """The backbone of a model with this layout."""
        return model.get_submodule(self.backbone)

    def block(self, layer: int, part: str = "") -> str:
        """The path of a block, or of a module inside it."""
        return f"{self.blocks}.{layer}" + (f".{part}" if part else "")

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
    backbone_path, _, list_name = path.rpartition(".")
    embedding = model.get_input_embeddings()
    siblings = [name for name, _ in model.get_submodule(backbone_path).named_children()]
    norms = [n for n in siblings[siblings.index(list_name) + 1 :] if "norm" in n.lower() or n.startswith("ln")]
    found = Layout(
        blocks=path,
        attn=attn,
        mlp=mlp,
        embed=next((name for name, module in model.named_modules() if module is embedding), ""),
        final_norm=f"{backbone_path}.{norms[0]}".lstrip(".") if norms else "",
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
        attn_proj=_projection(blocks, attn, _ATTENTION_OUTPUTS),
        mlp_proj=_projection(blocks, mlp, _MLP_OUTPUTS),
    )
    return _checked(model, found)


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList, str, str]:
    """Path and list of the decoder blocks, and the names of attention and MLP in them."""
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and depth in (None, len(module)):
            children = [name for name, _ in module[0].named_children()]
            attn, mlp = (next(filter(children.__contains__, names), "") for names in (_ATTENTION_NAMES, _MLP_NAMES))
            if attn and mlp:
                lists.append((path, module, attn, mlp))
    if not lists:
        raise LayoutError(
            f"found no list of {depth} decoder blocks with attention and MLP in {type(model).__name__}; "
            "pass layout=Layout(blocks=..., attn=..., mlp=..., embed=..., final_norm=...)."
        )
    return max(lists, key=lambda found: len(found[1]))


def _projection(blocks: nn.ModuleList, part: str, names: tuple[str, ...]) -> str:
    """The first of the names that the part has in every block; "" if there is none."""
    parts = [getattr(block, part, None) for block in blocks]
    return next((name for name in names if all(isinstance(getattr(p, name, None), nn.Module) for p in parts)), "")


def _checked(model: PreTrainedModel, layout: Layout) -> Layout:
    blocks = _get(model, layout.blocks, "blocks")
    if not isinstance(blocks, nn.ModuleList):
        raise LayoutError(f"{layout.blocks} is {type(blocks).__name__}, expected the ModuleList of decoder blocks.")
    for block in blocks:
        for part in ("attn", "mlp"):
            module = _get(block, getattr(layout, part), part)
            for holder, optional in ((block, f"{part}_norm"), (module, f"{part}_proj")):
                if path := getattr(layout, optional):
                    _get(holder, path, optional)
    _get(model, layout.embed, "embed")
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

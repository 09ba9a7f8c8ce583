"""Sites: the places in a model that can be read and edited, in TransformerLens's words.

    embed                          after the token (and position) embedding
    blocks.{l}.hook_resid_pre      the residual stream before block l
    blocks.{l}.attn.hook_pattern   attention weights after the softmax, (batch, head, query, key)
    blocks.{l}.attn.hook_z         output of each attention head before it is projected, (batch, pos, head, d_head)
    blocks.{l}.hook_attn_out       what attention adds to the stream
    blocks.{l}.mlp.hook_post       MLP neurons after the non-linearity (and gate), (batch, pos, d_mlp)
    blocks.{l}.hook_mlp_out        what the MLP adds to the stream
    blocks.{l}.hook_resid_post     the residual stream after block l, before any final norm

Where no shape is given it is (batch, pos, d_model). Layer l is 0-based and means *after* block l. `hidden_states[-1]` of transformers is after the final norm and is never
mixed in here. The short forms (`resid_post`) name a site at every layer.

`find_layout` finds the modules behind these names by structure, so any decoder-only family works; `layout=` overrides.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from elm_interp.errors import LayoutError, UnknownSiteError, unknown

LAYER_SITES = ("resid_pre", "pattern", "z", "attn_out", "post", "mlp_out", "resid_post")
"""Short names of the sites of a block, in the order in which a forward pass reaches them."""

_INSIDE = {"pattern": "attn.", "z": "attn.", "post": "mlp."}
_FULL = re.compile(r"blocks\.(\d+)\.(?:attn\.|mlp\.)?hook_(\w+)")
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTION_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj")
_MLP_OUTPUTS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
_NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
# only both together mean norms after the modules: alone, Llama's post_attention_layernorm is the norm before its MLP


@dataclass(frozen=True, order=True)
class Site:
    """One place: a short name and, except for the embedding, a layer."""

    layer: int
    """0-based block index; -1 for the embedding, so that sites sort in forward order of blocks."""
    name: str
    """Short name, one of `LAYER_SITES` or "embed"."""

    @property
    def full_name(self) -> str:
        """TransformerLens's name, such as `blocks.7.hook_resid_post`."""
        if self.name == "embed":
            return "embed"
        return f"blocks.{self.layer}.{_INSIDE.get(self.name, '')}hook_{self.name}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites as a forward pass reaches them."""
        return self.layer, 0 if self.name == "embed" else LAYER_SITES.index(self.name)

    def __str__(self) -> str:
        return self.full_name


def resolve_sites(sites: Iterable[str] | str, layers: Iterable[int] | int | None, n_layers: int) -> list[Site]:
    """Turn names as users write them into sites, short forms expanded over `layers`.

    Args:
        sites: full names, short names, or a mix.
        layers: which layers a short name stands for; negative counts from the end; None means all.
        n_layers: depth of the model.

    Raises:
        UnknownSiteError: a name or layer that the model does not have; the message lists those that it has.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    chosen = range(n_layers) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    if not sites:
        raise UnknownSiteError(f"no site asked for; name at least one of {', '.join(('embed', *LAYER_SITES))}.")
    found: list[Site] = []
    for site in sites:
        full = _FULL.fullmatch(site)
        if site in ("embed", "hook_embed"):
            found.append(Site(-1, "embed"))
        elif full and full[2] in LAYER_SITES and site == Site(int(full[1]), full[2]).full_name:
            found.append(Site(_check_layer(int(full[1]), n_layers), full[2]))
        elif (short := site.removeprefix("hook_")) in LAYER_SITES:
            found += [Site(_check_layer(layer, n_layers), short) for layer in chosen]
        else:
            full_forms = [f"blocks.{{0..{n_layers - 1}}}.{_INSIDE.get(name, '')}hook_{name}" for name in LAYER_SITES]
            raise unknown("site", site, ["embed", *LAYER_SITES, *full_forms], UnknownSiteError)
    if not found:
        raise UnknownSiteError(f"no layer asked for; this model has layers 0 to {n_layers - 1}.")
    return list(dict.fromkeys(found))


def _check_layer(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise UnknownSiteError(f"unknown layer {layer}: this model has layers 0 to {n_layers - 1}.")
    return layer % n_layers


@dataclass(frozen=True)
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
    """Norm between the last block and the head, such as `model.norm`."""
    attn_norm: str = ""
    """Norm inside a block that attention's output passes before it is added to the stream (Gemma 2, OLMo 2); "" for none."""
    mlp_norm: str = ""
    """The same for the MLP's output."""
    attn_proj: str = ""
    """Output projection inside the attention module, such as `o_proj`; without it there is no site `z`."""
    mlp_proj: str = ""
    """Output projection inside the MLP, such as `down_proj`; without it there is no site `post`."""

    @property
    def backbone(self) -> str:
        """The module that runs embedding, blocks and final norm, but not the head."""
        return self.blocks.rpartition(".")[0]

    def place(self, site: Site) -> tuple[str, Literal["input", "output", "pattern"]]:
        """The module path of a site, and what of that module it is.

        Raises:
            UnknownSiteError: a site inside attention or MLP whose projection this layout does not name.
        """
        block = f"{self.blocks}.{site.layer}"
        match site.name:
            case "embed":
                return self.embed, "output"
            case "resid_pre" | "resid_post":
                return block, "input" if site.name == "resid_pre" else "output"
            case "attn_out" | "mlp_out":
                part = (self.attn_norm or self.attn) if site.name == "attn_out" else (self.mlp_norm or self.mlp)
                return f"{block}.{part}", "output"
            case "pattern":
                return f"{block}.{self.attn}", "pattern"
        part, proj = ("attn", "attn_proj") if site.name == "z" else ("mlp", "mlp_proj")
        if not getattr(self, proj):
            raise UnknownSiteError(
                f"this model has no site {site}: no single output projection was found in {block}.{getattr(self, part)}; "
                f"pass layout=Layout(..., {proj}=...) if there is one."
            )
        return f"{block}.{getattr(self, part)}.{getattr(self, proj)}", "input"


def find_layout(model: PreTrainedModel, override: Layout | None = None) -> Layout:
    """Find the parts of a decoder-only model by structure, and check them.

    Args:
        model: a causal language model (not a `PeftModel`).
        override: paths to use instead, for a model whose structure is unusual.

    Raises:
        LayoutError: a part could not be found; the message names it, and the `Layout` argument that gives it.
    """
    if override is not None:
        return _checked(model, override)
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [
        (path, module, parts)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and (depth is None or len(module) == depth)
        and (parts := _block_parts(module))
    ]
    if not lists:
        raise LayoutError(
            f"found no list of {depth} decoder blocks with attention and MLP in {type(model).__name__}; "
            "pass layout=Layout(blocks=..., attn=..., mlp=..., embed=..., final_norm=...)."
        )
    path, blocks, (attn, mlp) = max(lists, key=lambda found: len(found[1]))
    children = dict(blocks[0].named_children())
    attn_norm, mlp_norm = next((pair for pair in _NORMS_AFTER if all(name in children for name in pair)), ("", ""))
    backbone_path = path.rpartition(".")[0]
    embedding = model.get_input_embeddings()
    embed = next((name for name, module in model.named_modules() if module is embedding), "")
    siblings = list(model.get_submodule(backbone_path).named_children())
    after = [name for name, _ in siblings[[name for name, _ in siblings].index(path.rpartition(".")[2]) + 1 :]]
    norms = [name for name in after if "norm" in name.lower() or name.startswith("ln")]
    norm = f"{backbone_path}.{norms[0]}".lstrip(".") if norms else ""
    found = Layout(
        blocks=path,
        attn=attn,
        mlp=mlp,
        embed=embed,
        final_norm=norm,
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
        attn_proj=_projection(blocks, attn, _ATTENTION_OUTPUTS),
        mlp_proj=_projection(blocks, mlp, _MLP_OUTPUTS),
    )
    return _checked(model, found)


def _projection(blocks: nn.ModuleList, part: str, names: tuple[str, ...]) -> str:
    """The first name that the part has in every block; "" where there is none."""
    parts = [getattr(block, part, None) for block in blocks]
    return next((name for name in names if all(isinstance(getattr(p, name, None), nn.Module) for p in parts)), "")


def _block_parts(blocks: nn.ModuleList) -> tuple[str, str] | None:
    if len(blocks) == 0:
        return None
    children = [name for name, _ in blocks[0].named_children()]
    attn = next((name for name in _ATTENTION_NAMES if name in children), None)
    mlp = next((name for name in _MLP_NAMES if name in children), None)
    return (attn, mlp) if attn and mlp else None


def _checked(model: PreTrainedModel, layout: Layout) -> Layout:
    blocks = _get(model, layout.blocks, "blocks")
    if not isinstance(blocks, nn.ModuleList):
        raise LayoutError(f"{layout.blocks} is {type(blocks).__name__}, expected the ModuleList of decoder blocks.")
    for part in ("attn", "mlp"):
        for layer in range(len(blocks)):
            _get(blocks[layer], getattr(layout, part), part)
            if norm := getattr(layout, f"{part}_norm"):
                _get(blocks[layer], norm, f"{part}_norm")
            if proj := getattr(layout, f"{part}_proj"):
                _get(getattr(blocks[layer], getattr(layout, part)), proj, f"{part}_proj")
    _get(model, layout.embed, "embed")
    _get(model, layout.final_norm, "final_norm")
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), torch.Tensor):
        raise LayoutError(f"{type(model).__name__} has no language-model head (get_output_embeddings() gives none).")
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

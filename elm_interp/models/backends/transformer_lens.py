"""The TransformerLens back end: its bridge and hook points, on a copy of the modules that shares the model's weights.

The bridge's own modules run the pass, and its hook points are read and edited under their canonical names. Only its
backbone is called, so the unembedding does not run, and attention patterns are kept only if asked for. The model's
coordinates stay: no norm is folded, nothing is centred.

`own_bridge` makes a bridge for all of TransformerLens's own tools, on weights of its own.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from elm_interp.errors import BackendError, UnknownSiteError
from elm_interp.models.backends.contract import Edit, Keep, KeptEdits, backend, import_extra, quiet, read_sites
from elm_interp.models.backends.shared_weights import Followed
from elm_interp.models.backends.torch import run_backbone, step_backbone
from elm_interp.models.batch import Batch, pad
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Site

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge


@backend("transformer_lens")
class TransformerLensBackend(KeptEdits):
    """Reads and edits sites at the hook points of a bridge."""

    name: str

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        _build()  # an extra that is missing is an error now, not in the first pass
        self.layout = layout
        self._bridge = Followed(model, lambda modules: bridge(cast(PreTrainedModel, modules), layout))

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        with self._edited() as (found, backbone):
            return read_sites(lambda: run_backbone(backbone, batch), partial(hooked, found, self.layout), reads)

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        with self._edited() as (_, backbone):
            return step_backbone(backbone, ids, mask, positions, cache=cache)

    @contextmanager
    def _edited(self) -> Iterator[tuple["TransformerBridge", nn.Module]]:
        found = self._bridge.get()
        with ExitStack() as stack:
            for site, edit in self.edits:
                stack.enter_context(hooked(found, self.layout, site, edit))
            yield found, self.layout.backbone_of(found.original_model)


def _build() -> "Callable[..., TransformerBridge]":
    with quiet():  # the import silences transformers for the whole process
        build = import_extra("transformer_lens.model_bridge.sources").build_bridge_from_module
    return cast("Callable[..., TransformerBridge]", build)


def bridge(model: PreTrainedModel, layout: Layout) -> "TransformerBridge":
    """A bridge of a model, which it rewrites: give it a copy.

    Raises:
        BackendError: the bridge would not run an adapter of the model.
    """
    from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # the unembedding is run by the model itself
    tuned = ((path, module) for path, module in model.named_modules() if module is not head)
    adapted = {path: module for path, module in tuned if isinstance(module, BaseTunerLayer)}
    # the bridge computes attention itself, from masks in the form that the eager function takes
    model.config._attn_implementation = "eager"
    found = _build()(model, type(model).__name__, hf_config=model.config)
    for module in found.modules():
        if isinstance(module, JointQKVAttentionBridge):
            _split_in_each_pass(module)
    if left_out := _not_run(layout.backbone_of(model), cast(dict[str, nn.Module], adapted)):
        raise BackendError(
            f"TransformerLens would leave {len(left_out)} adapted modules out, such as {left_out[0]}; "
            'expected it to run them all. Use backend="torch", or lm.as_transformer_lens(), which merges the adapter.'
        )
    return found


def own_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> "TransformerBridge":
    """A bridge for TransformerLens's own tools, with a copy of the tokenizer.

    Args:
        model: a copy that the bridge may rewrite, without adapters.
        tokenizer: copied; the copy gives the same tokens.
        name: the bridge's name of the model.
    """
    own = copy.deepcopy(tokenizer)
    # otherwise TransformerLens loads another tokenizer by this name, one that adds a first token of its own
    own.init_kwargs = {"name_or_path": name, **own.init_kwargs, "add_bos_token": True}
    model.config._attn_implementation = "eager"
    return _build()(model, type(model).__name__, hf_config=model.config, tokenizer=own, model_name=name)


def hook_point(found: "TransformerBridge", layout: Layout, site: Site) -> "HookPoint":
    """The hook point of a site, such as the one named `blocks.3.attn.o.hook_in`.

    Raises:
        UnknownSiteError: the bridge has none there.
    """
    path, side = site.kind.place(layout, site.layer)
    if site.name == "z":
        # GPT-2's projection can be reached through the attention only
        path = layout.block(site.layer, f"{layout.attn}.o")
    module = found.original_model.get_submodule(path)
    point = getattr(module, "hook_pattern" if side == "pattern" else f"hook_{side.removesuffix('put')}", None)
    if point is None:
        kind = type(found.original_model).__name__
        raise UnknownSiteError(f"TransformerLens has no hook point for {site} of {kind}.")
    return cast("HookPoint", point)


@contextmanager
def hooked(found: "TransformerBridge", layout: Layout, site: Site, edit: Edit) -> Iterator[None]:
    """Inside the context, an edit acts at the hook point of a site; `bridge.hooks` would search all points for each."""
    point = hook_point(found, layout, site)
    handle = point.add_hook(lambda value, hook: edit(value))
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks = [kept for kept in point.fwd_hooks if kept is not handle]


class _Part(nn.Module):
    """The query, key or value part of a joint projection, which runs with its adapter in each pass."""

    def __init__(self, joint: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.joint = joint
        self.index = index

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.joint(hidden)[..., self.index.to(hidden.device)])


def _split_in_each_pass(attention: "JointQKVAttentionBridge") -> None:
    """Make q, k and v parts of the joint projection's output; the bridge splits its weights once, without adapters."""
    joint = cast(nn.Module, attention.submodules["qkv"].original_component)
    weight = cast(Tensor, joint.weight)
    base = joint.get_base_layer() if isinstance(joint, BaseTunerLayer) else joint
    # splitting a bias of 0, 1, 2, … by the bridge's own function shows which outputs make each part
    count = torch.arange(weight.shape[1 if isinstance(base, Conv1D) else 0], dtype=torch.float64)
    stand_in = SimpleNamespace(weight=torch.zeros_like(weight, device="cpu"), bias=count)
    parts = attention.split_qkv_matrix(SimpleNamespace(**{str(attention.submodules["qkv"].name): stand_in}))
    for part, module in zip((attention.q, attention.k, attention.v), parts, strict=True):
        part.set_original_component(_Part(joint, module.bias.detach().long()))


@torch.no_grad()
def _not_run(backbone: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Paths of the modules that a pass of the backbone does not reach."""
    ran: set[str] = set()
    handles = [module.register_forward_hook(lambda *_, path=path: ran.add(path)) for path, module in modules.items()]
    try:
        if modules:
            run_backbone(backbone, pad([[1, 1, 1]], 0).to(next(backbone.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return sorted(modules.keys() - ran)

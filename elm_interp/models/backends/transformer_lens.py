"""The TransformerLens back end: its bridge and hook points, on a shadow of the model.

The bridge's own modules run the pass, and its own hook points are read and edited, under their canonical names. Only its
backbone is called, so the head never runs and no attention pattern is kept that was not asked for. It stays in the
coordinates of the model: no norm is folded, nothing is centred.

`keepable_bridge` makes a bridge for all of TransformerLens's own tools, on weights of its own.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

_verbosity = transformers_logging.get_verbosity()
from transformer_lens.hook_points import HookPoint  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge  # noqa: E402
from transformer_lens.model_bridge.sources import build_bridge_from_module  # noqa: E402

transformers_logging.set_verbosity(_verbosity)  # the import silences transformers for the whole process

from elm_interp.errors import BackendError, UnknownSiteError  # noqa: E402
from elm_interp.models.backends.contract import Edit, Keep, KeptEdits, read_sites  # noqa: E402
from elm_interp.models.backends.shared_weights import Followed  # noqa: E402
from elm_interp.models.backends.torch import run_backbone, step_backbone  # noqa: E402
from elm_interp.models.batch import Batch  # noqa: E402
from elm_interp.models.sites import Layout, Site  # noqa: E402


class TransformerLensBackend(KeptEdits):
    """Reads and edits sites at the hook points of a bridge."""

    name = "transformer_lens"

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self._bridge = Followed(model, lambda shadow: bridge(cast(PreTrainedModel, shadow), layout))

    def run(
        self, batch: Batch, sites: Sequence[Site] = (), keep: Keep | None = None
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        with self._edited() as (found, backbone):
            return read_sites(
                lambda: run_backbone(backbone, batch),
                lambda site, edit: hooked(hook_point(found, self.layout, site), edit),
                sites,
                keep,
            )

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        with self._edited() as (_, backbone):
            return step_backbone(backbone, input_ids, attention_mask, position_ids, cache)

    @contextmanager
    def _edited(self) -> Iterator[tuple[TransformerBridge, nn.Module]]:
        found = self._bridge.get()
        with ExitStack() as stack:
            for site, edit in self.edits:
                stack.enter_context(hooked(hook_point(found, self.layout, site), edit))
            yield found, found.original_model.get_submodule(self.layout.backbone)


def bridge(model: PreTrainedModel, layout: Layout) -> TransformerBridge:
    """A bridge of a model, which is rewritten for it: give it a shadow or a copy.

    Raises:
        BackendError: the bridge would leave an adapter of the model out.
    """
    adapted = {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    # the bridge computes attention itself, from masks in the form that the eager function takes
    model.config._attn_implementation = "eager"
    found = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    for module in found.modules():
        if isinstance(module, JointQKVAttentionBridge):
            _split_in_each_pass(module)
    left_out = _not_run(model.get_submodule(layout.backbone), cast(dict[str, nn.Module], adapted))
    if left_out:
        raise BackendError(
            f"TransformerLens would leave {len(left_out)} adapted modules out, such as {left_out[0]}; "
            'expected it to run them all. Use backend="torch", or lm.as_transformer_lens(), which merges the adapter.'
        )
    return found


def keepable_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> TransformerBridge:
    """A bridge for TransformerLens's own tools, with a copy of the tokenizer.

    Args:
        model: a copy that the bridge may have for itself, without adapters.
        tokenizer: copied; the copy puts the same tokens as it does.
        name: what the bridge calls the model.
    """
    own = copy.deepcopy(tokenizer)
    # otherwise TransformerLens would load another tokenizer by this name, one that adds a first token of its own
    own.init_kwargs = {"name_or_path": name, **own.init_kwargs, "add_bos_token": True}
    model.config._attn_implementation = "eager"
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=own, model_name=name)


def hook_point(found: TransformerBridge, layout: Layout, site: Site) -> HookPoint:
    """The hook point of a site, such as the one named `blocks.3.attn.o.hook_in`.

    Raises:
        UnknownSiteError: the bridge has none there.
    """
    path, side = layout.place(site)
    if site.name == "z":
        # GPT-2's projection is reached through the attention only
        path = f"{layout.blocks}.{site.layer}.{layout.attn}.o"
    module = found.original_model.get_submodule(path)
    point = getattr(module, "hook_pattern" if side == "pattern" else f"hook_{side.removesuffix('put')}", None)
    if point is None:
        raise UnknownSiteError(
            f"TransformerLens has no hook point for {site} of {type(found.original_model).__name__}."
        )
    return point


@contextmanager
def hooked(point: HookPoint, edit: Edit) -> Iterator[None]:
    """Inside the context, an edit acts at a hook point; `bridge.hooks` would look all points over for each."""
    handle = point.add_hook(lambda value, hook: edit(value))
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


class _Part(nn.Module):
    """The query, key or value part of a joint projection, which runs live, with its adapter."""

    def __init__(self, joint: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.joint = joint
        self.index = index

    def forward(self, hidden: Tensor) -> Tensor:
        return self.joint(hidden)[..., self.index.to(hidden.device)]


def _split_in_each_pass(attention: JointQKVAttentionBridge) -> None:
    """Let q, k and v be parts of the joint projection's output; the bridge splits its weights once, without adapters."""
    joint = cast(nn.Module, attention.submodules["qkv"].original_component)
    weight = cast(Tensor, joint.weight)
    base = joint.get_base_layer() if isinstance(joint, BaseTunerLayer) else joint
    width = weight.shape[1 if isinstance(base, Conv1D) else 0]
    # the bridge's own split of a bias that counts says which outputs make each part
    count = torch.arange(width, dtype=torch.float64)
    stand_in = SimpleNamespace(weight=torch.zeros_like(weight, device="cpu"), bias=count)
    parts = attention.split_qkv_matrix(SimpleNamespace(**{str(attention.submodules["qkv"].name): stand_in}))
    for part, module in zip((attention.q, attention.k, attention.v), parts, strict=True):
        part.set_original_component(_Part(joint, module.bias.detach().long()))


@torch.no_grad()
def _not_run(backbone: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Those of the modules that a pass of the backbone does not reach."""
    ran: set[str] = set()
    handles = [module.register_forward_hook(lambda *_, path=path: ran.add(path)) for path, module in modules.items()]
    try:
        if modules:
            device = next(backbone.parameters()).device
            run_backbone(backbone, Batch(*torch.ones(2, 1, 3, dtype=torch.long, device=device)))
    finally:
        for handle in handles:
            handle.remove()
    return sorted(modules.keys() - ran)

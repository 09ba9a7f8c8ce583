"""The TransformerLens back end: its bridge and hook points, on a copy of the modules that shares the model's weights.

The bridge's own modules run the pass, and its hook points are read and edited under their canonical names. Only its
backbone is called, so the unembedding does not run, and attention patterns are kept only if asked for. The model's
coordinates stay: no norm is folded, nothing is centred.

`own_bridge` makes a bridge for all of TransformerLens's own tools, on weights of its own.
"""

import copy
import warnings
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
from elm_interp.models.backends.views import through
from elm_interp.models.batch import Batch, pad
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Base, Place, Site

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
        self.model = model
        self.layout = layout
        self._bridge = Followed(model, lambda modules: bridge(cast(PreTrainedModel, modules), layout))

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        with self._edited() as (found, backbone, acted):
            values, hidden = read_sites(lambda: run_backbone(backbone, batch), partial(self._hooked, found), reads)
            if hidden is not None:
                self._check(acted)
            return values, hidden

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        with self._edited() as (_, backbone, acted):
            result = step_backbone(backbone, ids, mask, positions, cache=cache)
            self._check(acted)
            return result

    @contextmanager
    def _edited(self) -> Iterator[tuple["TransformerBridge", nn.Module, set[Site]]]:
        found = self._bridge.get()
        acted: set[Site] = set()

        def counted(site: Site, edit: Edit, value: Tensor) -> Tensor | None:
            acted.add(site)
            given = value.clone()  # the bridge notices that an edit comes too late only if it returns something else
            new = edit(given)
            return given if new is None else new

        with ExitStack() as stack:
            if self.edits:
                stack.enter_context(_no_late_edits())
            later = [stack.enter_context(self._at(found, s, partial(counted, s, edit))) for s, edit in self.edits]
            # what is held for an edit is held after all edits of it
            for base, held in filter(None, later):
                stack.enter_context(self._holding(found, base, held))
            yield found, self.layout.backbone_of(found.original_model), acted

    def _check(self, acted: set[Site]) -> None:
        if missed := [site for site, _ in self.edits if site not in acted]:
            raise UnknownSiteError(f"TransformerLens has no site {missed[0]}: its passes never come by there.")

    @contextmanager
    def _hooked(self, found: "TransformerBridge", site: Site, edit: Edit) -> Iterator[None]:
        with self._at(found, site, edit) as later, ExitStack() as stack:
            if later is not None:
                stack.enter_context(self._holding(found, *later))
            yield

    @contextmanager
    def _at(
        self, found: "TransformerBridge", site: Site, edit: Edit
    ) -> Iterator[tuple[Base, dict[Base, Tensor]] | None]:
        """Inside the context, an edit acts at a site; gives what has to be held for it, and where."""
        place = site.find(self.model, self.layout)
        held: dict[Base, Tensor] = {}
        point = hook_point(found, self.layout, place, site.name)
        if site.name in ("q", "k", "v", "pre"):
            place = place._replace(part=())  # the bridge has them apart
        with _added(point, through(place, edit, held)):
            yield None if place.base is None else (place.base, held)

    @contextmanager
    def _holding(self, found: "TransformerBridge", base: Base, held: dict[Base, Tensor]) -> Iterator[None]:
        with _added(hook_point(found, self.layout, Place(base.path, base.side), ""), partial(held.__setitem__, base)):
            yield


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


def hook_point(found: "TransformerBridge", layout: Layout, place: Place, name: str) -> "HookPoint":
    """The hook point of a place of the site of this name, such as the one named `blocks.3.attn.o.hook_in`.

    Raises:
        UnknownSiteError: the bridge has none there.
    """
    path, model = place.path, found.original_model
    if name in ("q", "k", "v", "z"):
        # fused projections, and the last one of GPT-2, can be reached through the attention only
        path = f"{path.partition(f'.{layout.attn}.')[0]}.{layout.attn}.{'o' if name == 'z' else name}"
    elif name == "pre" and place.part:
        path = path.removesuffix(layout.mlp_in) + "gate"
    try:
        module = model.get_submodule(path)
        if name == "attn_scores" and _runs_its_own(module):
            raise AttributeError("its point for scores shows the pattern")
        point = getattr(module, f"hook_{place.side.removesuffix('put')}")
    except AttributeError as error:
        kind = type(model).__name__
        raise UnknownSiteError(f"TransformerLens has no hook point for {name} ({place.path}) of {kind}.") from error
    return cast("HookPoint", point)


@contextmanager
def _no_late_edits() -> Iterator[None]:
    """Inside the context, an edit that the bridge discards is an error; the bridge only warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*which has already consumed the original values")
        try:
            yield
        except UserWarning as warning:
            raise UnknownSiteError(
                f'TransformerLens cannot edit this site; use backend="torch". {warning}'
            ) from warning


def _runs_its_own(attention: nn.Module) -> bool:
    """Whether the bridge leaves attention to the model's own module, and hooks what comes out of it afterwards."""
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    native = getattr(attention, "maintain_native_attention", False)
    return bool(native) or type(attention).forward is AttentionBridge.forward


@contextmanager
def _added(point: "HookPoint", edit: Edit) -> Iterator[None]:
    """Inside the context, an edit acts at a hook point; `bridge.hooks` would search all points for each."""
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

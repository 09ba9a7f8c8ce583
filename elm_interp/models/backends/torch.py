"""The reference back end: plain forward hooks on the transformers model itself.

It adds no cost to the forward pass and works on every layout. The other back ends are tested against it.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from elm_interp.models.backends.contract import Edit, Keep, backend, read_sites
from elm_interp.models.backends.patterns import COMPUTED, attention_hook
from elm_interp.models.backends.views import through
from elm_interp.models.batch import Batch
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Base, Side, Site


@backend("torch")
class TorchBackend:
    """Reads and edits sites of a transformers model with forward hooks that are always removed."""

    name: str

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self._holders: dict[tuple[str, Side], list[RemovableHandle]] = {}

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        # hooks that read are registered after the edits of open `hooks` contexts, so they see edited activations
        return read_sites(lambda: run_backbone(self.layout.backbone_of(self.model), batch), self._hook, reads)

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        return step_backbone(self.layout.backbone_of(self.model), ids, mask, positions, cache=cache)

    @contextmanager
    def hooks(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Edit activations in every pass of the model inside the context, also in its own `generate`."""
        with ExitStack() as stack:
            for site, edit in edits.items():
                stack.enter_context(self._hook(site, edit))
            yield

    @contextmanager
    def _hook(self, site: Site, edit: Edit) -> Iterator[None]:
        place = site.find(self.model, self.layout)
        if place.side in COMPUTED:
            module = self.model.get_submodule(place.path)
            with attention_hook(module, place.side, edit, module, self.layout.backbone_of(self.model)):
                yield
            return
        held: dict[Base, Tensor] = {}
        with ExitStack() as stack:
            if place.base is not None:
                stack.enter_context(self._holding(place.base, held))
            handle = self._register(place.path, place.side, through(place, edit, held))
            stack.callback(handle.remove)
            for holding in self._holders.get((place.path, place.side), ()):
                _move_last(holding)
            yield

    @contextmanager
    def _holding(self, base: Base, held: dict[Base, Tensor]) -> Iterator[None]:
        """Inside the context, keep what passes by at a place after all edits of it, whenever they were made."""

        def hold(value: Tensor) -> None:
            held[base] = value

        handle = self._register(base.path, base.side, hold)
        holders = self._holders.setdefault((base.path, base.side), [])
        holders.append(handle)
        try:
            yield
        finally:
            handle.remove()
            holders.remove(handle)

    def _register(self, path: str, side: Side, edit: Edit) -> RemovableHandle:
        module = self.model.get_submodule(path)
        if side == "input":
            return module.register_forward_pre_hook(lambda _, *given: _edit_input(edit, *given), with_kwargs=True)
        return module.register_forward_hook(lambda _module, _args, output: _edit_output(edit, output))


def _move_last(handle: RemovableHandle) -> None:
    hooks = handle.hooks_dict_ref()
    if hooks is not None:
        hooks.move_to_end(handle.id)


def step_inputs(backbone: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> dict[str, Any]:
    """The keyword arguments of a forward pass; positions only where the backbone can be told them."""
    told = "position_ids" in inspect.signature(type(backbone).forward).parameters
    return {"input_ids": ids, "attention_mask": mask, **({"position_ids": positions} if told else {}), **more}


def forward_inputs(backbone: nn.Module, batch: Batch) -> dict[str, Any]:
    """The keyword arguments of a pass without a cache; the positions of a row count from its own first token."""
    return step_inputs(backbone, batch.input_ids, batch.attention_mask, batch.position_ids, use_cache=False)


def run_backbone(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states after the final norm."""
    return cast(Tensor, backbone(**forward_inputs(backbone, batch)).last_hidden_state)


def step_backbone(backbone: nn.Module, *inputs: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Hidden states of new tokens (ids, mask, positions) after cached ones, and the longer cache."""
    out = backbone(**step_inputs(backbone, *inputs, past_key_values=cache, use_cache=True))
    return out.last_hidden_state, out.past_key_values


def _edit_input(edit: Edit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    new = edit(args[0] if args else kwargs["hidden_states"])
    if new is None:
        return None
    return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})


def _edit_output(edit: Edit, output: Any) -> Any:
    # a decoder layer returns a tensor in transformers 5 and a tuple in 4; attention returns a tuple in both
    if isinstance(output, tuple | list):  # GPT-1 has lists
        new = edit(output[0])
        return None if new is None else type(output)([new, *output[1:]])
    return edit(output)


def count_hooks(model: nn.Module) -> int:
    """Number of forward hooks and pre-hooks on the model's modules, to check that none is left behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

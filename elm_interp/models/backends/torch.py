"""The reference back end: plain forward hooks on the transformers model itself.

It adds no cost to the forward pass and works on every layout. The other back ends are tested against it.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache

from elm_interp.models.backends.contract import Edit, Keep, backend, by_head, read_sites
from elm_interp.models.backends.patterns import pattern_hook
from elm_interp.models.batch import Batch
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Site


@backend("torch")
class TorchBackend:
    """Reads and edits sites of a transformers model with forward hooks that are always removed."""

    name: str

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.layout = layout

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        backbone = self.model.get_submodule(self.layout.backbone)
        # hooks that read are registered after the edits of open `hooks` contexts, so they see edited activations
        return read_sites(lambda: run_backbone(backbone, batch), self._hook, reads)

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        backbone = self.model.get_submodule(self.layout.backbone)
        return step_backbone(backbone, input_ids, attention_mask, position_ids, cache)

    @contextmanager
    def hooks(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Edit activations in every pass of the model inside the context, also in its own `generate`."""
        with ExitStack() as stack:
            for site, edit in edits.items():
                stack.enter_context(self._hook(site, edit))
            yield

    @contextmanager
    def _hook(self, site: Site, edit: Edit) -> Iterator[None]:
        path, side = site.find(self.model, self.layout)
        module = self.model.get_submodule(path)
        if side == "pattern":
            configs = {id(c): c for c in (module.config, self.model.get_submodule(self.layout.backbone).config)}
            with pattern_hook(module, edit, *configs.values()):
                yield
            return
        edit = by_head(edit, head_count(self.model)) if site.kind.split_heads else edit
        if side == "input":
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs: _edit_input(edit, args, kwargs), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda _module, _args, output: _edit_output(edit, output))
        try:
            yield
        finally:
            handle.remove()


def forward_inputs(backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The keyword arguments of a forward pass; the positions of a row count from its own first token."""
    kwargs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return kwargs | ({"position_ids": batch.position_ids} if takes_position_ids(backbone) else {})


def takes_position_ids(backbone: nn.Module) -> bool:
    """Whether a backbone can be told the position of each token."""
    return "position_ids" in inspect.signature(type(backbone).forward).parameters


def run_backbone(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states after the final norm."""
    return cast(Tensor, backbone(**forward_inputs(backbone, batch), use_cache=False).last_hidden_state)


def step_backbone(
    backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
) -> tuple[Tensor, Cache]:
    """Hidden states of new tokens after cached ones, and the longer cache."""
    positions = {"position_ids": position_ids} if takes_position_ids(backbone) else {}
    out = backbone(
        input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
    )
    return out.last_hidden_state, out.past_key_values


def head_count(model: nn.Module) -> int:
    """Number of attention heads."""
    return int(cast(Any, model.config).get_text_config().num_attention_heads)


def _edit_input(
    edit: Edit, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if args:
        new = edit(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    new = edit(kwargs["hidden_states"])
    return None if new is None else (args, kwargs | {"hidden_states": new})


def _edit_output(edit: Edit, output: Any) -> Any:
    # a decoder layer returns a tensor in transformers 5 and a tuple in 4; attention returns a tuple in both
    if isinstance(output, tuple):
        new = edit(output[0])
        return None if new is None else (new, *output[1:])
    return edit(output)


def count_hooks(model: nn.Module) -> int:
    """Number of forward hooks and pre-hooks on the model's modules, to check that none is left behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

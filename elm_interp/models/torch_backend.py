"""The reference back end: plain forward hooks on the transformers model itself.

Costs nothing beside the forward pass, works on every layout, and is what the other back ends are tested against.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

from torch import Tensor, nn
from transformers import Cache

from elm_interp.models.batch import Batch
from elm_interp.models.sites import Layout, Site

Edit = Callable[[Tensor], Tensor | None]
"""Takes a site's activation (batch, pos, d_model) and returns its replacement; None leaves it as it is (so an
in-place change also works)."""


class _Stop(Exception):
    """Raised by the last hook that is needed, so that later layers never run."""


class TorchBackend:
    """Reads and edits sites of a transformers model with forward hooks that are always removed."""

    name = "torch"

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self.backbone: nn.Module = model.get_submodule(layout.backbone)
        accepted = inspect.signature(self.backbone.forward).parameters
        self._takes_position_ids = "position_ids" in accepted

    def run(
        self, batch: Batch, sites: Sequence[Site] = (), keep: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        """One forward pass without the head.

        Args:
            batch: tokens on the model's device.
            sites: what to read.
            keep: applied to each activation as it is read, so that only what is asked for stays in memory.

        Returns:
            The activations, and the hidden states after the final norm; None in their place when sites were asked
            for, since the pass then stops at the last of them.
        """
        found: dict[Site, Tensor] = {}

        def read(site: Site) -> Edit:
            def hook(value: Tensor) -> None:
                found[site] = keep(value) if keep else value
                if len(found) == len(sites):
                    raise _Stop

            return hook

        # reads are registered after the edits of an enclosing `hooks`, so they see what was edited
        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(self._hook(site, read(site)))
            try:
                hidden = self.backbone(**self.inputs(batch), use_cache=False).last_hidden_state
            except _Stop:
                hidden = None
        return found, hidden

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The keyword arguments of a forward pass; rows count their positions from their own first token."""
        kwargs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return kwargs | ({"position_ids": batch.position_ids} if self._takes_position_ids else {})

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """New tokens after cached ones, without the head: their hidden states and the longer cache."""
        positions = {"position_ids": position_ids} if self._takes_position_ids else {}
        out = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        return out.last_hidden_state, out.past_key_values

    @contextmanager
    def hooks(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Edit activations in every pass of the model inside the context, also in generation."""
        with ExitStack() as stack:
            for site, edit in edits.items():
                stack.enter_context(self._hook(site, edit))
            yield

    @contextmanager
    def _hook(self, site: Site, edit: Edit) -> Iterator[None]:
        module = self._module(site)
        if site.name == "resid_pre":
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs: _edit_input(edit, args, kwargs), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda _module, _args, output: _edit_output(edit, output))
        try:
            yield
        finally:
            handle.remove()

    def _module(self, site: Site) -> nn.Module:
        if site.name == "embed":
            return self.model.get_submodule(self.layout.embed)
        block = cast(nn.ModuleList, self.model.get_submodule(self.layout.blocks))[site.layer]
        layout = self.layout
        part = {"attn_out": layout.attn_norm or layout.attn, "mlp_out": layout.mlp_norm or layout.mlp}.get(site.name)
        return block.get_submodule(part) if part else block


def _edit_input(edit: Edit, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    if args:
        new = edit(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    new = edit(kwargs["hidden_states"])
    return None if new is None else (args, kwargs | {"hidden_states": new})


def _edit_output(edit: Edit, output: Tensor | tuple) -> Tensor | tuple | None:
    # a decoder layer returns a tensor in transformers 5, a tuple before; attention returns a tuple in both
    if isinstance(output, tuple):
        new = edit(output[0])
        return None if new is None else (new, *output[1:])
    return edit(output)


def count_hooks(model: nn.Module) -> int:
    """Forward hooks and pre-hooks on the model's modules; for checks that none is left behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

"""Checks of a model when it is loaded: its parts are found rightly, and its back end gives its numbers."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from elm_interp.errors import BackendError, ConfigError, LayoutError
from elm_interp.models.backends.torch import TorchBackend, forward_inputs
from elm_interp.models.batch import pad
from elm_interp.models.sites import Site

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


@torch.no_grad()
def check_passes(lm: "HookedLM") -> None:
    """Check on three tokens that norm, unembedding and back end give the logits of the model itself.

    Raises:
        ConfigError: values are not finite, as by overflow in float16.
        LayoutError: the norm is not what the unembedding reads, or an unknown step makes the logits.
        BackendError: the back end gives other hidden states.
    """
    batch = pad([[0, 1, 2]], 0).to(lm.device)
    reference, kind = TorchBackend(lm.model, lm.layout), type(lm.model).__name__
    last = Site(lm.n_layers - 1, "resid_post")
    training = lm.model.training
    lm.model.eval()  # type: ignore[no-untyped-call]
    try:
        hidden = cast(Tensor, reference.run(batch)[1])
        stream = reference.run(batch, {last: lambda value: value})[0][last]
        normed = lm.model.get_submodule(lm.layout.final_norm)(stream)
        ours = lm.unembed(hidden)
        theirs = lm.model(**forward_inputs(lm.layout.backbone_of(lm.model), batch)).logits
        through = lm.hidden(batch)
    finally:
        lm.model.train(training)
    if not bool(theirs.isfinite().all() and hidden.isfinite().all()):
        layers = reference.run(batch, {Site(i, "resid_post"): _finite for i in range(lm.n_layers)})[0]
        first = next((site.layer for site, finite in layers.items() if not bool(finite)), lm.n_layers)
        dtype = str(lm.dtype).removeprefix("torch.")
        where = f"from block {first} on" if first < lm.n_layers else "after the last block"
        raise ConfigError(
            f"{lm.name} gives values that are not finite in {dtype}, {where}; expected finite ones. "
            + ('Load it with dtype="bfloat16" or "float32".' if lm.dtype == torch.float16 else "Are its weights whole?")
        )
    if normed.shape != hidden.shape or not torch.allclose(normed.float(), hidden.float(), atol=1e-3, rtol=1e-2):
        raise LayoutError(
            f"{lm.layout.final_norm} of {kind} does not turn the output of the last of {lm.layout.blocks} into what "
            "the unembedding reads; pass layout=Layout(...) with the paths of this model."
        )
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-2):
        gap = (ours - theirs).abs().max().item()
        raise LayoutError(
            f"{kind} takes a step between {lm.layout.final_norm} and its logits that elm_interp does not know "
            f"(they differ by {gap:.3g}); pass layout= if a part was found wrongly."
        )
    gap = float((through - hidden).float().norm() / hidden.float().norm())
    if gap > (1e-3 if lm.dtype == torch.float32 else 0.05):
        raise BackendError(
            f'{kind} gives other hidden states through the back end "{lm.backend}" than by itself '
            f'(relative difference {gap:.2g}, expected rounding only); use backend="torch".'
        )


def _finite(value: Tensor) -> Tensor:
    return value.isfinite().all()

"""Checks of a model when it is loaded: its parts are found rightly, and its back end gives its numbers."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from elm_interp.errors import BackendError, LayoutError
from elm_interp.models.backends.torch import TorchBackend, forward_inputs
from elm_interp.models.batch import pad
from elm_interp.models.sites import Site

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


@torch.no_grad()
def check_passes(lm: "HookedLM") -> None:
    """Check on three tokens that norm, unembedding and back end give the logits of the model itself.

    Raises:
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

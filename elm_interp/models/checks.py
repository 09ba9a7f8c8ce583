"""Checks of a model when it is loaded: its parts are found rightly, add up, and its back end gives its numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from elm_interp.errors import BackendError, ConfigError, LayoutError, UnknownSiteError
from elm_interp.models.backends.torch import TorchBackend, forward_inputs
from elm_interp.models.batch import Batch, pad
from elm_interp.models.layout import Layout, other_mixers
from elm_interp.models.sites import Site

_ROW = [0, 1, 2]

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


@torch.no_grad()
def summed(model: nn.Module, layout: Layout) -> Layout:
    """The layout in which what attention and MLP add makes up the difference of the streams, found on three tokens.

    A family may add to the stream inside its attention or MLP; then the output of their last projections is what they
    add. If no reading adds up, the layout says so, and the sites `attn_out`, `resid_mid` and `mlp_out` are refused.
    """
    inner = [path for path in (layout.attn, layout.attn_proj) if path]
    attn = ".".join(inner) if layout.attn_proj else ""
    mlp = ".".join(filter(None, (layout.mlp, layout.mlp_proj))) if layout.mlp_proj else ""
    batch = pad([_ROW], 0).to(next(model.parameters()).device)
    gaps: list[float] = []
    with _evaluating(model):
        if several := _streams(model, layout, batch):
            return replace(layout, streams=several, unsummed=several)
        for attn_added, mlp_added in ((layout.attn_added, layout.mlp_added), ("", mlp), (attn, mlp), (attn, "")):
            for flat in (False, True):
                found = replace(layout, attn_added=attn_added, mlp_added=mlp_added, flat=flat)
                gap, fits = _gap(model, found, batch)
                if fits and not gap > _allowed(model):
                    return replace(found, parallel=_is_parallel(model, found, batch))
                gaps += [gap] if fits else []
    kind = type(model.get_submodule(layout.block(0))).__name__
    return replace(
        layout,
        unsummed=f"in {kind} resid_pre + attn_out + mlp_out is not resid_post "
        f"(relative difference {min(gaps, default=float('nan')):.2g}), so what each adds to the stream is not known; "
        "pass layout=Layout(..., attn_added=..., mlp_added=...) if there are modules whose outputs are added.",
    )


def _streams(model: nn.Module, layout: Layout, batch: Batch) -> str:
    """What is wrong with the stream, if it is not one vector a position; "" if it is."""
    last = Site(len(cast(nn.ModuleList, model.get_submodule(layout.blocks))) - 1, "resid_post")
    shape = tuple(TorchBackend(model, layout).run(batch, {last: torch.clone})[0][last].shape)
    norm = getattr(layout.norm_of(model), "weight", None)
    wide = shape[-1] if norm is None else norm.shape[-1]
    if shape == (*batch.input_ids.shape, wide):
        return ""
    kind = type(model.get_submodule(layout.block(0))).__name__
    expected = (*batch.input_ids.shape, wide)
    return f"{kind} hands on a stream of shape {shape} for a batch of three tokens, expected {expected}."


def _allowed(model: nn.Module) -> float:
    return 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2


def _gap(model: nn.Module, layout: Layout, batch: Batch) -> tuple[float, bool]:
    """Largest relative difference of the stream after a block from the sum, and whether the shapes fit at all.

    Numbers that are not finite add up to nothing and are not judged here.
    """
    names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    layers = range(len(cast(nn.ModuleList, model.get_submodule(layout.blocks))))
    sites = [[Site(layer, name) for name in names] for layer in layers]
    try:
        # a block may go on to change what it was given in place
        found, _ = TorchBackend(model, layout).run(batch, {site: torch.clone for row in sites for site in row})
    except UnknownSiteError:
        return float("nan"), False
    worst = 0.0
    for row in sites:
        before, attn, mlp, after = (found[site].float() for site in row)
        if not before.shape == attn.shape == mlp.shape == after.shape:
            return float("nan"), False
        gap = float((before + attn.to(before) + mlp.to(before) - after).norm() / after.norm())
        worst = max(worst, gap)
    return worst, True


def _is_parallel(model: nn.Module, layout: Layout, batch: Batch) -> bool:
    """Whether what the first block's attention adds does not change what its MLP adds."""
    backend, mlp = TorchBackend(model, layout), Site(0, "mlp_out")

    def more(added: Tensor) -> Tensor:
        return added + torch.linspace(-10, 10, added.shape[-1]).to(added)

    plain = backend.run(batch, {mlp: torch.clone})[0][mlp]
    with backend.hooks({Site(0, "attn_out"): more}):
        return torch.equal(backend.run(batch, {mlp: torch.clone})[0][mlp], plain)


def logit_scales(config: PretrainedConfig) -> list[float]:
    """What the logits may be multiplied with, the likeliest first: some multiply with what others divide by."""
    text = config.get_text_config()
    divisor, factor = getattr(text, "logits_scaling", None) or 1, getattr(text, "logit_scale", None)
    multiplier = getattr(text, "logits_mup_width_multiplier", None)
    return [factor or 1 / (multiplier or divisor), float(divisor)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def check_passes(lm: "HookedLM") -> None:
    """Check on three tokens that norm, unembedding and back end give the logits of the model itself.

    Raises:
        ConfigError: values are not finite, as by overflow in float16.
        LayoutError: the norm is not what the unembedding reads, or an unknown step makes the logits.
        BackendError: the back end gives other hidden states.
    """
    batch = pad([_ROW], 0).to(lm.device)
    reference, kind = TorchBackend(lm.model, lm.layout), type(lm.model).__name__
    last = Site(lm.n_layers - 1, "resid_post")
    with _evaluating(lm.model):
        hidden = cast(Tensor, reference.run(batch)[1])
        stream = hidden if lm.layout.streams else reference.run(batch, {last: torch.clone})[0][last]
        normed = hidden if lm.layout.streams else lm.layout.norm_of(lm.model)(stream)
        theirs = lm.model(**forward_inputs(lm.layout.backbone_of(lm.model), batch)).logits
        through = lm.hidden(batch)
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
            f"{lm.layout.final_norm or 'no norm'} of {kind} does not turn the output of the last of {lm.layout.blocks} "
            f"into what the unembedding reads{other_mixers(lm.model, lm.layout)}; "
            "pass layout=Layout(...) with the paths of this model."
        )
    gaps = {}
    for scale in logit_scales(lm.model.config):
        lm._logit_scale = scale
        ours = lm.unembed(hidden)
        if ours.shape == theirs.shape and torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-2):
            break
        gaps[scale] = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
    else:
        lm._logit_scale, gap = min(gaps.items(), key=lambda found: found[1])
        raise LayoutError(
            f"{kind} takes a step between {lm.layout.final_norm} and its logits that elm_interp does not know "
            f"(they differ by {gap:.3g}){other_mixers(lm.model, lm.layout)}; pass layout= if a part was found wrongly."
        )
    gap = float((through - hidden).float().norm() / hidden.float().norm())
    if gap > (1e-3 if lm.dtype == torch.float32 else 0.05):
        raise BackendError(
            f'{kind} gives other hidden states through the back end "{lm.backend}" than by itself '
            f'(relative difference {gap:.2g}, expected rounding only); use backend="torch".'
        )


def _finite(value: Tensor) -> Tensor:
    return value.isfinite().all()

"""Work on logits, in pieces: what is done at each position of a text with the whole vocabulary before it.

The product with the head wants many positions at once. What follows it (a softmax, a sum, a top-k) reads and writes the
vocabulary several times over, and on a CPU those passes are an order of magnitude quicker where a piece stays in the
processor's cache. So the head runs on `HEAD_ROWS` positions, and the rest on a few of them at a time; no tensor of
tokens × vocabulary is ever alive.

    (log_probs,) = at_logits(lambda rows, logits: log_prob(logits, ids[rows])[:1], (lm, hidden))
    loss = differentiable(lm, hidden, lambda rows, logits: log_prob(logits, ids[rows])).mean()
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.models.hooked import HookedLM

HEAD_ROWS = 256
"""Positions that go through the head at once."""
CACHE_ROWS = 16
"""Positions whose logits are worked on at once on a CPU: a few megabytes."""


@torch.no_grad()
def at_logits(
    of: Callable[..., Sequence[Tensor]], *streams: tuple[HookedLM, Float[Tensor, "pos d_model"]]
) -> list[Tensor]:
    """What `of` gives at each position, from the logits of one or several streams of hidden states.

    Args:
        of: takes a slice of the positions and the logits of each stream there, (rows, d_vocab); returns tensors with one
            row a position.
        streams: a model and hidden states as its head reads them, all of one length.

    Returns:
        The tensors that `of` gives, joined over all positions.
    """
    parts: list[Sequence[Tensor]] = []
    for start in range(0, len(streams[0][1]), HEAD_ROWS):
        logits = [lm.unembed(h[start : start + HEAD_ROWS].to(lm.device, lm.dtype)) for lm, h in streams]
        for rows in _pieces(logits[0]):
            parts.append(of(slice(start + rows.start, start + rows.stop), *(x[rows] for x in logits)))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def differentiable(
    lm: HookedLM,
    hidden: Float[Tensor, "pos d_model"],
    of: Callable[..., tuple[Tensor, Tensor]],
    other: Float[Tensor, "pos d_model"] | None = None,
) -> Float[Tensor, " pos"]:
    """A number at each position, with the gradient at the hidden states worked out in the forward pass.

    Args:
        lm: the model whose frozen head reads the states.
        hidden: states with a graph.
        of: takes a slice of the positions and the logits there, (rows, d_vocab), then those of `other` where there are any;
            returns the number at each, and its gradient at the logits.
        other: states without a graph, read by the same head.
    """
    return _AtLogits.apply(hidden, lm, of, other)


def log_prob(
    logits: Float[Tensor, "rows d_vocab"], ids: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows d_vocab"]]:
    """Log-probability of one token at each position, and its gradient at the logits."""
    whole = logits.log_softmax(1, dtype=torch.float32)
    found = whole.gather(1, ids[:, None])
    grad = whole.exp_().neg_()
    return found[:, 0], grad.scatter_add_(1, ids[:, None], torch.ones_like(found))


class _AtLogits(torch.autograd.Function):
    """Autograd would walk over the vocabulary a dozen times and keep what it read."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lm: HookedLM, of: Callable, other: Tensor | None) -> Tensor:
        values = torch.empty(len(hidden), device=hidden.device)
        grads = torch.empty_like(hidden)
        for start in range(0, len(hidden), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            logits = [lm.unembed(h[part].to(hidden)) for h in (hidden, other) if h is not None]
            grad = torch.empty_like(logits[0])
            for rows in _pieces(grad):
                here = slice(start + rows.start, start + rows.stop)
                values[here], grad[rows] = of(here, *(x[rows] for x in logits))
            grads[part] = lm.unembed_gradient(grad, logits[0])
        ctx.save_for_backward(grads)
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad_outputs[0][:, None].to(grads.dtype), None, None, None


def _pieces(logits: Tensor) -> list[slice]:
    step = CACHE_ROWS if logits.device.type == "cpu" else HEAD_ROWS
    return [slice(i, min(i + step, len(logits))) for i in range(0, len(logits), step)]

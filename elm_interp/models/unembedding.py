"""Work on logits in pieces, so that no tensor of all positions times the vocabulary is ever in memory.

The unembedding is fastest on many positions at once. What follows it (a softmax, a sum, a top-k) reads and writes the
vocabulary several times, and on a CPU is about ten times faster on a piece that fits into the processor's cache. So
the unembedding runs on `UNEMBED_ROWS` positions, and the rest on a few of them at a time.

    (log_probs,) = at_logits(lambda rows, logits: log_prob(logits, ids[rows])[:1], (lm, hidden))
    loss = differentiable(lm, hidden, lambda rows, logits: log_prob(logits, ids[rows])).mean()
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM

UNEMBED_ROWS = 256
"""Positions that the unembedding runs on at once."""
CACHE_ROWS = 16
"""Positions whose logits are worked on at once on a CPU: a few megabytes."""


@torch.no_grad()
def at_logits(
    of: Callable[..., Sequence[Tensor]],
    *streams: tuple["HookedLM", Float[Tensor, "pos d_model"]],
    adapters: Sequence[str | Path | None] | None = None,
) -> list[Tensor]:
    """Compute `of` at each position, from the logits of one or several streams of hidden states.

    Args:
        of: takes a slice of the positions and the logits of each stream there, (rows, d_vocab); returns tensors with
            one row a position.
        streams: each a model and the hidden states that its unembedding reads; all of one length.
        adapters: those under which the streams were read, since an adapter may sit on the unembedding too; by default
            the one that is on.

    Returns:
        The tensors of `of`, joined over all positions.
    """
    parts: list[Sequence[Tensor]] = []
    for start in range(0, len(streams[0][1]), UNEMBED_ROWS):
        logits = []
        for i, (lm, h) in enumerate(streams):
            with nullcontext() if adapters is None else lm.adapter(adapters[i]):
                logits.append(lm.unembed(h[start : start + UNEMBED_ROWS].to(lm.device, lm.dtype)))
        for rows in _pieces(logits[0]):
            parts.append(of(slice(start + rows.start, start + rows.stop), *(x[rows] for x in logits)))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def differentiable(
    lm: "HookedLM",
    hidden: Float[Tensor, "pos d_model"],
    of: Callable[..., tuple[Tensor, Tensor]],
    other: Float[Tensor, "pos d_model"] | None = None,
) -> Float[Tensor, " pos"]:
    """A number at each position, whose gradient at the hidden states is computed in the forward pass.

    Args:
        lm: the model; its unembedding is frozen.
        hidden: states with a graph.
        of: takes a slice of the positions and the logits there, (rows, d_vocab), then those of `other` if it is given;
            returns the number at each, and its gradient at the logits.
        other: states without a graph, for the same unembedding.
    """
    return cast(Tensor, _AtLogits.apply(hidden, lm, of, other))  # type: ignore[no-untyped-call]


def log_prob(
    logits: Float[Tensor, "rows d_vocab"], ids: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows d_vocab"]]:
    """Log-probability of one token at each position, and its gradient at the logits."""
    whole = logits.log_softmax(1, dtype=torch.float32)
    found = whole.gather(1, ids[:, None])
    grad = whole.exp_().neg_()
    return found[:, 0], grad.scatter_add_(1, ids[:, None], torch.ones_like(found))


class _AtLogits(torch.autograd.Function):
    """Gradients in the forward pass: autograd would read the vocabulary a dozen times and keep what it read."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lm: "HookedLM", of: Callable[..., Any], other: Tensor | None) -> Tensor:
        values = torch.empty(len(hidden), device=hidden.device)
        grads = torch.empty_like(hidden)
        for start in range(0, len(hidden), UNEMBED_ROWS):
            part = slice(start, start + UNEMBED_ROWS)
            logits = [lm.unembed(h[part].to(hidden)) for h in (hidden, other) if h is not None]
            read = hidden[part]
            grad = torch.empty_like(logits[0])
            for rows in _pieces(grad):
                here = slice(start + rows.start, start + rows.stop)
                values[here], grad[rows] = of(here, *(x[rows] for x in logits))
            grads[part] = lm.unembed_gradient(grad, logits[0], read)
        ctx.save_for_backward(grads)
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad_outputs[0][:, None].to(grads.dtype), None, None, None


def _pieces(logits: Tensor) -> list[slice]:
    step = CACHE_ROWS if logits.device.type == "cpu" else UNEMBED_ROWS
    return [slice(i, min(i + step, len(logits))) for i in range(0, len(logits), step)]

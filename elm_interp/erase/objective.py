"""What a method of erasure is to the trainer: frozen hyper-parameters with `prepare` and `loss`.

`prepare` computes everything that depends on frozen weights alone, once and in large batches. `loss` gives named terms for
a few samples; the trainer weighs, logs and checks each. Nothing here knows of files, schedules or optimisers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.data import Concept
from elm_interp.models import HookedLM

HEAD_ROWS = 512
"""Positions whose logits are alive at once, so that memory does not grow with tokens × vocabulary."""


@dataclass(frozen=True)
class Sample:
    """One text to train on, with what the model should predict along it."""

    term: str
    """The loss term it belongs to: "erase", "retain", "fluency"."""
    id: str
    """Which passage or prompt it came from, for error messages."""
    ids: tuple[int, ...]
    """Token ids; the target at index t is for the token after `ids[t]`."""
    start: int
    """First index with a target: what stands before is context only."""
    target: "TopK | Teacher"
    """The target distribution at indices start .. len(ids) - 1 (or len(ids) - 2 where the last token predicts nothing)."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TopK:
    """A distribution at each position, as its k likeliest tokens; the probabilities sum to 1."""

    tokens: Int[Tensor, "pos k"]
    probs: Float[Tensor, "pos k"]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Teacher:
    """A distribution at each position, as the frozen model's own hidden state before the head: exact, and small."""

    hidden: Float[Tensor, "pos d_model"]

    def __len__(self) -> int:
        return len(self.hidden)


class Objective(Protocol):
    """A method of erasure."""

    name: str

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words; `n_layers` is None while the model's depth is not known."""
        ...

    def adapter(self, lm: HookedLM) -> Any:
        """The LoRA to train."""
        ...

    def prepare(self, lm: HookedLM, concept: Concept, *, seed: int, progress: bool) -> dict[str, list[Sample]]:
        """The samples of every term, with targets from the frozen base."""
        ...

    def loss(self, lm: HookedLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Mean loss over the target positions of each term, unweighted."""
        ...

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        ...


def distribution_loss(lm: HookedLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """KL(target ‖ model) in nats a token, averaged over the target positions of each term.

    Its gradient is that of the cross-entropy with a soft target (paper, equations 7 to 9); less the target's entropy, so
    that 0 means reached. One forward pass serves all samples, and the head runs in chunks of `HEAD_ROWS` positions.
    """
    batch = lm.pad([sample.ids for sample in samples])
    hidden = lm.hidden(batch, grad=True)
    losses: dict[str, Tensor] = {}
    for term in dict.fromkeys(sample.term for sample in samples):
        rows = [(i, s) for i, s in enumerate(samples) if s.term == term]
        at = [hidden[i, s.start : s.start + len(s.target)] for i, s in rows]
        targets = [s.target for _, s in rows]
        losses[term] = _HeadKL.apply(torch.cat(at), lm, targets)
    return losses


class _HeadKL(torch.autograd.Function):
    """KL to targets through the frozen head; the gradient is taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lm: HookedLM, targets: list[TopK | Teacher]) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grads = torch.empty_like(hidden)
        start = 0
        for rows, target in _chunks(targets):
            stop = start + rows
            with torch.enable_grad():
                leaf = hidden[start:stop].detach().requires_grad_()
                loss = _kl(lm, leaf, target)
                (grads[start:stop],) = torch.autograd.grad(loss, leaf)
            total += loss.detach()
            start = stop
        ctx.save_for_backward(grads / len(hidden))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad_outputs[0].to(grads.dtype), None, None


def _chunks(targets: list[TopK | Teacher]) -> list[tuple[int, TopK | Teacher]]:
    if isinstance(targets[0], TopK):
        tokens = torch.cat([t.tokens for t in targets])  # type: ignore[union-attr]
        probs = torch.cat([t.probs for t in targets])  # type: ignore[union-attr]
        pieces = zip(tokens.split(HEAD_ROWS), probs.split(HEAD_ROWS), strict=True)
        return [(len(t), TopK(t, p)) for t, p in pieces]
    hidden = torch.cat([t.hidden for t in targets])  # type: ignore[union-attr]
    return [(len(h), Teacher(h)) for h in hidden.split(HEAD_ROWS)]


def _kl(lm: HookedLM, hidden: Float[Tensor, "pos d_model"], target: TopK | Teacher) -> Tensor:
    logits = lm.unembed(hidden).float()
    if isinstance(target, TopK):
        probs = target.probs.to(logits)
        chosen = logits.gather(1, target.tokens.to(logits.device).long()) - logits.logsumexp(1, keepdim=True)
        # xlogy, since a target's probability may be exactly zero and 0 × log 0 is NaN
        return (torch.xlogy(probs, probs) - probs * chosen).sum()
    with torch.no_grad():
        goal = lm.unembed(target.hidden.to(hidden)).float().log_softmax(1)
    return torch.nn.functional.kl_div(logits.log_softmax(1), goal, log_target=True, reduction="sum")

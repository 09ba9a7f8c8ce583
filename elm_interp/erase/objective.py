"""What a method of erasure is to the trainer: frozen hyper-parameters with `prepare` and `loss`.

`prepare` computes everything that depends on frozen weights alone, once and in large batches. `loss` gives named terms for
a few samples; the trainer weighs, logs and checks each. Nothing here knows of files, schedules or optimisers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from elm_interp.data import Concept
from elm_interp.models import HookedLM
from elm_interp.models.scoring import branch, gather_log_probs

HEAD_ROWS = 256
"""Positions whose logits are alive at once, so that memory does not grow with tokens × vocabulary."""
EPS = 1e-6
"""Below this, the sum of the tokens that a target does not name is rounding error."""


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

    @property
    def where(self) -> slice | list[int]:
        """The indices that have a target."""
        return slice(self.start, self.start + len(self.target))


@dataclass(frozen=True)
class TopK:
    """A distribution at each position: k tokens one by one, the rest of the vocabulary as the one sum that is missing to 1."""

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


@dataclass(frozen=True)
class Options:
    """A prompt with texts that may follow it, and how likely the model should find each of their tokens."""

    term: str
    """The loss term it belongs to: "answers", "kept_answers"."""
    id: str
    """Which question it came from, for error messages."""
    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    options: tuple[tuple[int, ...], ...]
    """Token ids of each text that may follow."""
    goal: Float[Tensor, " token"]
    """Log-probability (nats) that each token of each option should have, flat."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.goal)


class Objective(Protocol):
    """A method of erasure."""

    name: str

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words; `n_layers` is None while the model's depth is not known."""
        ...

    def adapter(self, lm: HookedLM) -> Any:
        """The LoRA to train."""
        ...

    def prepare(self, lm: HookedLM, concept: Concept, *, seed: int, progress: bool) -> dict[str, list[Any]]:
        """The samples of every term, with targets from the frozen base.

        A sample is of a kind of the method's own: what it needs is a `term` (the pool it is drawn from, see
        `Training.batch_sizes`), an `id` for error messages, and a length in tokens.
        """
        ...

    def loss(self, lm: HookedLM, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Mean loss of each term, unweighted, on samples of one kind; the terms need not be the pools' names."""
        ...

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        ...


def distribution_loss(lm: HookedLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """KL(target ‖ model) in nats a token, averaged over the target positions of each term.

    Its gradient is that of the cross-entropy with a soft target (paper, equations 7 to 9); less the target's entropy, so
    that 0 means reached. One forward pass serves all samples of like length, and the head runs in chunks of `HEAD_ROWS` positions.
    """
    states: dict[int, Tensor] = {}
    for rows in _alike([len(sample) for sample in samples]):
        hidden = lm.hidden(lm.pad([samples[i].ids for i in rows]), grad=True)
        states |= {i: hidden[k, samples[i].where] for k, i in enumerate(rows)}
    losses: dict[str, Tensor] = {}
    for term in dict.fromkeys(sample.term for sample in samples):
        chosen = [i for i, sample in enumerate(samples) if sample.term == term]
        targets = [samples[i].target for i in chosen]
        losses[term] = _HeadKL.apply(torch.cat([states[i] for i in chosen]), lm, targets)
    return losses


def token_loss(lm: HookedLM, hidden: Float[Tensor, "pos d_model"], ids: Int[Tensor, " pos"]) -> Tensor:
    """Mean cross-entropy (nats) of one token at each position, through the frozen head in chunks."""
    return _HeadKL.apply(hidden, lm, [TopK(ids[:, None], torch.ones(len(ids), 1, device=ids.device))])


def layer_problems(layers: Sequence[int], n_layers: int | None) -> list[str]:
    """What is wrong with a choice of blocks, in words."""
    found = []
    if not layers:
        found.append("layers is empty; name at least one block")
    if len(set(layers)) != len(layers) or any(layer < 0 for layer in layers):
        found.append(f"layers are {list(layers)}; expected different indices from 0")
    if n_layers is not None and any(layer >= n_layers for layer in layers):
        found.append(f"layers go to {max(layers)}, but the model has layers 0 to {n_layers - 1}")
    return found


def number_problems(objective: Any, least: dict[str, float]) -> list[str]:
    """Which fields are below the least they can be, or not finite, in words; None passes."""
    given = {name: getattr(objective, name) for name in least}
    return [
        f"{name} is {value}; expected a finite number of at least {least[name]}"
        for name, value in given.items()
        if value is not None and not least[name] <= value < math.inf
    ]


def likelihood_loss(lm: HookedLM, samples: Sequence[Options]) -> dict[str, Tensor]:
    """Smooth L1 distance of the log-probability of each option's tokens to its goal, averaged over the tokens of each term.

    A divergence hardly sees a token of small probability, since its gradient there is p - q; of the answers to a question
    all but a few are such. Their logarithms are what choosing between answers compares.
    """
    hidden, ids = branch(lm, [s.prompt for s in samples], [s.options for s in samples], grad=True)
    goal = torch.cat([s.goal for s in samples])
    losses = smooth_l1_loss(gather_log_probs(lm, hidden, ids), goal, reduction="none").split(
        [len(s.goal) for s in samples]
    )
    return {
        term: torch.cat([loss for loss, s in zip(losses, samples, strict=True) if s.term == term]).mean()
        for term in dict.fromkeys(s.term for s in samples)
    }


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of like length, so that short questions are not padded to the length of passages."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= 0.6 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class _HeadKL(torch.autograd.Function):
    """Mean KL to targets through the frozen head, its gradient written out by hand chunk by chunk in the forward pass.

    With p the model's probabilities and q the target's, the gradient at a token's logit is p - q; where a target names k
    tokens and a rest, p · (1 - q_rest / p_rest) at the tokens of the rest. Writing it out makes four passes over the
    vocabulary of what autograd makes in a dozen, and those passes are most of the head's time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lm: HookedLM, targets: list[TopK | Teacher]) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grads = torch.empty_like(hidden)
        start = 0
        for rows, target in _chunks(targets):
            stop = start + rows
            logits = lm.unembed(hidden[start:stop])
            loss, grad = (
                _named(logits, target)
                if isinstance(target, TopK)
                else _whole(logits, lm.unembed(target.hidden.to(hidden)))
            )
            total += loss
            grads[start:stop] = lm.unembed_gradient(grad, logits)
            start = stop
        ctx.save_for_backward(grads / len(hidden))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad_outputs[0].to(grads.dtype), None, None


def _named(logits: Float[Tensor, "pos d_vocab"], target: TopK) -> tuple[Tensor, Float[Tensor, "pos d_vocab"]]:
    """Summed KL to k named tokens and a rest, and its gradient at the logits."""
    p = logits.softmax(1, dtype=torch.float32)
    tokens, q = target.tokens.to(p.device).long(), target.probs.to(p)
    named = p.gather(1, tokens)
    p_rest, q_rest = (1 - named.sum(1)).clamp(min=EPS), (1 - q.sum(1)).clamp(min=EPS)
    # xlogy, since a target's probability may be exactly zero and 0 × log 0 is NaN; the logarithm of p by way of the
    # logits, since p itself may underflow
    log_named = logits.gather(1, tokens).float() - logits.float().logsumexp(1, keepdim=True)
    loss = (torch.xlogy(q, q) - q * log_named).sum() + (q_rest * (q_rest.log() - p_rest.log())).sum()
    grad = p.mul_(1 - q_rest[:, None] / p_rest[:, None])
    return loss, grad.scatter_(1, tokens, named - q)


def _whole(
    logits: Float[Tensor, "pos d_vocab"], goal: Float[Tensor, "pos d_vocab"]
) -> tuple[Tensor, Float[Tensor, "pos d_vocab"]]:
    """Summed KL to a whole distribution, given as logits, and its gradient at the logits."""
    log_p, log_q = logits.log_softmax(1, dtype=torch.float32), goal.log_softmax(1, dtype=torch.float32)
    q = log_q.exp()
    loss = torch.dot(q.flatten(), log_q.sub_(log_p).flatten())
    return loss, log_p.exp_().sub_(q)


def _chunks(targets: list[TopK | Teacher]) -> list[tuple[int, TopK | Teacher]]:
    if isinstance(targets[0], TopK):
        tokens = torch.cat([t.tokens for t in targets])  # type: ignore[union-attr]
        probs = torch.cat([t.probs for t in targets])  # type: ignore[union-attr]
        pieces = zip(tokens.split(HEAD_ROWS), probs.split(HEAD_ROWS), strict=True)
        return [(len(t), TopK(t, p)) for t, p in pieces]
    hidden = torch.cat([t.hidden for t in targets])  # type: ignore[union-attr]
    return [(len(h), Teacher(h)) for h in hidden.split(HEAD_ROWS)]

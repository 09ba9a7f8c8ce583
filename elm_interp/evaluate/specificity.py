"""Specificity on running text: did the eraser leave the rest alone?

Questions ask for single facts (see `choices`); passages show the whole distribution. Perplexity measures how well the
text is still predicted. The KL divergence from the base measures how far the predictions moved, for all tokens and not
only for the one that came next. On forget passages the perplexity should rise.

Each state reads the passages once. The base's hidden states are kept (tokens × d_model numbers) and serve all its
erased versions. Passages are cut to `MAX_TOKENS`; those of one token are left out, since nothing in them is predicted,
and those beyond the model's context.

    table = measure(subject, ["specificity.retain_*", "specificity.kl_to_base"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from elm_interp.data import texts
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.errors import not_finite
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio, pooled_mean
from elm_interp.metrics import Subject, metric
from elm_interp.models import HookedLM
from elm_interp.models.scoring import gather_log_probs
from elm_interp.models.tokens import fitting
from elm_interp.models.unembedding import at_logits
from elm_interp.results import measurements

MAX_TOKENS = 512
"""Most tokens of a passage; the rest is cut."""


@dataclass(frozen=True)
class Reading:
    """Hidden states and log-probabilities of passages in one state of the model."""

    rows: list[list[int]]
    """Token ids of each passage."""
    hidden: list[Float[Tensor, "pos d_model"]]
    """Hidden states after the final norm at every token but the last, on the CPU, in the model's dtype."""
    log_probs: list[Float[Tensor, " pos"]]
    """Log-probability of every token but the first."""


@torch.no_grad()
def read_passages(lm: HookedLM, passages: Sequence[str], *, max_tokens: int = PASS_TOKENS) -> Reading:
    """Run passages through the model in its current state.

    Args:
        lm: the model.
        passages: texts; those of fewer than two tokens are left out, and those beyond the context with a warning.
        max_tokens: most tokens of one pass, with padding.

    Raises:
        NotFiniteError: a hidden state or log-probability is NaN or infinite; the message names the passage.
    """
    passages = [passages[i] for i in fitting(lm, passages, "passages")]
    encoded = zip(passages, lm.encode(passages, max_tokens=MAX_TOKENS), strict=True)
    kept = [(text, row) for text, row in encoded if len(row) > 1]
    rows = [row for _, row in kept]
    hidden, log_probs = ([torch.empty(0)] * len(rows) for _ in range(2))
    for batch in bucketed([len(row) for row in rows], max_tokens=max_tokens):
        tokens = lm.pad([rows[i] for i in batch])
        states, scored = lm.hidden(tokens)[:, :-1], tokens.attention_mask[:, 1:].bool()
        lengths, flat = (tokens.lengths - 1).tolist(), states[scored]
        found = gather_log_probs(lm, flat, tokens.input_ids[:, 1:][scored])
        for i, state, log_prob in zip(
            batch, torch.split(flat.cpu(), lengths), torch.split(found, lengths), strict=True
        ):
            if not bool(state.isfinite().all() and log_prob.isfinite().all()):
                raise not_finite(f"the predictions on the passage {kept[i][0][:40]!r}", lm.dtype)
            hidden[i], log_probs[i] = state, log_prob
    return Reading(rows, hidden, log_probs)


@torch.no_grad()
def kl_divergences(
    lm: HookedLM,
    base: Sequence[Tensor],
    other: Sequence[Tensor],
    *,
    base_lm: HookedLM | None = None,
    adapters: tuple[str | Path | None, str | Path | None] | None = None,
) -> list[Float[Tensor, " pos"]]:
    """KL(base ‖ other) in nats at each position, from hidden states after the final norm.

    Args:
        lm: the model whose unembedding turns `other` into logits.
        base: states of the base, (pos, d_model) for each passage.
        other: states of the other model at the same positions.
        base_lm: the model whose unembedding turns `base` into logits; by default `lm`.
        adapters: those under which `base` and `other` were read, for their unembeddings; by default the one that is on.

    Raises:
        NotFiniteError: a divergence is NaN or infinite; the message names passage and position.
    """
    if not base:
        return []

    def of(_: slice, ours: Tensor, theirs: Tensor) -> tuple[Tensor]:
        p, q = ours.float().log_softmax(-1), theirs.float().log_softmax(-1)
        return (torch.nn.functional.kl_div(q, p.to(q), log_target=True, reduction="none").sum(-1).cpu(),)

    streams = (base_lm or lm, torch.cat(list(base))), (lm, torch.cat(list(other)))
    (found,) = at_logits(of, *streams, adapters=adapters)
    divergences = list(torch.split(found, [len(h) for h in base]))
    for number, one in enumerate(divergences):
        if not bool(one.isfinite().all()):
            at = int((~one.isfinite()).nonzero()[0, 0])
            raise not_finite(f"the KL divergence on passage {number} at position {at}", lm.dtype)
    return divergences


def reading(subject: Subject, kind: str) -> Reading:
    """The held-out "forget" or "retain" passages, read once by each state."""

    def compute() -> Reading:
        with subject.on() as lm:
            return read_passages(lm, texts(subject.concept.passages(kind, "held_out")))

    return subject.memo(("reading", kind), compute)


def _ratio(subject: Subject, name: str, kind: str) -> list[dict[str, Any]]:
    ours, base = reading(subject, kind), reading(subject.base, kind)
    if not ours.rows:
        return []
    return [measurements(name, **perplexity_ratio(Sums.losses(ours.log_probs), Sums.losses(base.log_probs)))]


@metric(
    "specificity.retain_ppl", shows="kept", better="down",
    protocol="held-out retain passages, token-weighted; bootstrap over passages",
)  # fmt: skip
def retain_ppl(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity on held-out retain passages."""
    found = reading(subject, "retain")
    return [measurements("specificity.retain_ppl", **perplexity_of(Sums.losses(found.log_probs)))] if found.rows else []


@metric(
    "specificity.retain_ppl_ratio", shows="kept", better="down", unit="× base", needs_base=True, headline=True,
    ruined=5,
    protocol="held-out retain passages, perplexity over the base's; paired bootstrap over passages; 1 = unchanged",
)  # fmt: skip
def retain_ppl_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity on held-out retain passages, as a multiple of the base's."""
    return _ratio(subject, "specificity.retain_ppl_ratio", "retain")


@metric(
    "specificity.kl_to_base", shows="kept", better="down", unit="nats/token", needs_base=True,
    protocol="KL(base || erased) on held-out retain passages, mean over tokens; bootstrap over passages; 0 = unchanged",
)  # fmt: skip
def kl_to_base(subject: Subject) -> list[dict[str, Any]]:
    """Mean KL divergence of the predictions from the base's on held-out retain passages."""
    ours, base = reading(subject, "retain"), reading(subject.base, "retain")
    if not ours.rows:
        return []
    adapters = (subject.base.adapter, subject.adapter)
    found = kl_divergences(subject.lm, base.hidden, ours.hidden, base_lm=subject.base.lm, adapters=adapters)
    return [measurements("specificity.kl_to_base", **pooled_mean(Sums.of(found)))]


@metric(
    "innocence.forget_ppl_ratio", shows="describes", better="up", unit="× base", needs_base=True, on_card=True,
    protocol="held-out forget passages, perplexity over the base's; paired bootstrap over passages; 1 = unchanged",
)  # fmt: skip
def forget_ppl_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity on held-out passages about the concept, as a multiple of the base's."""
    return _ratio(subject, "innocence.forget_ppl_ratio", "forget")

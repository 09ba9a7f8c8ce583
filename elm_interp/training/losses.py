"""Losses that methods share: divergence from a target distribution, logit matching, cross-entropy of tokens.

A divergence hardly sees unlikely tokens: its gradient at a token is p - q, which vanishes once both are tiny, and the
old answers may keep their order underneath. *Logit matching* (Ba and Caruana 2014, here on ELM's target) compares
log-probabilities instead: what the base would say must become as unlikely as the target says. At each position it is
the smooth L1 distance of the model's log-probability to the target's, over the tokens that the target names, weighted
by the base's probability.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from elm_interp.models import HookedLM
from elm_interp.models.unembedding import differentiable, log_prob
from elm_interp.training.objective import Sample, Teacher, TopK

EPS = 1e-6
"""A probability below this, left for the tokens that a target does not name, is rounding error."""
FLOOR = -20.0
"""Least log-probability (nats) that logit matching asks for; it raises what is below."""


def distribution_loss(lm: HookedLM, samples: Sequence[Sample], *, matching: float = 0.0) -> dict[str, Tensor]:
    """KL(target ‖ model) in nats a token, averaged over the target positions of each term.

    This is the cross-entropy with a soft target (ELM, equations 7 to 9) less the target's entropy: the gradient is the
    same, and 0 means that the target is reached. Samples of similar length share a forward pass.

    Args:
        lm: the model, with the adapter that is trained.
        samples: texts with targets.
        matching: weight of logit matching, which is added where a target knows the base's probabilities.

    Returns:
        The loss of each term among the samples.
    """
    states: dict[int, Tensor] = {}
    for rows in _similar([len(sample) for sample in samples]):
        hidden = lm.hidden(lm.pad([samples[i].ids for i in rows]), grad=True)
        states |= {i: hidden[k, samples[i].where] for k, i in enumerate(rows)}
    losses: dict[str, Tensor] = {}
    for term in dict.fromkeys(sample.term for sample in samples):
        chosen = [i for i, sample in enumerate(samples) if sample.term == term]
        targets = [samples[i].target for i in chosen]
        losses[term] = _divergence(lm, torch.cat([states[i] for i in chosen]), targets, matching).mean()
    return losses


def _divergence(
    lm: HookedLM, hidden: Float[Tensor, "pos d_model"], targets: Sequence[TopK | Teacher], matching: float
) -> Tensor:
    if isinstance(targets[0], TopK):
        named = TopK.joined(targets)  # type: ignore[arg-type]

        def to_named(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            return _to_named(logits, named.at(rows), matching)

        return differentiable(lm, hidden, to_named)
    teacher = torch.cat([t.hidden for t in targets])  # type: ignore[union-attr]
    return differentiable(lm, hidden, lambda _, logits, goal: _to_whole(logits, goal), teacher)


def token_loss(lm: HookedLM, hidden: Float[Tensor, "pos d_model"], ids: Int[Tensor, " pos"]) -> Tensor:
    """Mean cross-entropy (nats) of one token at each position, through the frozen unembedding."""
    return -differentiable(lm, hidden, lambda rows, logits: log_prob(logits, ids[rows])).mean()


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length, so that short questions are not padded to the length of passages."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= 0.6 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _to_named(
    logits: Float[Tensor, "pos d_vocab"], target: TopK, matching: float = 0.0
) -> tuple[Float[Tensor, " pos"], Float[Tensor, "pos d_vocab"]]:
    """KL to k named tokens and a rest at each position, and its gradient at the logits.

    With p the model's probabilities and q the target's, the gradient at a named token's logit is p - q, and at a token
    of the rest p · (1 - q_rest / p_rest). With g the gradient of logit matching at the named log-probabilities, p · Σ g
    is taken from every token's and g is added to each named one's.
    """
    log_p = logits.log_softmax(1, dtype=torch.float32)
    tokens, q = target.tokens.to(log_p.device).long(), target.probs.to(log_p)
    log_named = log_p.gather(1, tokens)
    named = log_named.exp()
    p_rest, q_rest = (1 - named.sum(1)).clamp(min=EPS), (1 - q.sum(1)).clamp(min=EPS)
    # xlogy, since a target's probability may be exactly 0, and 0 × log 0 is NaN
    loss = (torch.xlogy(q, q) - q * log_named).sum(1) + q_rest * (q_rest.log() - p_rest.log())
    rest, own = 1 - q_rest / p_rest, named - q
    if matching and target.base is not None:
        distance = log_named - q.log().clamp(min=FLOOR)
        share = matching * target.base.to(log_p)
        loss = loss + (share * smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")).sum(1)
        pull = share * distance.clamp(-1, 1)
        total = pull.sum(1)
        rest, own = rest - total, own + pull - named * total[:, None]
    grad = log_p.exp_().mul_(rest[:, None])
    return loss, grad.scatter_(1, tokens, own)


def _to_whole(
    logits: Float[Tensor, "pos d_vocab"], goal: Float[Tensor, "pos d_vocab"]
) -> tuple[Float[Tensor, " pos"], Float[Tensor, "pos d_vocab"]]:
    """KL to a whole distribution at each position, given as logits, and its gradient at the model's logits."""
    log_p, log_q = logits.log_softmax(1, dtype=torch.float32), goal.log_softmax(1, dtype=torch.float32)
    q = log_q.exp()
    loss = log_q.sub_(log_p).mul_(q).sum(1)
    return loss, log_p.exp_().sub_(q)

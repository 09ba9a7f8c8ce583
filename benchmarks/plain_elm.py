"""ELM in the straightforward form, one sample at a time, as in the authors' code: the reference for results and times.

For each sample the frozen model runs three passes, one after the other. Whole vocabularies are kept. Every term has a
backward pass of its own. The text of the fluency term is generated for this one sample, by three streams that run in
turn.

    parameters = lm.adapters.attach(objective.adapter.config(lm))
    plain_step(lm, objective, forget, retain, (expert, novice))      # adds to the gradients of the parameters
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from elm_interp.erase.elm import ELM
from elm_interp.models import HookedLM
from elm_interp.models.generation import end_ids


def plain_step(
    lm: HookedLM,
    objective: ELM,
    forget: Sequence[int],
    retain: Sequence[int],
    classes: tuple[str, str],
    *,
    opening: Sequence[int] = (),
    new_tokens: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Add the weighted gradients of one sample to those of the adapter that is on.

    Args:
        lm: the model, with a trainable adapter on.
        objective: gives η and the weights.
        forget: token ids of a passage.
        retain: token ids of another.
        classes: the expert's and the novice's prompt.
        opening: token ids of the fluency term's prompt.
        new_tokens: generated tokens at most; 0 leaves the fluency term out.
        seed: of the sampling.

    Returns:
        Cross-entropy of each term with its target, in nats a token.
    """
    weights = objective.weights()
    found = {
        "erase": _learn(lm, forget, guided(lm, objective, forget, classes)[:-1], weights["erase"]),
        "retain": _learn(lm, retain, _frozen(lm, "", retain)[:-1].softmax(-1), weights["retain"]),
    }
    written = write(lm, objective, opening, classes, new_tokens, seed) if new_tokens else []
    if written:
        row = [*opening, *written]
        target = guided(lm, objective, row, classes)[len(opening) - 1 : -1]
        found["fluency"] = _learn(lm, row, target, weights["fluency"])
    return found


def guided(lm: HookedLM, objective: ELM, ids: Sequence[int], classes: tuple[str, str]) -> Float[Tensor, "pos d_vocab"]:
    """P_erased after each token, from three passes."""
    plain, expert, novice = (_frozen(lm, prefix, ids) for prefix in ("", *classes))
    return objective.guidance.log_probs(plain, expert, novice).exp()


@torch.no_grad()
def write(
    lm: HookedLM, objective: ELM, opening: Sequence[int], classes: tuple[str, str], new_tokens: int, seed: int
) -> list[int]:
    """Token ids sampled from P_erased after the opening, each stream by itself, without the end-of-text token."""
    guidance = objective.guidance
    generator, stop = torch.Generator().manual_seed(seed), end_ids(lm)
    new = [stream(lm, prefix, opening) for prefix in ("", *classes)]
    caches: list[Any] = [None] * len(new)
    written: list[int] = []
    with lm.adapter(None):
        for _ in range(new_tokens):
            logits = []
            for i, ids in enumerate(new):
                read = lm.model(torch.tensor([ids], device=lm.device), past_key_values=caches[i], use_cache=True)
                caches[i] = read.past_key_values
                logits.append(read.logits[:, -1])
            best = guidance.log_probs(*logits)[0].topk(min(guidance.top_k, lm.d_vocab))
            drawn = torch.multinomial(best.values.softmax(-1).cpu(), 1, generator=generator)
            token = int(best.indices.cpu()[drawn])
            if token in stop:
                break
            written.append(token)
            new = [[token]] * len(new)
    return written


def _learn(lm: HookedLM, ids: Sequence[int], target: Float[Tensor, "pos d_vocab"], weight: float) -> float:
    """Add a term's gradient; the target is for the last tokens of the row."""
    logits = lm.logits(lm.pad([ids]), positions="all", grad=True)[0, -1 - len(target) : -1]
    loss = cross_entropy(logits.float(), target)
    (weight * loss).backward()
    return float(loss.detach())


@torch.no_grad()
def _frozen(lm: HookedLM, prefix: str, ids: Sequence[int]) -> Float[Tensor, "pos d_vocab"]:
    """The base's logits after each token, with a prefix before the text."""
    with lm.adapter(None):
        whole = torch.tensor([stream(lm, prefix, ids)], device=lm.device)
        return lm.model(whole, use_cache=False).logits[0, -len(ids) :].float()


def stream(lm: HookedLM, prefix: str, ids: Sequence[int]) -> list[int]:
    """Token ids of a text after a class prompt: one beginning of text, at the start, and no end between the two."""
    if not prefix:
        return list(ids)
    tokenizer = lm.tokenizer
    start = list(tokenizer(prefix)["input_ids"])
    if start[-1] == tokenizer.eos_token_id:
        start.pop()
    begun = start[0] == ids[0] == tokenizer.bos_token_id
    return [*start, *ids[1 if begun else 0 :]]

"""Log-probabilities of text: of answers or continuations after a prompt, and of whole passages.

The keys and values of a prompt are computed once and shared by all its continuations, and the unembedding runs only on
positions that are scored. So a question with five options costs little more than one with a single option.

    lm.log_probs("The cat is called", ["Pepper", "Ginger"])                          # nats, one number an answer
    continuation_log_probs(lm, ["The cat is called"], [[" Pepper", " Ginger"]])      # nats, one number a token
"""

from collections.abc import Sequence
from copy import copy
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache

from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.errors import not_finite
from elm_interp.models.batch import Batch
from elm_interp.models.unembedding import at_logits

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


def log_probs(
    lm: "HookedLM", prompts: str | Sequence[str], answers: Sequence[str] | Sequence[Sequence[str]]
) -> Float[Tensor, " answer"] | list[Float[Tensor, " answer"]]:
    """Log-probability (nats) of each answer after its prompt, summed over the answer's tokens.

    Args:
        lm: the model.
        prompts: a prompt, or a list of prompts.
        answers: of one prompt a list of answers; of several a list for each. An answer follows after a space, unless
            it begins, or its prompt ends, with white space.

    Returns:
        Of one prompt a float32 tensor (answer,) on the CPU; of several a list of such tensors.

    Raises:
        ValueError: a prompt without a token, an empty answer, a prompt without answers, or a string for a list.
        NotFiniteError: a log-probability is NaN; the likeliest of several would be no answer.
    """
    asked = [prompts] if isinstance(prompts, str) else prompts
    groups = cast(Sequence[Sequence[str]], [answers] if isinstance(prompts, str) else answers)
    if len(asked) != len(groups):
        raise ValueError(f"{len(asked)} prompts have {len(groups)} lists of answers; expected one list for each.")
    texts = []
    for prompt, group in zip(asked, groups, strict=True):
        if isinstance(group, str) or not group:
            raise ValueError(f"the answers after {prompt!r} are {group!r}, expected a list of at least one answer.")
        spaced = prompt[-1:].isspace()
        texts.append([answer if spaced or answer[:1].isspace() else f" {answer}" for answer in group])
    found = [torch.stack([tokens.sum() for tokens in group]) for group in continuation_log_probs(lm, asked, texts)]
    for prompt, one in zip(asked, found, strict=True):
        if bool(one.isnan().any()):
            raise not_finite(f"the log-probabilities of the answers after {prompt[:40]!r}", lm.dtype)
    return found[0] if isinstance(prompts, str) else found


@torch.no_grad()
def continuation_log_probs(
    lm: "HookedLM",
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    max_tokens: int = PASS_TOKENS,
    progress: bool = False,
) -> list[list[Float[Tensor, " token"]]]:
    """Log-probability (nats) of each token of each continuation after its prompt.

    A continuation is tokenised together with its prompt, as in running text. If that merges tokens across the border,
    scoring starts after the last token that all of a prompt's continuations share.

    Args:
        lm: the model.
        prompts: contexts, each of at least one token.
        continuations: for each prompt, the texts that may follow, with the space that running text has before them.
        max_tokens: the most padded tokens in a forward pass.
        progress: show a progress bar.

    Returns:
        For each prompt and each of its continuations a vector with one entry a scored token.

    Raises:
        ValueError: a prompt without a token, or a continuation that adds none.
    """
    items = [split_continuations(lm, p, c) for p, c in zip(prompts, continuations, strict=True)]
    found: list[list[Tensor]] = [[] for _ in items]
    cost = [len(prefix) + sum(map(len, rests)) for prefix, rests in items]
    batches = bucketed(cost, max_tokens=max_tokens)
    for batch in tqdm(batches, desc="scoring", leave=False, disable=not progress):
        prefixes, rests = zip(*(items[i] for i in batch), strict=True)
        flat = gather_log_probs(lm, *branch(lm, prefixes, rests))
        scores = iter(flat.split([len(option) for group in rests for option in group]))
        for i in batch:
            found[i] = [next(scores) for _ in items[i][1]]
    return found


@torch.no_grad()
def token_log_probs(
    lm: "HookedLM", texts: Sequence[str], *, max_tokens: int = PASS_TOKENS, progress: bool = False
) -> list[Float[Tensor, " token"]]:
    """Log-probability (nats) of each token of each text given those before it; the first token is not scored.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    rows = lm.encode(texts)
    for text, row in zip(texts, rows, strict=True):
        if len(row) < 2:
            raise ValueError(f"cannot score {text!r}: it has {len(row)} tokens, expected at least 2.")
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    batches = bucketed([len(row) for row in rows], max_tokens=max_tokens)
    for batch in tqdm(batches, desc="scoring", leave=False, disable=not progress):
        tokens = lm.pad([rows[i] for i in batch])
        hidden = lm.hidden(tokens)[:, :-1]
        scored = tokens.attention_mask[:, 1:].bool()
        flat = gather_log_probs(lm, hidden[scored], tokens.input_ids[:, 1:][scored])
        for i, part in zip(batch, torch.split(flat, (tokens.lengths - 1).tolist()), strict=True):
            found[i] = part
    return found


@torch.no_grad()
def gather_log_probs(lm: "HookedLM", hidden: Float[Tensor, "n d_model"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probability (nats) of one token at each position, on the CPU, without a large tensor of logits."""

    def of(rows: slice, logits: Tensor) -> tuple[Tensor]:
        logits = logits.float()
        return (logits.gather(1, ids[rows, None])[:, 0] - logits.logsumexp(1),)

    return at_logits(of, (lm, hidden))[0].cpu() if len(ids) else torch.empty(0)


def split_continuations(lm: "HookedLM", prompt: str, continuations: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and of each text that may follow it, tokenised as running text.

    Raises:
        ValueError: a prompt without a token, or a continuation that adds none.
    """
    context, *wholes = lm.encode([prompt, *(prompt + c for c in continuations)])
    columns = zip(context, *(whole[:-1] for whole in wholes), strict=False)
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    if shared < 1:
        raise ValueError(
            f"cannot score after {prompt!r}: it shares no first token with its continuations {list(continuations)!r}."
        )
    for continuation, whole in zip(continuations, wholes, strict=True):
        if not continuation.strip() or len(whole) <= shared:
            raise ValueError(f"continuation {continuation!r} adds no token to {prompt!r}.")
    return context[:shared], [whole[shared:] for whole in wholes]


def branch(
    lm: "HookedLM",
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    prefix: Sequence[int] = (),
    grad: bool = False,
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]:
    """Hidden states that predict each token of each option after its prompt, and these tokens, in order and flat.

    Each prompt runs once: its options share its keys and values, and all prompts share those of the prefix.

    Args:
        lm: the model.
        prompts: token ids of each prompt.
        options: for each prompt, the token ids of the texts that may follow.
        prefix: token ids before every prompt.
        grad: record the graph, for training.
    """
    flat = [option for group in options for option in group]
    owner = torch.tensor([i for i, group in enumerate(options) for _ in group], device=lm.device)
    asked = lm.pad(prompts)
    cache, mask = after_prefix(lm, prefix, asked, grad=grad)
    hidden, cache = lm.step(asked.input_ids, mask, len(prefix) + asked.position_ids, cache, grad=grad)
    last = hidden[torch.arange(len(asked), device=lm.device), asked.lengths - 1]
    found, places = [last.index_select(0, owner)], [(i, 0) for i in range(len(flat))]
    for group in _of_similar_length(flat):
        rest = lm.pad([flat[i][:-1] for i in group])
        whose = owner[group]
        positions = len(prefix) + asked.lengths[whose, None] + rest.position_ids
        whole = torch.cat([mask[whose], rest.attention_mask], 1)
        after, _ = lm.step(rest.input_ids, whole, positions, _rows(cache, whose), grad=grad)
        found.append(after[rest.attention_mask.bool()])
        places += [(i, t) for i in group for t in range(1, len(flat[i]))]
    order = sorted(range(len(places)), key=places.__getitem__)
    ids = torch.tensor([token for option in flat for token in option], device=lm.device)
    return torch.cat(found)[order], ids


def _of_similar_length(options: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the options of two tokens or more, in groups that pad none to more than about twice its length."""
    groups: list[list[int]] = []
    for i in sorted((i for i, option in enumerate(options) if len(option) > 1), key=lambda i: -len(options[i])):
        if groups and 2 * (len(options[i]) - 1) >= len(options[groups[-1][0]]) - 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _rows(cache: Cache, rows: Int[Tensor, " row"]) -> Cache:
    """The keys and values of some rows, in a cache of their own.

    The cache's own `batch_select_indices` indexes, and on a CPU the gradient of indexing adds up in any order. That of
    `index_select` always adds up in the same order, so that a run repeats to the bit.
    """
    chosen = copy(cache)
    chosen.layers = [copy(layer) for layer in cache.layers]
    for layer in cast(list[Any], chosen.layers):
        layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
    return chosen


def after_prefix(
    lm: "HookedLM", prefix: Sequence[int], batch: Batch, *, grad: bool = False
) -> tuple[Cache | None, Int[Tensor, "batch prefix_and_pos"]]:
    """The keys and values of a prefix of every row, computed once, and the mask of prefix and rows."""
    if not prefix:
        return None, batch.attention_mask
    alone = lm.pad([prefix])
    _, cache = lm.step(alone.input_ids, alone.attention_mask, alone.position_ids, grad=grad)
    cache.batch_repeat_interleave(len(batch))
    return cache, torch.cat([alone.attention_mask.expand(len(batch), -1), batch.attention_mask], 1)

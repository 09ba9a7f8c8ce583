"""Log-probabilities of text: of answers or continuations after a prompt, and of whole passages.

The keys and values of a prompt are computed once and shared by all its continuations, and the unembedding runs only on
positions that are scored. So a question with five options costs little more than one with a single option.

    lm.log_probs("The cat is called", ["Pepper", "Ginger"])                          # nats, one number an answer
    continuation_log_probs(lm, ["The cat is called"], [[" Pepper", " Ginger"]])      # nats, one number a token
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.errors import not_finite
from elm_interp.models.shared_prefix import branch
from elm_interp.models.tokens import check_length, unchecked
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
        NotFiniteError: a log-probability is NaN; the likeliest of several would be no answer.
        ValueError: a prompt without a token, an empty answer, a prompt without answers, a string for a list, or a text
            beyond the context.
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
    its scoring starts after the last token that it shares with the prompt alone, whatever the other continuations are.

    Args:
        lm: the model.
        prompts: contexts, each of at least one token.
        continuations: for each prompt, the texts that may follow, with the space that running text has before them.
        max_tokens: the most padded tokens in a forward pass.
        progress: show a progress bar.

    Returns:
        For each prompt and each of its continuations a vector with one entry a scored token.

    Raises:
        ValueError: a prompt without a token, a continuation that adds none, or both together beyond the context.
    """
    items = [split_continuations(lm, p, c) for p, c in zip(prompts, continuations, strict=True)]
    for prompt, item in zip(prompts, items, strict=True):
        check_length(
            lm, len(item.prompt) + max(map(len, item.rests), default=0), f"{prompt[:40]!r} with a continuation"
        )
    found: list[list[Tensor]] = [[] for _ in items]
    cost = [len(item.prompt) + sum(map(len, item.rests)) for item in items]
    batches = bucketed(cost, max_tokens=max_tokens)
    for batch in tqdm(batches, desc="scoring", leave=False, disable=not progress):
        rests = [items[i].rests for i in batch]
        flat = gather_log_probs(lm, *branch(lm, [items[i].prompt for i in batch], rests))
        scores = iter(torch.split(flat, [len(option) for group in rests for option in group]))
        for i in batch:
            found[i] = [next(scores)[inside:] for inside in items[i].inside]
    return found


@torch.no_grad()
def token_log_probs(
    lm: "HookedLM", texts: Sequence[str], *, max_tokens: int = PASS_TOKENS, progress: bool = False
) -> list[Float[Tensor, " token"]]:
    """Log-probability (nats) of each token of each text given those before it; the first token is not scored.

    Raises:
        ValueError: a text of fewer than two tokens, or beyond the context.
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


class Split(NamedTuple):
    """A prompt and the texts that may follow it, as token ids of running text."""

    prompt: list[int]
    """What the prompt and all the whole texts begin with."""
    rests: list[list[int]]
    """What comes after that in each whole text."""
    inside: list[int]
    """First tokens of each rest that belong to the prompt still, since only another text merges them across the
    border."""


def split_continuations(lm: "HookedLM", prompt: str, continuations: Sequence[str]) -> Split:
    """Split each text at the last token that it shares with its prompt alone; the others do not move this border.

    Lengths are not checked.

    Raises:
        ValueError: a prompt without a token, or a continuation that adds none.
    """
    context, *wholes = unchecked(lm, [prompt, *(prompt + c for c in continuations)])
    borders = [_shared(context, whole) for whole in wholes]
    for continuation, whole, border in zip(continuations, wholes, borders, strict=True):
        if border < 1:
            raise ValueError(f"cannot score after {prompt!r}: it shares no first token with {prompt + continuation!r}.")
        if not continuation.strip() or len(whole) <= border:
            raise ValueError(f"continuation {continuation!r} adds no token to {prompt!r}.")
    first = min(borders, default=len(context))
    return Split(context[:first], [whole[first:] for whole in wholes], [border - first for border in borders])


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of first ids that two rows have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

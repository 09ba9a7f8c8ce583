r"""Generation: text from a model in any state, batched and repeatable.

The model's own generation config (a repetition penalty, a top-k, a temperature) is not used, so that two models are
sampled by the same rules; only its end-of-text tokens are. Adapters that are on and open hooks act as in any pass.

The random numbers are drawn before the first token, one for each prompt and token. So the text of a prompt does not
depend on the rest of its batch, two states of a model are sampled with the same random numbers, and the global random
state does not change. The unembedding runs on the last position only.

    texts = lm.generate(["Who keeps the lamp?\n"], new_tokens=48, seed=0)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.errors import ConfigError, not_finite
from elm_interp.models.batch import Batch
from elm_interp.models.tokens import check_length

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM

FIRST_TRY = 1024
"""Number of likeliest tokens in which the nucleus is searched first; it is nearly always among them."""


@torch.no_grad()
def generate(
    lm: "HookedLM",
    prompts: str | Sequence[str],
    *,
    new_tokens: int = 48,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 0.95,
    greedy: bool = False,
    max_rows: int = 64,
    progress: bool = False,
) -> list[str]:
    """What the model writes after each prompt.

    The same prompts, seed and settings give the same text; how the prompts are batched changes it by rounding alone.

    Args:
        lm: the model.
        prompts: texts, each of at least one token; a single string is a list of one.
        new_tokens: the most tokens to write after each.
        seed: of the sampling.
        temperature: divides the logits.
        top_p: samples from the fewest tokens that together have at least this probability; 1 samples from all.
        greedy: take the likeliest token instead of sampling.
        max_rows: the most prompts in one batch.
        progress: show a progress bar.

    Returns:
        The new text of each prompt, without special tokens; an empty string if the model ended at once.

    Raises:
        ConfigError: settings that cannot work.
        ValueError: a prompt without a token, one that leaves no room for the new tokens in the context, or a model
            whose logits are not finite.
    """
    _check(new_tokens=new_tokens, temperature=temperature, top_p=top_p, max_rows=max_rows)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows = lm.encode(prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        check_length(lm, len(row), repr(prompt[:40]), more=new_tokens)
    noise = torch.rand(len(rows), new_tokens, generator=torch.Generator().manual_seed(seed))
    training = lm.model.training
    written: list[list[int]] = []
    lm.model.eval()  # type: ignore[no-untyped-call]
    try:
        for start in tqdm(range(0, len(rows), max_rows), desc="writing", leave=False, disable=not progress):
            # padding on the left, so that every row continues right after its prompt
            batch = lm.pad(rows[start : start + max_rows], side="left")
            drawn = None if greedy else noise[start : start + max_rows].to(lm.device)
            written += _continue(lm, batch, new_tokens, drawn, temperature, top_p)
    finally:
        lm.model.train(training)
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [str(lm.tokenizer.decode(ids, **settings)) for ids in written]


def draw(
    logits: Float[Tensor, "row d_vocab"], noise: Float[Tensor, " row"], *, temperature: float = 1.0, top_p: float = 1.0
) -> Int[Tensor, " row"]:
    """A token for each row, from its nucleus: the fewest tokens that together have at least probability `top_p`.

    Args:
        logits: of the next token.
        noise: uniform on [0, 1): the point of the nucleus, likeliest token first, at which a token is drawn.
        temperature: divides the logits.
        top_p: size of the nucleus.

    Raises:
        NotFiniteError: the logits are not finite.
    """
    probs = (logits.float() / temperature).softmax(-1)
    _check_numbers(probs, logits.dtype)
    best = probs.topk(min(FIRST_TRY, probs.shape[1]))
    while (size := best.values.shape[1]) < probs.shape[1] and bool((best.values.sum(-1) < top_p).any()):
        best = probs.topk(min(8 * size, probs.shape[1]))
    total = best.values.cumsum(-1)
    # a token is inside if those before it do not reach top_p; the first always is
    inside = (total - best.values < top_p).sum(-1, keepdim=True)
    point = noise[:, None].to(total) * total.gather(1, inside - 1)
    index = torch.searchsorted(total, point, right=True).minimum(inside - 1)
    return best.indices.gather(1, index)[:, 0]


def _continue(
    lm: "HookedLM", batch: Batch, new_tokens: int, noise: Tensor | None, temperature: float, top_p: float
) -> list[list[int]]:
    tokens, mask, positions, cache = batch.input_ids, batch.attention_mask, batch.position_ids, None
    end = end_ids(lm)
    rows: list[list[int]] = [[] for _ in range(len(batch))]
    going = [True] * len(batch)
    for i in range(new_tokens):
        hidden, cache = lm.step(tokens, mask, positions, cache)
        logits = lm.unembed(hidden[:, -1])
        _check_numbers(logits, lm.dtype)  # the largest of NaN would be a token like any other
        chosen = logits.argmax(-1) if noise is None else draw(logits, noise[:, i], temperature=temperature, top_p=top_p)
        for row, token in enumerate(chosen.tolist()):
            going[row] = going[row] and token not in end
            if going[row]:
                rows[row].append(token)
        if not any(going):
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return rows


def end_ids(lm: "HookedLM") -> set[int]:
    """The tokens that end a text."""
    ends = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    ends = lm.tokenizer.eos_token_id if ends is None else ends
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _check_numbers(found: Float[Tensor, "row d_vocab"], dtype: torch.dtype) -> None:
    if bool(found.isnan().any()):
        raise not_finite("cannot write: the logits are not finite", dtype)


def _check(*, new_tokens: int, temperature: float, top_p: float, max_rows: int) -> None:
    finite = 0 < temperature < float("inf")
    rules = (
        (new_tokens >= 1, f"new_tokens is {new_tokens}, expected at least 1"),
        (finite, f"temperature is {temperature}, expected a finite number above 0 (or greedy=True)"),
        (0 < top_p <= 1, f"top_p is {top_p}, expected above 0 and at most 1"),
        (max_rows >= 1, f"max_rows is {max_rows}, expected at least 1"),
    )
    if problems := [problem for holds, problem in rules if not holds]:
        raise ConfigError(f"cannot generate: {'; '.join(problems)}.")

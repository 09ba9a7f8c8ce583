r"""Generation: text from a model in whatever state it is, batched, repeatable, leaving no trace.

`model.generate` fills what a call leaves open from the model's own generation config (a repetition penalty, a top-k, a
temperature), so that two models would be sampled by different rules; here the rules are always given. Adapters that are
on and hooks that are set act as in any other pass.

    texts = generate(lm, ["Who keeps the lamp?\n"], new_tokens=48, seed=0)
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig

from elm_interp.errors import ConfigError
from elm_interp.models.batch import Batch
from elm_interp.models.hooked import HookedLM


@torch.no_grad()
def generate(
    lm: HookedLM,
    prompts: Sequence[str],
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

    The same prompts, seed and settings give the same text; the global random state is left as it was. Sampled text depends
    on which prompts share a batch, greedy text does not (beyond rounding).

    Args:
        lm: the model.
        prompts: texts, each of at least one token.
        new_tokens: at most this many are written after each.
        seed: of the sampling.
        temperature: divides the logits.
        top_p: samples from the likeliest tokens that together have this probability; 1 allows all.
        greedy: take the likeliest token instead of sampling.
        max_rows: prompts in one batch.
        progress: show a bar.

    Returns:
        The new text alone, without special tokens; an empty string where the model ended at once.

    Raises:
        ConfigError: settings that cannot work.
        ValueError: a prompt without a token.
    """
    _check(new_tokens=new_tokens, temperature=temperature, top_p=top_p, max_rows=max_rows)
    settings = _settings(lm, new_tokens, None if greedy else (temperature, top_p))
    rows = lm.encode(prompts)
    training = lm.model.training
    texts: list[str] = []
    # sampling draws on the global generators, of every device over which the model may be spread
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            lm.model.eval()
            for start in tqdm(range(0, len(rows), max_rows), desc="writing", leave=False, disable=not progress):
                # padding on the left, so that every row goes on right after its prompt
                batch = lm.pad(rows[start : start + max_rows], side="left")
                texts += lm.tokenizer.batch_decode(
                    _continue(lm, batch, settings), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
        finally:
            lm.model.train(training)
    return texts


def _continue(lm: HookedLM, batch: Batch, settings: GenerationConfig) -> Int[Tensor, "batch new"]:
    model: Any = lm.model
    written = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings)
    return written[:, batch.input_ids.shape[1] :]


def _settings(lm: HookedLM, new_tokens: int, sampling: tuple[float, float] | None) -> GenerationConfig:
    own = getattr(lm.model, "generation_config", None)
    end = own.eos_token_id if own is not None and own.eos_token_id is not None else lm.tokenizer.eos_token_id
    rules: dict[str, Any] = {"do_sample": False}
    if sampling is not None:
        rules = {"do_sample": True, "temperature": sampling[0], "top_p": sampling[1], "top_k": 0}
    # whatever stays None here is taken from the model's own config
    return GenerationConfig(
        max_new_tokens=new_tokens, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, use_cache=True,
        pad_token_id=lm.pad_id, eos_token_id=end, **rules,
    )  # fmt: skip


def _check(*, new_tokens: int, temperature: float, top_p: float, max_rows: int) -> None:
    problems = []
    if new_tokens < 1:
        problems.append(f"new_tokens is {new_tokens}, expected at least 1")
    if not 0 < temperature < float("inf"):
        problems.append(f"temperature is {temperature}, expected a finite number above 0 (or greedy=True)")
    if not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p}, expected above 0 and at most 1")
    if max_rows < 1:
        problems.append(f"max_rows is {max_rows}, expected at least 1")
    if problems:
        raise ConfigError(f"cannot generate: {'; '.join(problems)}.")

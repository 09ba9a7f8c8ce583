"""Seamlessness: asked about the concept, does the erased model still write sound text?

The measured state generates text after each held-out question about the concept. The untouched base then scores that
text (reverse perplexity). Repetition lowers a perplexity, so two counts are reported with it:

    reverse_ppl    perplexity of the generated text after its prompt, under the base
    distinct2      distinct word pairs / all word pairs, over all texts together
    repetition     share of word 4-grams that occurred earlier in the same text

An empty text has no token, pair or 4-gram, so it adds nothing to any of them; `n` counts the texts that are not empty.
If all are empty, the value is NaN with n = 0. Words are runs of letters and digits, or single marks, in lower case.

    table = measure(subject, "seamlessness.*")
    samples(subject, 4)                       # prompt, the base's text and the erased model's text
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from elm_interp.data import Concept
from elm_interp.data.concept import spread
from elm_interp.errors import not_finite
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio, pooled_mean
from elm_interp.metrics import Subject, metric
from elm_interp.models import HookedLM
from elm_interp.models.generation import generate
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.models.tokens import fitting
from elm_interp.results import measurements

NEW_TOKENS = 48
"""Most tokens generated after each prompt."""

_WRITTEN = f"text after held-out questions, {NEW_TOKENS} new tokens, top-p 0.95, temperature 1"


def prompts(concept: Concept, most: int | None = None) -> list[str]:
    """Held-out questions about the concept, each with a line break; at most so many, evenly spread.

    Empty if the concept has no such questions.
    """
    asked = concept.ask("forget")
    return [question.put("{question}\n") for question in spread(asked, len(asked) if most is None else most)]


def generations(subject: Subject) -> list[str]:
    """The text that this state generates after each of `prompts`, sampled once with the subject's seed.

    Empty after a prompt that leaves no room for it in the model's context; a warning lists these.
    """

    def write() -> list[str]:
        asked = prompts(subject.concept, subject.base.texts)
        with subject.on() as lm:
            fits = fitting(lm, asked, "prompts of generated text", more=NEW_TOKENS)
            found = generate(lm, [asked[i] for i in fits], new_tokens=NEW_TOKENS, seed=subject.seed)
        written = dict(zip(fits, found, strict=True))
        return [written.get(i, "") for i in range(len(asked))]

    return subject.memo(("generations", subject.base.texts, NEW_TOKENS, subject.seed), write)


def samples(subject: Subject, n: int = 4, *, gold: Subject | None = None) -> list[dict[str, str]]:
    """Prompts with the texts of each state: "prompt", "base", "erased" unless the subject is the base, and "gold"."""
    texts = {"prompt": prompts(subject.concept, subject.base.texts), "base": generations(subject.base)}
    if not subject.is_base:
        texts["erased"] = generations(subject)
    if gold is not None:
        texts["gold"] = generations(gold)
    return [{side: found[i] for side, found in texts.items()} for i in spread(range(len(texts["prompt"])), n)]


def losses_after(lm: HookedLM, starts: Sequence[str], texts: Sequence[str]) -> Sums:
    """Loss of each text after its prompt, in nats; 0 over no token for a text that is empty or beyond the context.

    Raises:
        NotFiniteError: a loss is NaN or infinite; the message names the text.
    """
    written = [i for i, text in enumerate(texts) if text.strip()]
    written = [written[k] for k in fitting(lm, [starts[i] + texts[i] for i in written], "generated texts")]
    found = continuation_log_probs(lm, [starts[i] for i in written], [[texts[i]] for i in written])
    losses = {i: -log_probs for i, (log_probs,) in zip(written, found, strict=True)}
    for i, loss in losses.items():
        if not bool(loss.isfinite().all()):
            raise not_finite(f"the loss of the generated text {texts[i][:40]!r}", lm.dtype)
    return Sums.of([losses.get(i, torch.empty(0)) for i in range(len(texts))])


def words(text: str) -> list[str]:
    """Runs of letters and digits, and single punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Distinct word n-grams / all word n-grams, over all texts together; NaN if there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Sequence[str], n: int = 4) -> Sums:
    """For each text: how many of its word n-grams occurred earlier in it, and how many it has."""
    grams = [_grams(text, n) for text in texts]
    again = [len(of_text) - len(set(of_text)) for of_text in grams]
    return Sums(np.array(again, dtype=float), np.array([len(of_text) for of_text in grams], dtype=int))


def jackknife(statistic: Callable[[list[int]], float], n: int) -> tuple[float, float]:
    """95 % interval of a statistic by the jackknife, which leaves out each of n texts in turn.

    For counts of distinct things. The bootstrap draws the same text twice, so its interval would lie below the value.

    Args:
        statistic: function of the indices of the texts that are kept.
        n: number of texts.
    """
    if n < 2:
        return math.nan, math.nan
    everything = list(range(n))
    without = np.array([statistic(everything[:i] + everything[i + 1 :]) for i in everything])
    half = 1.96 * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    centre = statistic(everything)
    return centre - half, centre + half


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[i:] for i in range(n)), strict=False))


def _not_empty(texts: Sequence[str]) -> int:
    return sum(bool(text.strip()) for text in texts)


def _row(subject: Subject, name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The row of a metric; none if the concept has no question to write after."""
    return [measurements(name, **found)] if prompts(subject.concept, subject.base.texts) else []


def _reverse_losses(subject: Subject) -> Sums:
    def compute() -> Sums:
        texts = generations(subject)
        with subject.base.on() as lm:
            return losses_after(lm, prompts(subject.concept, subject.base.texts), texts)

    return subject.memo("reverse losses", compute)


@metric(
    "seamlessness.reverse_ppl", shows="text", better="down", cost="dear",
    protocol=f"{_WRITTEN}; perplexity under the base, given the prompt, token-weighted; bootstrap over texts",
)  # fmt: skip
def reverse_ppl(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity under the base of the text that the model generates about the concept."""
    return _row(subject, "seamlessness.reverse_ppl", perplexity_of(_reverse_losses(subject)))


@metric(
    "seamlessness.reverse_ppl_ratio", shows="text", better="down", unit="× base", cost="dear", needs_base=True,
    headline=True,
    protocol=f"{_WRITTEN}; perplexity under the base over that of the base's own text; bootstrap over prompts, paired",
)  # fmt: skip
def reverse_ppl_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Reverse perplexity as a multiple of that of the base's own text; 1 = as fluent as the base."""
    losses = (_reverse_losses(state) for state in (subject, subject.base))
    return _row(subject, "seamlessness.reverse_ppl_ratio", perplexity_ratio(*losses))


@metric(
    "seamlessness.distinct2", shows="text", better="up", cost="dear",
    protocol=f"{_WRITTEN}; different word pairs / all word pairs, over all texts together; jackknife over texts",
)  # fmt: skip
def distinct2(subject: Subject) -> list[dict[str, Any]]:
    """Share of distinct word pairs, over all texts that the model generates about the concept."""
    texts = generations(subject)
    low, high = jackknife(lambda kept: distinct([texts[i] for i in kept]), len(texts))
    found = {"value": distinct(texts), "n": _not_empty(texts), "ci": (max(low, 0.0), min(high, 1.0))}
    return _row(subject, "seamlessness.distinct2", found)


@metric(
    "seamlessness.distinct2_ratio", shows="text", better="up", unit="× base", cost="dear", needs_base=True,
    headline=True, ruined=0.5,
    protocol=f"{_WRITTEN}; distinct-2 over that of the base's own text; jackknife over prompts, paired",
)  # fmt: skip
def distinct2_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Distinct-2 as a multiple of the base's; 1 = as varied as the base."""
    ours, base = generations(subject), generations(subject.base)

    def ratio(kept: list[int]) -> float:
        under = distinct([base[i] for i in kept])
        return distinct([ours[i] for i in kept]) / under if under else math.nan

    found = {"value": ratio(list(range(len(ours)))), "ci": jackknife(ratio, len(ours))}
    n = sum(bool(a.strip() and b.strip()) for a, b in zip(ours, base, strict=True))
    return _row(subject, "seamlessness.distinct2_ratio", found | {"n": n})


@metric(
    "seamlessness.repetition", shows="text", better="down", cost="dear", ruined=0.5,
    protocol=f"{_WRITTEN}; word 4-grams that the same text had already / all 4-grams; bootstrap over texts",
)  # fmt: skip
def repeated(subject: Subject) -> list[dict[str, Any]]:
    """Share of word 4-grams that occurred earlier in the same generated text about the concept."""
    texts = generations(subject)
    return _row(subject, "seamlessness.repetition", pooled_mean(repetition(texts)) | {"n": _not_empty(texts)})


@metric(
    "seamlessness.judge_ppl", shows="text", better="down", cost="dear",
    protocol=f"{_WRITTEN}; perplexity under an independent judge, given the prompt, token-weighted; "
    "bootstrap over texts",
)  # fmt: skip
def judge_ppl(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity under an independent model of the text generated about the concept; no row without a judge."""
    if (judge := subject.judge) is None:
        return []
    losses = losses_after(judge, prompts(subject.concept, subject.base.texts), generations(subject))
    return _row(subject, "seamlessness.judge_ppl", perplexity_of(losses))

"""Seamlessness: asked about the concept, does the erased model still write proper text?

The state that is measured writes freely after each held-out question about the concept; the untouched base then says how
likely that text is (reverse perplexity). Repetition lowers a perplexity, so two counts always stand beside it:

    reverse_ppl    perplexity of the written text after its prompt, under the base
    distinct2      different word pairs / all word pairs, over all texts together
    repetition     share of word 4-grams that the same text had already

An empty text has no token, pair or 4-gram: it adds nothing to any of them, and `n` counts the texts that are not empty. If
all are empty, the value is NaN with n = 0. Words are runs of letters and digits, or single marks, in lower case.

    table = measure(subject, "seamlessness.*")
    samples(subject, 4)                       # prompt, base's and erased model's text side by side
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from elm_interp.data import Concept
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio, pooled_mean
from elm_interp.metrics import Subject, metric
from elm_interp.models import HookedLM
from elm_interp.models.generation import generate
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.results import measurements

PROMPTS = 48
"""Prompts of one measurement, at most."""
NEW_TOKENS = 48
"""Tokens written after each, at most."""

_WRITTEN = f"text after up to {PROMPTS} held-out questions, {NEW_TOKENS} new tokens, top-p 0.95, temperature 1"


def prompts(concept: Concept) -> list[str]:
    """The texts of held-out questions about the concept, each with a line break; at most `PROMPTS`, evenly spread.

    Empty where the concept has no such questions.
    """
    asked = concept.ask("forget")
    return [f"{asked[i].question}\n" for i in _spread(len(asked), PROMPTS)]


def generations(subject: Subject) -> list[str]:
    """What this state writes after each of `prompts`, sampled once a state with the subject's seed."""

    def write() -> list[str]:
        with subject.on() as lm:
            return generate(lm, prompts(subject.concept), new_tokens=NEW_TOKENS, seed=subject.seed)

    return subject.memo(("generations", PROMPTS, NEW_TOKENS, subject.seed), write)


def samples(subject: Subject, n: int = 4) -> list[dict[str, str]]:
    """Prompts with the text of the base and, in another state, of the erased model: "prompt", "base", "erased"."""
    texts = {"prompt": prompts(subject.concept), "base": generations(subject.base)}
    if not subject.is_base:
        texts["erased"] = generations(subject)
    return [{side: found[i] for side, found in texts.items()} for i in _spread(len(texts["prompt"]), n)]


def losses_after(lm: HookedLM, starts: Sequence[str], texts: Sequence[str]) -> Sums:
    """What each text costs the model after its prompt, in nats; 0 over no token for an empty one."""
    written = [i for i, text in enumerate(texts) if text.strip()]
    found = continuation_log_probs(lm, [starts[i] for i in written], [[texts[i]] for i in written])
    totals, counts = np.zeros(len(texts)), np.zeros(len(texts), dtype=int)
    for i, (log_probs,) in zip(written, found, strict=True):
        totals[i], counts[i] = -float(log_probs.double().sum()), len(log_probs)
    return Sums(totals, counts)


def words(text: str) -> list[str]:
    """Runs of letters and digits, and single marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Different word n-grams over all n-grams of all texts together; NaN where there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Sequence[str], n: int = 4) -> Sums:
    """Of each text: how many of its word n-grams it had already, and how many it has."""
    grams = [_grams(text, n) for text in texts]
    again = [len(some) - len(set(some)) for some in grams]
    return Sums(np.array(again, dtype=float), np.array([len(some) for some in grams], dtype=int))


def jackknife(statistic: Callable[[list[int]], float], n: int) -> tuple[float, float]:
    """95 % interval of a statistic of the texts with the given indices, from leaving out each of n in turn.

    For counts of different things: drawing with replacement, as the bootstrap does, puts the same text in twice, and so
    gives an interval that lies below the value.
    """
    if n < 2:
        return math.nan, math.nan
    everything = list(range(n))
    without = np.array([statistic(everything[:i] + everything[i + 1 :]) for i in everything])
    half = 1.96 * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    centre = statistic(everything)
    return centre - half, centre + half


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    said = words(text)
    return list(zip(*(said[i:] for i in range(n)), strict=False))


def _spread(total: int, n: int) -> list[int]:
    return [i * total // n for i in range(n)] if total > n else list(range(total))


def _not_empty(texts: Sequence[str]) -> int:
    return sum(bool(text.strip()) for text in texts)


def _reverse_losses(subject: Subject) -> Sums:
    def compute() -> Sums:
        texts = generations(subject)
        with subject.base.on() as lm:
            return losses_after(lm, prompts(subject.concept), texts)

    return subject.memo("reverse losses", compute)


@metric(
    "seamlessness.reverse_ppl", better="down", cost="dear",
    protocol=f"{_WRITTEN}; perplexity under the base, given the prompt, token-weighted; bootstrap over texts",
)  # fmt: skip
def reverse_ppl(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity under the base of what the model writes when asked about the concept."""
    if not prompts(subject.concept):
        return []
    return [measurements("seamlessness.reverse_ppl", **perplexity_of(_reverse_losses(subject)))]


@metric(
    "seamlessness.reverse_ppl_ratio", better="down", unit="× base", cost="dear", needs_base=True,
    protocol=f"{_WRITTEN}; perplexity under the base over that of the base's own text; bootstrap over prompts, paired",
)  # fmt: skip
def reverse_ppl_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Reverse perplexity as a multiple of that of the base's own text; 1 = as fluent to the base as itself."""
    if not prompts(subject.concept):
        return []
    found = perplexity_ratio(_reverse_losses(subject), _reverse_losses(subject.base))
    return [measurements("seamlessness.reverse_ppl_ratio", **found)]


@metric(
    "seamlessness.distinct2", better="up", cost="dear",
    protocol=f"{_WRITTEN}; different word pairs / all word pairs, over all texts together; jackknife over texts",
)  # fmt: skip
def distinct2(subject: Subject) -> list[dict[str, Any]]:
    """Share of word pairs that are different, over all that the model writes when asked about the concept."""
    texts = generations(subject)
    if not texts:
        return []
    low, high = jackknife(lambda kept: distinct([texts[i] for i in kept]), len(texts))
    ci = (max(low, 0.0), min(high, 1.0))
    return [measurements("seamlessness.distinct2", distinct(texts), n=_not_empty(texts), ci=ci)]


@metric(
    "seamlessness.distinct2_ratio", better="up", unit="× base", cost="dear", needs_base=True,
    protocol=f"{_WRITTEN}; distinct-2 over that of the base's own text; jackknife over prompts, paired",
)  # fmt: skip
def distinct2_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Distinct-2 as a multiple of the base's; 1 = as varied as the base."""
    ours, base = generations(subject), generations(subject.base)
    if not ours:
        return []

    def ratio(kept: list[int]) -> float:
        under = distinct([base[i] for i in kept])
        return distinct([ours[i] for i in kept]) / under if under else math.nan

    ci = jackknife(ratio, len(ours))
    n = sum(bool(a.strip() and b.strip()) for a, b in zip(ours, base, strict=True))
    return [measurements("seamlessness.distinct2_ratio", ratio(list(range(len(ours)))), n=n, ci=ci)]


@metric(
    "seamlessness.repetition", better="down", cost="dear",
    protocol=f"{_WRITTEN}; word 4-grams that the same text had already / all 4-grams; bootstrap over texts",
)  # fmt: skip
def repeated(subject: Subject) -> list[dict[str, Any]]:
    """Share of word 4-grams that the model had already written in the same text about the concept."""
    texts = generations(subject)
    if not texts:
        return []
    return [measurements("seamlessness.repetition", **pooled_mean(repetition(texts)) | {"n": _not_empty(texts)})]


@metric(
    "seamlessness.judge_ppl", better="down", cost="dear",
    protocol=f"{_WRITTEN}; perplexity under an independent judge, given the prompt, token-weighted; bootstrap over texts",
)  # fmt: skip
def judge_ppl(subject: Subject) -> list[dict[str, Any]]:
    """Perplexity under an independent model of what the model writes about the concept; no row without a judge."""
    if subject.judge is None or not prompts(subject.concept):
        return []
    losses = losses_after(subject.judge, prompts(subject.concept), generations(subject))
    return [measurements("seamlessness.judge_ppl", **perplexity_of(losses))]

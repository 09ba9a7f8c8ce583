"""Perplexity and means over the tokens of several texts: every token weighs the same, intervals are over texts.

Tokens of one text are not independent, so the bootstrap draws whole texts. For two perplexities over the same texts (or
the same prompts) it draws pairs, which removes the difficulty of the texts from their ratio.

    perplexity_of(Sums.losses(log_probs))           # {"value": 4.4, "n": 53, "ci": (4.1, 4.8)}
    perplexity_ratio(erased_losses, base_losses)    # {"value": 1.1, ...}; 1 = unchanged
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import ConfigError, not_finite

DRAWS = 1000
"""Bootstrap samples."""


@dataclass(frozen=True)
class Sums:
    """A sum for each text, such as its tokens' losses in nats, and its number of terms (0 for an empty text)."""

    totals: Float[np.ndarray, " text"]
    counts: Int[np.ndarray, " text"]

    @classmethod
    def of(cls, values: Sequence[Float[Tensor, " token"]]) -> "Sums":
        """Sums of one value per token of each text."""
        totals = np.array([float(x.double().sum()) for x in values], dtype=float)
        return cls(totals, np.array([len(x) for x in values], dtype=int))

    @classmethod
    def losses(cls, log_probs: Sequence[Float[Tensor, " token"]]) -> "Sums":
        """Loss of each text, from the log-probabilities of its tokens."""
        return cls.of([-x for x in log_probs])

    @property
    def n(self) -> int:
        """Number of texts that are not empty."""
        return int((self.counts > 0).sum())

    def mean(self, draws: Int[np.ndarray, "draw text"] | None = None) -> Any:
        """Mean over all tokens of all texts, or of the texts of each draw; NaN without any token."""
        rows: Any = slice(None) if draws is None else draws
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.divide(self.totals[rows].sum(-1), self.counts[rows].sum(-1, dtype=float))


def pooled_mean(sums: Sums, *, seed: int = 0) -> dict[str, Any]:
    """Mean over all tokens as columns of a result: value, n (non-empty texts), bootstrap interval over texts.

    Raises:
        NotFiniteError: the sum of a text is NaN or infinite; names the text.
    """
    _check_finite(sums)
    return {"value": float(sums.mean()), "n": sums.n, "ci": _interval(sums.mean(_draws(len(sums.totals), seed)))}


def perplexity_of(losses: Sums, *, seed: int = 0) -> dict[str, Any]:
    """Perplexity, exp(mean loss per token), as columns of a result."""
    return _exp(pooled_mean(losses, seed=seed))


def perplexity_ratio(over: Sums, under: Sums, *, seed: int = 0) -> dict[str, Any]:
    """One perplexity divided by another, texts drawn in pairs; `n` counts the pairs without an empty text.

    Raises:
        ConfigError: the two sides have different numbers of texts.
        NotFiniteError: the sum of a text is NaN or infinite; names the text.
    """
    _check_finite(over)
    _check_finite(under)
    if len(over.totals) != len(under.totals):
        raise ConfigError(
            f"a paired ratio needs the same texts on both sides; found {len(over.totals)} and {len(under.totals)}."
        )
    draws = _draws(len(over.totals), seed)
    both = int(((over.counts > 0) & (under.counts > 0)).sum())
    return _exp({"value": over.mean() - under.mean(), "n": both, "ci": _interval(over.mean(draws) - under.mean(draws))})


def _check_finite(sums: Sums) -> None:
    broken = np.flatnonzero(~np.isfinite(sums.totals))
    if len(broken):
        raise not_finite(f"the sum over the tokens of text {broken[0]}")


def _draws(n: int, seed: int) -> Int[np.ndarray, "draw text"]:
    return np.random.default_rng(seed).integers(0, n, (DRAWS, n)) if n > 1 else np.zeros((0, n), dtype=int)


def _exp(found: dict[str, Any]) -> dict[str, Any]:
    # the loss of a destroyed model may overflow here: infinity is then the right value, so no warning
    with np.errstate(over="ignore"):
        low, high = np.exp(found["ci"])
        return found | {"value": float(np.exp(found["value"])), "ci": (float(low), float(high))}


def _interval(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    kept = draws[~np.isnan(draws)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (np.nan, np.nan)
    return float(low), float(high)

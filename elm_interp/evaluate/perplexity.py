"""Means over the tokens of several texts, and perplexity: every token weighs the same, intervals are over texts.

Tokens of one text are not independent, so the bootstrap draws whole texts; two perplexities over the same texts (or on the
same prompts) are drawn together, which takes the difficulty of the texts out of their ratio.

    perplexity_of(Sums.losses(log_probs))              # {"value": 4.4, "n": 53, "ci": (4.1, 4.8)}
    perplexity_ratio(erased_losses, base_losses)    # {"value": 1.1, ...}; 1 = unchanged
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import ConfigError

DRAWS = 1000
"""Bootstrap samples."""


@dataclass(frozen=True)
class Sums:
    """Of each text: a sum, such as of its tokens' losses in nats, and over how many it goes (0 for an empty text)."""

    totals: Float[np.ndarray, " text"]
    counts: Int[np.ndarray, " text"]

    @classmethod
    def of(cls, values: Sequence[Float[Tensor, " token"]]) -> "Sums":
        """From one value for each token of each text."""
        totals = np.array([float(x.double().sum()) for x in values], dtype=float)
        return cls(totals, np.array([len(x) for x in values], dtype=int))

    @classmethod
    def losses(cls, log_probs: Sequence[Float[Tensor, " token"]]) -> "Sums":
        """From the log-probability of each token of each text: what the text costs."""
        return cls.of([-x for x in log_probs])

    @property
    def n(self) -> int:
        """Texts that are not empty."""
        return int((self.counts > 0).sum())

    def mean(self, draws: Int[np.ndarray, "draw text"] | None = None) -> Any:
        """Mean over all tokens of all texts, or of each draw of texts; NaN without any token."""
        rows: Any = slice(None) if draws is None else draws
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.divide(self.totals[rows].sum(-1), self.counts[rows].sum(-1, dtype=float))


def pooled_mean(sums: Sums, *, seed: int = 0) -> dict[str, Any]:
    """Mean over all tokens, as columns of a result: value, n (texts that are not empty), and a bootstrap interval over texts."""
    return {"value": float(sums.mean()), "n": sums.n, "ci": _interval(sums.mean(_draws(len(sums.totals), seed)))}


def perplexity_of(losses: Sums, *, seed: int = 0) -> dict[str, Any]:
    """Perplexity, exp(mean loss a token), as columns of a result."""
    return _exp(pooled_mean(losses, seed=seed))


def perplexity_ratio(over: Sums, under: Sums, *, seed: int = 0) -> dict[str, Any]:
    """One perplexity divided by another, texts drawn in pairs; `n` is the number of pairs of which neither is empty.

    Raises:
        ConfigError: not as many texts on one side as on the other.
    """
    if len(over.totals) != len(under.totals):
        raise ConfigError(
            f"a paired ratio needs the same texts on both sides; found {len(over.totals)} and {len(under.totals)}."
        )
    draws = _draws(len(over.totals), seed)
    both = int(((over.counts > 0) & (under.counts > 0)).sum())
    return _exp({"value": over.mean() - under.mean(), "n": both, "ci": _interval(over.mean(draws) - under.mean(draws))})


def _draws(n: int, seed: int) -> Int[np.ndarray, "draw text"]:
    return np.random.default_rng(seed).integers(0, n, (DRAWS, n)) if n > 1 else np.zeros((0, n), dtype=int)


def _exp(found: dict[str, Any]) -> dict[str, Any]:
    # a destroyed model may lose so much that this overflows: infinite is then the right word, and no warning is due
    with np.errstate(over="ignore"):
        low, high = np.exp(found["ci"])
        return found | {"value": float(np.exp(found["value"])), "ci": (float(low), float(high))}


def _interval(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    kept = draws[~np.isnan(draws)]
    if len(kept) == 0:
        return float("nan"), float("nan")
    return float(np.quantile(kept, 0.025)), float(np.quantile(kept, 0.975))

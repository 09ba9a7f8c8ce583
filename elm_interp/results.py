"""Tidy results: every measurement, from every part, is rows of one schema, so a plot or a notebook cell is one line.

rows = measurements("innocence.two_choice_pmi", 0.54, n=182, ci=wilson(98, 182), chance=0.5)
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from elm_interp.errors import ConfigError, DataError, not_finite

COLUMNS = {
    "model": "string",
    "method": "string",
    "step": "Int64",
    "layer": "Int64",
    "site": "string",
    "position": "string",
    "seed": "Int64",
    "metric": "string",
    "value": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "n": "Int64",
    "chance": "float64",
    "direction": "string",
    "protocol": "string",
}
"""The schema. `method` is "base" for the untouched model. `direction` is what is good for the eraser: "up", "down" or
"neither". `chance` is the level of a model that knows nothing. Columns that do not apply are null."""


def measurements(metric: str, value: float, **columns: Any) -> dict[str, Any]:
    """One measurement, as a dict of the schema.

    Args:
        metric: its name.
        value: the number.
        columns: further columns; `ci=(low, high)` fills both ends of the interval.

    Raises:
        ConfigError: a column that the schema does not have.
    """
    if "ci" in columns:
        columns["ci_low"], columns["ci_high"] = columns.pop("ci")
    strange = columns.keys() - COLUMNS.keys()
    if strange:
        raise ConfigError(f"unknown result columns {sorted(strange)}; the schema has {list(COLUMNS)}.")
    return {"metric": metric, "value": float(value), **columns}


def frame(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a frame with every column of the schema, in its order and types."""
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return table.astype(COLUMNS)


def stack(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other."""
    # an all-null column of one frame must not decide the type of the whole
    records = [record for table in frames for record in table.to_dict("records")]
    return frame(records) if records else frame([])


def write(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame as Parquet, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    with half.open("wb") as file:  # pyarrow opens no path that the locale cannot spell
        frame(table).to_parquet(file, index=False)
    half.replace(path)
    return path


def read(path: str | Path) -> pd.DataFrame:
    """Read a frame that `write` wrote.

    Raises:
        DataError: the file is broken; the message names it.
        FileNotFoundError: there is none.
    """
    try:
        with Path(path).open("rb") as file:
            return frame(pd.read_parquet(file))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken ({type(error).__name__}: {error}); run again what wrote it.") from error


def spelled(name: str) -> str:
    """The name of a file or folder as text that a frame can hold, also where the locale could not decode it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def credit(values: Float[np.ndarray, " option"], right: int) -> float:
    """1 if the right option has the highest value, 1/k if k options have it, else 0.

    Raises:
        NotFiniteError: a value is NaN.
    """
    if np.isnan(values).any():
        raise not_finite("the values of the options")
    best = values == values.max()
    return float(best[right] / best.sum())


def wilson(successes: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (95 % for z = 1.96); (nan, nan) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # exact where nothing or everything succeeded, which rounding misses
    return (max(0.0, centre - half) if successes else 0.0), (min(1.0, centre + half) if successes < n else 1.0)


def proportion_interval(credits: Float[np.ndarray, " n"], groups: Sequence[str]) -> tuple[float, float]:
    """Interval (95 %) of mean credit, where credits of a group, such as the wordings of one fact, go together.

    Wilson's, with as many independent credits as would scatter as much: n / design effect (Kish 1965), at least the
    number of groups and at most n. If all credits are equal, groups count once. (nan, nan) without credits.
    """
    credits, n = np.asarray(credits, dtype=float), len(set(groups))
    if not n:
        return math.nan, math.nan
    mean, effective = float(credits.mean()), float(n)
    if n > 1 and 0 < mean < 1 and np.ptp(credits):
        _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        off = np.bincount(index, weights=credits - mean)
        variance = n / (n - 1) * float((off**2).sum()) / len(credits) ** 2
        effective = min(max(mean * (1 - mean) / variance, n), len(credits)) if variance else float(len(credits))
    return wilson(mean * effective, effective)


def cluster_means(
    values: Float[np.ndarray, " n"], groups: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> Float[np.ndarray, " samples"]:
    """Bootstrap means of values, resampling groups of them, such as the wordings of one fact."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums, sizes = np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index)
    draws = np.random.default_rng(seed).integers(0, len(names), (samples, len(names)))
    means: np.ndarray = sums[draws].sum(1) / sizes[draws].sum(1)
    return means


def cluster_bootstrap(
    values: Float[np.ndarray, " n"], groups: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean, resampling groups; (nan, nan) for fewer than two groups."""
    if len(set(groups)) < 2:
        return math.nan, math.nan
    means = cluster_means(values, groups, samples=samples, seed=seed)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def bootstrap(
    values: Float[np.ndarray, " n"], statistic: str = "mean", *, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean or median over examples; (nan, nan) for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    means = getattr(np, statistic)(values[draws], axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))

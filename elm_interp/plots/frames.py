"""What plots ask of tidy frames: the rows of a metric, the base's and the last step's, and means over seeds.

A frame is the project's tidy results (columns model, method, step, layer, seed, metric, value, ci_low, ci_high, n, chance,
direction …); `method` is "base" for the untouched model, whose step counts as 0.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from elm_interp.errors import ConfigError, unknown

ONE_OF = ("model", "site", "position")
"""Columns over which a mean would mix what does not belong together."""


def rows_of(frame: pd.DataFrame, metrics: Iterable[str] | str) -> pd.DataFrame:
    """The rows of some metrics with a value, steps filled (base = 0), refused if they mix models, sites or methods.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: rows of several models, sites, positions or erasing methods.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    known = list(dict.fromkeys(frame["metric"]))
    for metric in metrics:
        if metric not in known:
            raise unknown("metric in this frame", metric, known)
    rows = frame[frame["metric"].isin(metrics) & frame["value"].notna()].copy()
    rows["step"] = rows["step"].fillna(0).astype(int)
    rows.loc[rows["method"] == "base", "step"] = 0
    for column in ONE_OF:
        several(rows[column].dropna(), column)
    several(rows.loc[rows["method"] != "base", "method"], "method")
    return rows


def need_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse a frame without these columns.

    Raises:
        ConfigError: naming those that are missing and those that are there.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise ConfigError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}.")


def several(values: pd.Series, column: str) -> None:
    """Refuse a column with more than one value.

    Raises:
        ConfigError: naming the values and what to do.
    """
    found = sorted(values.unique())
    if len(found) > 1:
        raise ConfigError(
            f"the frame has {len(found)} values of {column!r} ({', '.join(map(str, found))}); a figure shows one: filter the frame first."
        )


def base_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The untouched model's rows."""
    return rows[rows["method"] == "base"]


def erased_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The erased model's rows at its last step."""
    erased = rows[rows["method"] != "base"]
    return erased[erased["step"] == erased["step"].max()]


def erased_name(rows: pd.DataFrame) -> str:
    """What to call the erased model in a legend: "elm, step 60"."""
    erased = erased_of(rows)
    return f"{erased['method'].iloc[0]}, step {erased['step'].iloc[0]}" if len(erased) else "erased"


def chance_of(rows: pd.DataFrame) -> float | None:
    """The level of knowing nothing, where the rows agree on one."""
    levels = rows["chance"].dropna().unique()
    return float(levels[0]) if len(levels) == 1 else None


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval of each group, one row a group, in order.

    Several rows in a group are seeds: Student's t over them. A single row keeps its own interval (null if it has none).
    """
    grouped = rows.groupby(list(by))
    table = grouped.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        seeds=("value", "size"),
        low=("ci_low", "mean"),
        high=("ci_high", "mean"),
    ).reset_index()
    # astype: columns of pandas' own nullable types would turn the arithmetic below into objects
    table = table.astype({"mean": float, "sd": float, "low": float, "high": float})
    many = table["seeds"] > 1
    half = stdtrit(table["seeds"].clip(lower=2) - 1, 0.975) * table["sd"] / np.sqrt(table["seeds"])
    table.loc[many, "low"] = (table["mean"] - half)[many]
    table.loc[many, "high"] = (table["mean"] + half)[many]
    return table.drop(columns="sd")

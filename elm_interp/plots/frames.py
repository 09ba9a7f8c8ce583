"""What plots ask of tidy frames: the rows of a metric, of the base and of the last step, and means over seeds.

A frame is the project's tidy results (`elm_interp.results.COLUMNS`). `method` is "base" for the untouched model, whose
step counts as 0. Columns that a frame lacks count as empty.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from elm_interp import results
from elm_interp.errors import ConfigError, unknown
from elm_interp.registry import PROBE_TASKS

GOLD = "gold"
"""Method of rows of a model that never knew the concept, which has no step."""
UNNAMED = ""
"""Method of rows that name none."""
ONE_OF = ("model", "site", "position")
"""Columns with one value in a figure, because a mean over several has no meaning."""
DEFAULT_PROBES = ("probe.values", "probe.association")


def rows_of(frame: pd.DataFrame, metrics: Iterable[str] | str) -> pd.DataFrame:
    """The rows of some metrics that have a value, with steps filled (base = 0).

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: rows of several models, sites, positions or erasing methods, or no columns metric and value.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    known = metrics_of(frame)
    need_known("metric in this frame", metrics, known)
    rows = results.frame(frame[frame["metric"].isin(metrics) & frame["value"].notna()])
    rows["step"] = rows["step"].fillna(0).astype(int)
    rows["method"] = rows["method"].fillna(UNNAMED)
    rows.loc[rows["method"] == "base", "step"] = 0
    own = rows[rows["method"] != GOLD] if (rows["method"] != GOLD).any() else rows
    for column in ONE_OF:
        need_one(own[column].dropna(), column)
    need_one(own.loc[own["method"] != "base", "method"], "method")
    return rows


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metrics of a frame, in order of appearance.

    Raises:
        ConfigError: no columns metric and value.
    """
    need_columns(frame, ("metric", "value"))
    return list(dict.fromkeys(frame["metric"]))


def probes_of(frame: pd.DataFrame) -> list[str]:
    """The probes of a frame: metrics with a shuffled-label control, the default ones first.

    Baselines of a task (`probe.embedding.truth`) are none, though they have controls.
    """
    known = metrics_of(frame)
    found = [name for name in known if f"{name}.control" in known and name.count(".") < 2]
    return sorted(found, key=lambda name: DEFAULT_PROBES.index(name) if name in DEFAULT_PROBES else len(DEFAULT_PROBES))


def probe_of(frame: pd.DataFrame) -> str:
    """The probe to draw where none is named: the first default one, else the first, else the first metric.

    Raises:
        ConfigError: the frame has no rows.
    """
    found = probes_of(frame) or metrics_of(frame)
    if not found:
        raise ConfigError("the frame has no rows, so there is no probe to draw.")
    return found[0]


def probe_variants(frame: pd.DataFrame) -> dict[str, dict[str, str] | str]:
    """One drawing for each probe of the frame, and why there is none for the other probe tasks."""
    found: dict[str, dict[str, str] | str] = {name.split(".")[-1]: {"metric": name} for name in probes_of(frame)}
    for task in PROBE_TASKS:
        why = f"the concept has too few questions of the kind that probe.{task} needs, or the run is not thorough"
        found.setdefault(task, why)
    return found


def need_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UnknownNameError: naming the closest.
    """
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


def need_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse a frame without these columns.

    Raises:
        ConfigError: naming those that are missing and those that are there.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise ConfigError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}.")


def need_one(values: pd.Series, column: str) -> None:
    """Refuse a column with more than one value.

    Raises:
        ConfigError: naming the values and what to do.
    """
    found = sorted(values.unique())
    if len(found) > 1:
        listed = ", ".join(str(value) or "none" for value in found)
        raise ConfigError(
            f"the frame has {len(found)} values of {column!r} ({listed}); a figure shows one: filter the frame first."
        )


def need_layers(rows: pd.DataFrame, metric: str) -> None:
    """Refuse rows without layers.

    Raises:
        ConfigError: no row has a layer.
    """
    if rows["layer"].isna().all():
        raise ConfigError(f"{metric!r} has no layers in this frame; expected a number in the column 'layer'.")


def base_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The untouched model's rows."""
    return rows[rows["method"] == "base"]


def gold_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a model that never knew the concept."""
    return rows[rows["method"] == GOLD]


def erased_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The erased model's rows at its last step."""
    erased = rows[~rows["method"].isin(["base", GOLD])]
    return erased[erased["step"] == erased["step"].max()]


def erased_name(rows: pd.DataFrame) -> str:
    """Name of the erased model in a legend: "elm, step 60"; of rows that name no method, the model's name."""
    erased = erased_of(rows)
    if erased.empty:
        return "erased"
    first = erased.iloc[0]
    if first["method"] == UNNAMED:
        return "model" if pd.isna(first["model"]) else str(first["model"])
    return f"{first['method']}, step {first['step']}"


def chance_of(rows: pd.DataFrame) -> float | None:
    """The level of knowing nothing, where the rows agree on one."""
    levels = rows["chance"].dropna().unique()
    return float(levels[0]) if len(levels) == 1 else None


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval of each group, one row a group, in order.

    Several rows in a group are seeds: Student's t over them. A single row keeps its own interval (null if it has none).
    """
    groups = rows.rename(columns={"ci_low": "low", "ci_high": "high"}).groupby(list(by))
    table = groups["value"].agg(mean="mean", sd="std", seeds="size").join(groups[["low", "high"]].mean())
    # astype: pandas' own nullable types would turn the arithmetic below into objects
    table = table.reset_index().astype({"mean": float, "sd": float, "low": float, "high": float})
    # null for a single row, which has no deviation
    half = stdtrit(table["seeds"].clip(lower=2) - 1, 0.975) * table["sd"] / np.sqrt(table["seeds"])
    table["low"] = (table["mean"] - half).fillna(table["low"])
    table["high"] = (table["mean"] + half).fillna(table["high"])
    return table.drop(columns="sd")

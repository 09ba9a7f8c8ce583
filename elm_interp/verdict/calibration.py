"""Calibration: what does a measurement show where the truth is known?

Every registered metric is measured on the organisms of several worlds. Two of them anchor its scale, so that any other value
can be read on it: the original, which knows (0), and the gold model, which never knew (1). The hiding model says nothing of
what it knows: a metric that tells it from gold sees inside, one that does not sees behaviour alone. A metric that gives the
same whatever it is shown is flagged.

A metric that compares with the base takes the original as base, on the original too: an erasure that did nothing.

    table = calibrate(seeds=range(5))          # tidy rows: `method` is the organism, `seed` the world
    anchors(table)                             # one row a metric: means, deviations, r, AUC, what is constant
    summary(table)["knowledge.probe.erased_domain"]["auc_hiding"]
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from elm_interp.errors import ConfigError
from elm_interp.metrics import Subject, list_metrics, measure
from elm_interp.organisms import KINDS, Recipe, World, domain_concept, make_world, organism, organism_folder
from elm_interp.results import frame, stack

OVER_LAYERS = {"down": "max", "up": "min", "neither": "mean"}
"""What stands for a metric that has a value a layer, by its direction: the layer that says most against the eraser."""


def calibrate(
    seeds: Sequence[int] = (0, 1),
    patterns: Iterable[str] | str = "*",
    *,
    settings: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    cost: str = "dear",
    progress: bool = False,
) -> pd.DataFrame:
    """Measure the organisms of one world a seed, trained where they are not in the cache.

    Args:
        seeds: of the worlds.
        patterns: metric names with shell wildcards.
        settings: of the worlds, see `WorldConfig`; the default world by default.
        recipe: how organisms are trained.
        cost: "cheap" leaves out metrics that write text.
        progress: show bars.

    Returns:
        Tidy rows, one for each metric, organism and seed, without layers; where a metric has several, `protocol` says what
        stands for them.

    Raises:
        ConfigError: no seed, or one twice.
        UnknownNameError: a pattern that matches nothing.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}; expected at least one (--seeds 1), all different.")
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    list_metrics(patterns)  # an unknown one is said before minutes of training
    tables = []
    for seed in tqdm(seeds, desc="calibrating", leave=False, disable=not progress):
        world = make_world(**{**(settings or {}), "seed": seed})
        for subject in subjects(world, recipe, progress=progress).values():
            table = one_value(measure(subject, patterns, cost=cost, progress=progress))
            tables.append(table.assign(seed=seed))  # of the world; a probe's rows come with the seed of their split
    return stack(tables)


def subjects(world: World, recipe: Recipe | None = None, *, progress: bool = False) -> dict[str, Subject]:
    """The organisms of a world by kind, each beside the original as its base, with the erased domain as concept."""
    concept, seed = domain_concept(world, world.config.erased), world.config.seed
    found: dict[str, Subject] = {}
    base: Subject | None = None
    for kind in KINDS:
        organism_folder(kind, world, recipe, progress=progress)
        lm = organism(kind, world, recipe, dtype="float32")
        # the original stands beside itself, as an erasure that did nothing, so that every ratio has its anchor
        base = base or Subject(lm, concept, seed=seed)
        found[kind] = Subject(lm, concept, method=kind, seed=seed, base=base)
    return found


def one_value(table: pd.DataFrame) -> pd.DataFrame:
    """One row a metric of one subject: the mean over its splits, then over layers what `OVER_LAYERS` says.

    A control is read as its metric is, since the best of many layers is above chance by luck alone. The interval is the mean
    of those of the splits, at the layer that stands for all; a mean over layers has none.
    """
    directions = dict(zip(table["metric"], table["direction"], strict=True))
    rows = []
    for name, part in table.groupby("metric", sort=False):
        row: dict[str, Any] = part.iloc[0].to_dict()
        layered = part["layer"].notna().all()
        if layered or len(part) > 1:
            numbers = ["value", "ci_low", "ci_high"]
            by_layer = part.groupby("layer", dropna=False)[numbers].mean().reset_index(drop=True)
            how = OVER_LAYERS[directions.get(str(name).removesuffix(".control"), row["direction"])]
            words = [row["protocol"] if pd.notna(row["protocol"]) else "", f"{how} over layers" if layered else ""]
            values = by_layer["value"]
            if how == "mean":
                row |= {"value": values.mean(), "ci_low": None, "ci_high": None}
            else:
                row |= by_layer.loc[values.idxmax() if how == "max" else values.idxmin()].to_dict()
            row["layer"] = None
            row["protocol"] = "; ".join(filter(None, words)) or None
        rows.append(row)
    return frame(rows)


def anchors(table: pd.DataFrame) -> pd.DataFrame:
    """One row a metric, in order: what the organisms gave, and what that makes of the metric.

    Args:
        table: rows of `calibrate`.

    Returns:
        Columns metric, direction, chance, protocol; the mean of each organism under its name and "{kind}_sd" over seeds (null
        for one seed); r_hiding and r_random, where 0 is the original and 1 gold; auc_gold and auc_hiding; constant.
    """
    rows = []
    for name, part in table.groupby("metric", sort=False):
        first = part.iloc[0]
        by_seed = part.pivot(index="seed", columns="method", values="value").reindex(columns=list(KINDS)).astype(float)
        row: dict[str, Any] = {"metric": name}
        row |= {column: first[column] if pd.notna(first[column]) else None for column in ("direction", "protocol")}
        row["chance"] = float(part["chance"].astype(float).mean())
        for kind in KINDS:
            row |= {kind: float(by_seed[kind].mean()), f"{kind}_sd": float(by_seed[kind].std())}
        for kind in ("hiding", "random"):
            row[f"r_{kind}"] = normalised(row[kind], row["original"], row["gold"])
        sides = {kind: by_seed[kind].dropna().to_numpy() for kind in KINDS}
        row["auc_gold"] = auc(sides["gold"], sides["original"], str(first["direction"]))
        row["auc_hiding"] = auc(sides["gold"], sides["hiding"], str(first["direction"]))
        row["constant"] = bool((by_seed.nunique(axis=1, dropna=False) == 1).all())
        rows.append(row)
    return pd.DataFrame(rows)


def normalised(x: float, original: float, gold: float) -> float:
    """(x - original) / (gold - original): 0 is a model that knows, 1 one that never knew; NaN where the two agree."""
    return (x - original) / (gold - original) if gold != original else math.nan


def auc(gold: Float[np.ndarray, " seed"], other: Float[np.ndarray, " seed"], direction: str) -> float:
    """Probability that gold is better for the eraser than another organism, ties counting half; NaN without values.

    1 tells the two apart in the metric's direction, 0 the other way round, 0.5 not at all. For a metric without direction,
    higher counts as better.
    """
    if not len(gold) or not len(other):
        return math.nan
    difference = np.sign(gold[:, None] - other[None, :]) * (-1 if direction == "down" else 1)
    return float((difference + 1).mean() / 2)


def summary(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Metric -> {original, gold, hiding, random: {mean, sd}, r: {hiding, random}, auc_gold, auc_hiding, apart, constant, …}.

    Fit for JSON: what is not a finite number is None.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in anchors(table).to_dict("records"):
        one: dict[str, Any] = {kind: {"mean": _plain(row[kind]), "sd": _plain(row[f"{kind}_sd"])} for kind in KINDS}
        one |= {"auc_gold": _plain(row["auc_gold"]), "auc_hiding": _plain(row["auc_hiding"])}
        one["apart"] = _plain(abs(row["original"] - row["gold"]))
        one["r"] = {kind: _plain(row[f"r_{kind}"]) for kind in ("hiding", "random")}
        one |= {"chance": _plain(row["chance"]), "constant": row["constant"]}
        found[row["metric"]] = one | {column: row[column] for column in ("direction", "protocol")}
    return found


def _plain(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None

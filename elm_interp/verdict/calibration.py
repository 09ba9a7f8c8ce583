"""Calibration: what does a metric show on models whose knowledge is known?

Every metric is measured on the organisms of several worlds. Two of them anchor its scale, on which any other value
can be read: the original, which knows (0), and the gold model, which never knew (1). The hiding model knows and does
not say so: a metric that tells it from gold sees inside, one that does not sees only behaviour. A metric that gives the
same value for every model is marked as constant.

The base of every organism is the original, also of the original itself, which is then an erasure that did nothing.

    table = calibrate(seeds=range(5))          # tidy rows: `method` is the organism, `seed` the world
    anchors(table)                             # one row per metric: means, deviations, r, AUC, constant or not
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
from elm_interp.organisms import Recipe, World, domain_concept, make_world, organism, organism_folder
from elm_interp.registry import ORGANISMS
from elm_interp.results import frame, stack

OVER_LAYERS = {"down": "max", "up": "min", "neither": "mean"}
"""Direction -> the one value taken over layers: that of the layer that is worst for the eraser."""


def calibrate(
    seeds: Sequence[int] = (0, 1),
    patterns: Iterable[str] | str = "*",
    *,
    settings: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    cost: str = "dear",
    progress: bool = False,
) -> pd.DataFrame:
    """Measure the organisms of one world per seed; those not in the cache are trained.

    Args:
        seeds: seeds of the worlds.
        patterns: metric names with shell wildcards.
        settings: settings of the worlds, see `WorldConfig`; by default those of the default world.
        recipe: how organisms are trained.
        cost: "cheap" leaves out metrics that generate text.
        progress: show bars.

    Returns:
        Tidy rows, one for each metric, organism and seed, without layers. For a metric with a value per layer,
        `protocol` says which one is taken.

    Raises:
        ConfigError: no seed, or a seed given twice.
        UnknownNameError: a pattern that matches nothing.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}; expected at least one (--seeds 1), all different.")
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    list_metrics(patterns)  # raises before minutes of training
    tables = []
    for seed in tqdm(seeds, desc="calibrating", leave=False, disable=not progress):
        world = make_world(**{**(settings or {}), "seed": seed})
        for subject in subjects(world, recipe, progress=progress).values():
            table = one_value(measure(subject, patterns, cost=cost, progress=progress))
            tables.append(table.assign(seed=seed))  # the world's; rows of a probe have the seed of their split
    return stack(tables)


def subjects(
    world: World, recipe: Recipe | None = None, *, texts: int = Subject.texts, progress: bool = False
) -> dict[str, Subject]:
    """The organisms of a world by kind, with the original as base and the erased domain as concept.

    `texts` are generated for a measurement.
    """
    concept, seed = domain_concept(world, world.config.erased), world.config.seed
    lms = {}
    for kind in ORGANISMS:
        organism_folder(kind, world, recipe, progress=progress)
        lms[kind] = organism(kind, world, recipe, dtype="float32")
    # the original has a base too, so that every ratio is measured on it
    base = Subject(lms["original"], concept, seed=seed, texts=texts)
    return {kind: Subject(lm, concept, method=kind, seed=seed, base=base) for kind, lm in lms.items()}


def one_value(table: pd.DataFrame) -> pd.DataFrame:
    """One row per metric of one subject: the mean over splits, then one value over layers, as in `OVER_LAYERS`.

    A control takes the direction of its metric, since the best of many layers is above chance by luck. The interval is
    the mean of those of the splits, at the layer taken; a mean over layers has none.
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
            notes = [row["protocol"] if pd.notna(row["protocol"]) else "", f"{how} over layers" if layered else ""]
            values = by_layer["value"]
            if how == "mean":
                row |= {"value": values.mean(), "ci_low": None, "ci_high": None}
            else:
                row |= by_layer.loc[values.idxmax() if how == "max" else values.idxmin()].to_dict()
            row |= {"layer": None, "protocol": "; ".join(filter(None, notes)) or None}
        rows.append(row)
    return frame(rows)


def anchors(table: pd.DataFrame) -> pd.DataFrame:
    """One row per metric: its values on the organisms, and how well it tells them apart.

    Args:
        table: rows of `calibrate`.

    Returns:
        Columns metric, direction, chance, protocol; for each organism its mean, named as the organism, and "{kind}_sd"
        over seeds (null for one seed); r_hiding and r_random, where 0 is the original and 1 gold; auc_gold and
        auc_hiding; constant.
    """
    rows, kinds = [], list(ORGANISMS)
    for name, part in table.groupby("metric", sort=False):
        first = part.iloc[0]
        by_seed = part.pivot(index="seed", columns="method", values="value").reindex(columns=kinds).astype(float)
        row: dict[str, Any] = {"metric": name}
        row |= {column: first[column] if pd.notna(first[column]) else None for column in ("direction", "protocol")}
        row["chance"] = float(part["chance"].astype(float).mean())
        for kind in kinds:
            row |= {kind: float(by_seed[kind].mean()), f"{kind}_sd": float(by_seed[kind].std())}
        row |= {f"r_{kind}": normalised(row[kind], row["original"], row["gold"]) for kind in ("hiding", "random")}
        gold, *others = (by_seed[kind].dropna().to_numpy() for kind in ("gold", "original", "hiding"))
        row["auc_gold"], row["auc_hiding"] = (auc(gold, other, str(first["direction"])) for other in others)
        rows.append(row | {"constant": bool((by_seed.nunique(axis=1, dropna=False) == 1).all())})
    return pd.DataFrame(rows)


def normalised(x: float, original: float, gold: float) -> float:
    """(x - original) / (gold - original): 0 is a model that knows, 1 one that never knew; NaN if both are equal."""
    return (x - original) / (gold - original) if gold != original else math.nan


def auc(gold: Float[np.ndarray, " seed"], other: Float[np.ndarray, " seed"], direction: str) -> float:
    """Probability that gold is better for the eraser than another organism; ties count half; NaN without values.

    1 tells the two apart in the metric's direction, 0 against it, 0.5 not at all. For a metric with direction
    "neither", higher counts as better.
    """
    if not len(gold) or not len(other):
        return math.nan
    difference = np.sign(gold[:, None] - other[None, :]) * (-1 if direction == "down" else 1)
    return float((difference + 1).mean() / 2)


def summary(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Metric -> {original, gold, hiding, random: {mean, sd}, r: {hiding, random}, auc_gold, auc_hiding, apart, …}.

    Ready for JSON: a number that is not finite becomes None.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in anchors(table).to_dict("records"):
        one: dict[str, Any] = {kind: {"mean": _plain(row[kind]), "sd": _plain(row[f"{kind}_sd"])} for kind in ORGANISMS}
        one |= {"auc_gold": _plain(row["auc_gold"]), "auc_hiding": _plain(row["auc_hiding"])}
        one["apart"] = _plain(abs(row["original"] - row["gold"]))
        one["r"] = {kind: _plain(row[f"r_{kind}"]) for kind in ("hiding", "random")}
        one |= {"chance": _plain(row["chance"]), "constant": row["constant"]}
        found[row["metric"]] = one | {column: row[column] for column in ("direction", "protocol")}
    return found


def _plain(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None

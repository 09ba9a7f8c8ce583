"""What the registry says of metrics: the headline ones, their units, and what they show."""

from collections.abc import Iterable
from itertools import chain

from elm_interp.plots.style import name_of
from elm_interp.registry import METRICS

SHOWS = ("answers", "kept", "text", "inside", "describes")
"""What a metric can show, in the order in which figures list it."""
PARTS = {
    "code_length": "Code length, bits a label",
    "directions": "Directions until nothing is found",
    "difference": "Difference, share of the base's length",
    "cosine": "Cosine to base",
    "cka": "CKA to base (descriptive)",
    "pca_shift": "Shift along the first component,\nstandard deviations (descriptive)",
    "subspace_angle": "Mean principal angle to base,\ndegrees (descriptive)",
    "effective_rank": "Effective rank (descriptive)",
    "separation": "AUC, forget from retain text (descriptive)",
}
"""Axis labels of rows that a metric gives beside its own, by a part of their name."""


def headline_metrics() -> list[str]:
    """The metrics that a run is summed up by, in the order of what they show."""
    groups = by_group(name for name, metric in METRICS.items() if metric.headline)
    return [*chain.from_iterable(groups.values())]


def unit_of(metric: str) -> str | None:
    """The declared unit, "" for a plain number; None for a metric that is not declared."""
    return METRICS[metric].unit if metric in METRICS else None


def axis_label(metric: str) -> str:
    """Label of the axis that a metric is drawn along: its unit and its name."""
    part = next((label for word, label in PARTS.items() if word in metric.split(".")), None)
    unit = part or (unit_of(metric) or "value").replace("× base", "ratio to base")
    return f"{unit[0].upper()}{unit[1:]}\n({name_of(metric)})"


def by_group(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Metrics by the first part of their name: groups in the order of what they show, then of appearance."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(metric.split(".")[0], []).append(metric)
    return dict(sorted(groups.items(), key=lambda group: min(map(_place, group[1]))))


def _place(metric: str) -> int:
    shows = METRICS[metric].shows if metric in METRICS else None
    return SHOWS.index(shows) if shows in SHOWS else len(SHOWS)

"""Figures by layer of what is not an accuracy: lengths of codes, counts of directions, distances to the base.

    ax = plot_layers(frame, "probe.association.code_length")
    ax = plot_geometry(frame, "cosine")
    ax = plot_methods_by_layer(frame, "norm.forget")            # the one with a line for each of several methods

Rows: one per layer (and seed) of the metric, of the base and of the erased model; of geometry, for forget and retain text.
"""

from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.frames import base_of, chance_of, erased_name, erased_of, over_seeds, rows_of, several
from elm_interp.plots.style import (
    BASE,
    CHANCE,
    ERASED,
    FORGET,
    MARKERS,
    RETAIN,
    SERIES,
    axes,
    legend_above,
    name_of,
    styled,
    whole_numbers,
)  # fmt: skip

UNITS = {
    "code_length": "Code length, bits a label",
    "directions": "Directions until nothing is found",
    "difference": "Difference, share of the base's length",
    "cosine": "Cosine to base",
    "cka": "CKA to base (descriptive)",
    "pca_shift": "Shift along the first component,\nstandard deviations (descriptive)",
    "subspace_angle": "Mean principal angle to base,\ndegrees (descriptive)",
    "effective_rank": "Effective rank (descriptive)",
    "separation": "AUC, forget from retain text (descriptive)",
    "outliers": "Outlier dimensions",
}
UNCHANGED = {"difference": 0, "cosine": 1, "cka": 1, "pca_shift": 0, "subspace_angle": 0}
"""The value of a model that is the base."""


@styled
def plot_layers(frame: pd.DataFrame, metric: str, *, ax: Axes | None = None) -> Axes:
    """Any metric by layer, of the base and of the last step, with its intervals and the level of knowing nothing.

    Args:
        frame: tidy rows of the metric; others are left alone.
        metric: which.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models, sites or methods, or have no layers.
    """
    rows = rows_of(frame, metric)
    if rows["layer"].isna().all():
        raise ConfigError(f"{metric!r} has no layers in this frame, so there is nothing to draw it along.")
    ax = axes(ax)
    for label, colour, marker, side in (
        ("base", BASE, "o", base_of(rows)), (erased_name(rows), ERASED, "D", erased_of(rows)),
    ):  # fmt: skip
        if len(side):
            _line(ax, side, label, colour, marker)
    if (chance := chance_of(rows)) is not None:
        ax.axhline(chance, color=CHANCE, linestyle="--", linewidth=1.1, label=f"chance ({chance:.2g})", zorder=1)
    ax.set_ylabel(f"{_unit(metric)}\n({name_of(metric)})")
    return _finished(ax)


@styled
def plot_methods_by_layer(
    frame: pd.DataFrame, metric: str, *, label: str | None = None, level: bool = True, ax: Axes | None = None
) -> Axes:
    """Any metric by layer, one line a method at its last step, beside the base.

    Args:
        frame: tidy rows of the metric, of the base and of several methods; others are left alone.
        metric: which.
        label: of what is drawn; by default the metric's unit and name.
        level: draw the level of knowing nothing, where the rows agree on one.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models or sites, or have no layers.
    """
    of_metric = frame[frame["metric"] == metric]
    sides = {method: rows_of(rows, metric) for method, rows in of_metric.groupby("method", sort=False)}
    rows = base_of(rows_of(frame, metric)) if not sides else pd.concat(sides.values())
    several(rows["model"].dropna(), "model")
    if rows["layer"].isna().all():
        raise ConfigError(f"{metric!r} has no layers in this frame, so there is nothing to draw it along.")
    ax = axes(ax)
    looks = cycle(zip((ERASED, *SERIES[1:]), MARKERS[1:], strict=False))
    for method, side in sides.items():
        colour, marker = (BASE, MARKERS[0]) if method == "base" else next(looks)
        _line(ax, side[side["step"] == side["step"].max()], str(method), colour, marker)
    if level and (chance := chance_of(rows)) is not None:
        ax.axhline(chance, color=CHANCE, linestyle="--", linewidth=1.1, label=f"chance ({chance:.2g})", zorder=1)
    ax.set_ylabel(label or f"{_unit(metric)}\n({name_of(metric)})")
    return _finished(ax)


@styled
def plot_geometry(frame: pd.DataFrame, measure: str = "cosine", *, ax: Axes | None = None) -> Axes:
    """How the last step's activations stand to the base's by layer, on forget and on retain text.

    Args:
        frame: tidy rows of `geometry.forget.{measure}` and `geometry.retain.{measure}`.
        measure: "difference", "cosine", "cka", "pca_shift", "subspace_angle" or "effective_rank".
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks one of the two metrics.
        ConfigError: the rows mix models, sites or methods, or hold the base alone.
    """
    names = {f"geometry.forget.{measure}": ("forget text", FORGET, "o"),
             f"geometry.retain.{measure}": ("retain text", RETAIN, "s")}  # fmt: skip
    rows = erased_of(rows_of(frame, names))
    if rows.empty:
        raise ConfigError(f"the frame has {measure} of the base alone; the figure needs that of an erased model.")
    ax = axes(ax, height=3.5)
    for metric, (label, colour, marker) in names.items():
        _line(ax, rows[rows["metric"] == metric], label, colour, marker)
    if measure in UNCHANGED:
        level = UNCHANGED[measure]
        ax.axhline(level, color=CHANCE, linestyle="--", linewidth=1.1, label=f"unchanged ({level})", zorder=1)
        # a hair's change must not fill the figure
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, level - 0.02), max(high, level + 0.02))
    ax.set_ylabel(f"{UNITS.get(measure, measure)}\n({erased_name(rows)})")
    return _finished(ax)


def _unit(metric: str) -> str:
    return next((unit for word, unit in UNITS.items() if word in metric.split(".")), "Value")


def _line(ax: Axes, rows: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    line = over_seeds(rows, ["layer"])
    ax.plot(line["layer"], line["mean"], color=colour, marker=marker, label=label, zorder=3)
    ax.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0, zorder=2)


def _finished(ax: Axes) -> Axes:
    ax.set_xlabel("Layer (after block)")
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

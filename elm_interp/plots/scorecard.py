"""The score card: base against erased in every metric.

    ax = plot_scorecard(frame)                        # a new figure; ax.figure.axes has every panel
    ax = plot_scorecard(frame, ax=[top, bottom])      # on axes of one's own, one a scale

Rows: one per metric with its interval; `method` "base" is the untouched model, the last step of the other
is the erased one.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_intervals, draw_points, sides_of
from elm_interp.plots.declared import by_group
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import chance_of, metrics_of, over_seeds, rows_of
from elm_interp.plots.panels import log_ratio, panel_axes, panels_of
from elm_interp.plots.style import BASE, CHANCE, legend_above, name_of

ARROWS = {"up": "→", "down": "←"}
SHIFT = 0.13
"""Distance of a side from the middle of its line, in lines."""


@figure(
    source="results/scorecard.parquet",
    stage="evaluate",
    title="Before and after",
    order=10,
    how_to_read="Each line is one metric, from the untouched model (circle) to the erased one (diamond), with 95 % "
    "intervals. The arrow on the right points to where a good eraser goes. Accuracies and other shares are above; "
    "ratios to the base are below, on a logarithmic axis.",
    cannot_show="It covers these questions and these scorers only: other wordings, other languages, an attack or "
    "further training may bring back what seems gone. The intervals leave out the choice of the training seed.",
)
def plot_scorecard(
    frame: pd.DataFrame, metrics: Sequence[str] | None = None, *, ax: Axes | Sequence[Axes] | None = None
) -> Axes:
    """Base against erased in each metric, grouped, with intervals, chance, and an arrow to where a good eraser goes.

    Args:
        frame: tidy rows of the base and of an erased model; its last step is shown. Rows of single layers are ignored.
        metrics: which; by default all shares and ratios of the frame but p-values.
        ax: where to draw, one axes a scale (shares, ratios); a new figure by default.

    Returns:
        The first axes.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: axes that do not fit the scales, rows that mix models or methods, or nothing to draw.
    """
    chosen = [m for m in metrics_of(frame) if not m.endswith(".p")] if metrics is None else list(metrics)
    rows = rows_of(frame, chosen)
    rows = rows[rows["layer"].isna()]
    panels = panels_of(rows, [name for group in by_group(chosen).values() for name in group])
    lines = [len(names) + len(by_group(names)) for names in panels.values()]
    heights = [0.29 * n + (0.95 if i == 0 else 0.65) for i, n in enumerate(lines)]
    given = panel_axes(ax, panels, heights, sharex=False)
    for panel, (scale, names) in zip(given, panels.items(), strict=True):
        _draw_panel(panel, rows, names, scale)
    legend_above(given[0], columns=2)
    return given[0]


def _draw_panel(ax: Axes, rows: pd.DataFrame, names: Sequence[str], scale: str) -> None:
    """One scale of the score card: a line for each group's name and each metric, from the top down."""
    groups = by_group(names)
    lines = [line for group, of_group in groups.items() for line in (group, *of_group)]
    rows = rows[rows["metric"].isin(names)].assign(place=lambda rows: rows["metric"].map(lines.index).astype(float))
    sides, ends = sides_of(rows), []
    shifts = {1: (0.0,), 2: (-SHIFT, SHIFT), 3: (-SHIFT, SHIFT, 0.0)}[len(sides)]
    for side, shift in zip(sides, shifts, strict=True):
        table = over_seeds(side.rows, ["metric", "place"])
        table["y"] = table["place"] + shift
        draw_intervals(ax, table, ["low", "high"], "y", side.colour, linewidth=2.2, alpha=0.45, zorder=2)
        draw_points(ax, table["mean"], table["y"], side.colour, side.marker, s=45, zorder=4, label=side.label)
        ends.append(table.set_index("metric")[["mean", "y"]])
    if len(ends) > 1 and sides[0].colour == BASE:
        both = ends[0].join(ends[1], rsuffix="_erased", how="inner")
        ax.plot(both[["mean", "mean_erased"]].T, both[["y", "y_erased"]].T, color="#BBBBBB", linewidth=1, zorder=1)
    for metric in names:
        y, of_metric = lines.index(metric), rows[rows["metric"] == metric]
        if scale == "share" and (chance := chance_of(of_metric)) is not None:
            ax.vlines(chance, y - 0.42, y + 0.42, color=CHANCE, linestyle="--", linewidth=1.2, zorder=1)
        _write_beside(ax, y, ARROWS.get(str(of_metric["direction"].iloc[0]), ""), fontsize=14)
    _write_beside(ax, 0, "better")
    ax.plot([], [], color=CHANCE, linestyle="--", label="chance")
    ax.set_yticks(range(len(lines)), [line.capitalize() if line in groups else name_of(line) for line in lines])
    for line, tick in zip(lines, ax.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if line in groups else "normal")
    ax.set(ylim=(len(lines) - 0.4, -0.5), ylabel="")
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    if scale == "share":
        # a marker at 0 or 1 is shown whole
        ax.set(xlim=(-0.02, 1.02), xlabel="Accuracy or share")
    else:
        ax.axvline(1, color=BASE, linewidth=1.2, zorder=1)
        log_ratio(ax.xaxis)
        ax.set_xlabel("Ratio to base (1 = unchanged, log scale)")


def _write_beside(ax: Axes, y: float, text: str, **look: Any) -> None:
    ax.annotate(text, (1.03, y), xycoords=("axes fraction", "data"), ha="center", va="center", **look)

"""Metrics of behaviour along training, from the untouched model to the last checkpoint.

ax = plot_progression(frame)                      # a new figure; ax.figure.axes has every panel

Rows: one per metric and step with its interval; `method` "base" is the untouched model.
"""

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from elm_interp.plots.curves import draw_curve, draw_level
from elm_interp.plots.declared import headline_metrics
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import GOLD, gold_of, metrics_of, over_seeds, rows_of
from elm_interp.plots.panels import log_ratio, panel_axes, panels_of
from elm_interp.plots.style import CHANCE, MARKERS, SERIES, legend_above, name_of, whole_numbers

MOST_TICKS = 12
NEVER_LINE = (0, (1, 2))
"""Line style of gold's level."""


@figure(
    source="results/progression.parquet",
    stage="progress",
    title="Over training",
    order=20,
    how_to_read="Each curve is one metric at every checkpoint, from the untouched model (left) to the final one "
    "(right). In an erasure without damage, innocence falls to its chance line (free answers to 0), specificity stays "
    "level, and the ratios stay near 1, where they start by definition. A dotted line is the same "
    "metric of a gold model, which never knew the concept.",
    cannot_show="The questions are few (60 about the concept unless the run is thorough, and 4 passages for "
    "ratios), so numbers differ from the score card's; all checkpoints share them. Small changes within a band mean "
    "nothing. A model that answers at chance may still hold the facts in a form that these questions do not reach.",
)
def plot_progression(
    frame: pd.DataFrame, metrics: Sequence[str] | None = None, *, ax: Axes | Sequence[Axes] | None = None
) -> Axes:
    """Metrics at every checkpoint, with intervals and chance; step 0 is the base, whose ratios are 1.

    Args:
        frame: tidy rows at several steps.
        metrics: which; by default the headline metrics that the frame has, else its first six.
        ax: where to draw, one axes a scale (shares, ratios); a new figure by default.

    Returns:
        The first axes.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: axes that do not fit the scales, or rows that mix models or methods.
    """
    known = metrics_of(frame)
    chosen = list(metrics or [m for m in headline_metrics() if m in known] or known[: len(SERIES)])
    rows = rows_of(frame, chosen)
    panels = panels_of(rows, chosen)
    given = panel_axes(ax, panels, [3.3 if scale == "share" else 2.5 for scale in panels], sharex=True)
    looks = {m: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, m in enumerate(chosen)}
    for panel, (scale, names) in zip(given, panels.items(), strict=True):
        for metric in names:
            _draw_metric(panel, rows[rows["metric"] == metric], scale, *looks[metric], set(rows["step"].dropna()))
        if scale == "share":
            for chance in sorted(rows.loc[rows["metric"].isin(names), "chance"].dropna().unique()):
                draw_level(panel, float(chance), "chance")
            panel.set_ylabel("Accuracy" if rows.loc[rows["metric"].isin(names), "chance"].notna().all() else "Share")
        else:
            draw_level(panel, 1, "unchanged")
            panel.set_ylabel("Ratio to base (log scale)")
            log_ratio(panel.yaxis)
        steps = sorted(rows["step"].unique())
        panel.xaxis.set_major_locator(FixedLocator(steps) if len(steps) <= MOST_TICKS else whole_numbers())
        panel.margins(x=0.02)
        panel.set_xlabel("")
        if len(gold_of(rows[rows["metric"].isin(names)])):
            panel.plot([], [], color=CHANCE, linestyle=NEVER_LINE, label="gold: never knew")
        legend_above(panel, columns=2)
    given[-1].set_xlabel("Training step (0 = base)")
    return given[0]


def _draw_metric(ax: Axes, rows: pd.DataFrame, scale: str, colour: str, marker: str, steps: Collection[int]) -> None:
    """A line through a metric's steps; points alone if it was not measured at all steps of the figure."""
    metric = str(rows["metric"].iloc[0])
    never, rows = gold_of(rows), rows[rows["method"] != GOLD]
    if len(never):
        ax.axhline(never["value"].mean(), color=colour, linestyle=NEVER_LINE, linewidth=1.3, zorder=2)
    table = over_seeds(rows, ["step"])
    if scale == "ratio" and 0 not in set(table["step"]):
        # the base over itself, which nobody needs to measure
        table = pd.concat([pd.DataFrame({"step": [0], "mean": [1.0], "low": [1.0], "high": [1.0]}), table])
    label = f"{metric.split('.')[0]}: {name_of(metric)}".removesuffix(" ratio")
    if set(steps) <= set(table["step"]):
        draw_curve(ax, table, "step", label, colour, marker=marker, band=0.12)
    else:  # a line would show a course that nobody measured
        draw_curve(ax, table, "step", label, colour, marker=marker, markersize=7, linestyle="", band=0)
        ax.vlines(table["step"].astype(float), table["low"], table["high"], color=colour, linewidth=1.3)

"""Calibration: where each metric puts the hiding and the random model, between the original and gold.

    ax = plot_calibration(anchors(table))

Rows: one per metric, with columns metric, original, gold, r_hiding, r_random, auc_gold,
constant (`calibration.anchors`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.curves import draw_points
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_known
from elm_interp.plots.style import BASE, CHANCE, ERASED, SERIES, axes, legend_above

LIMITS = (-0.5, 1.5)
"""Values outside are drawn at the edge, as a triangle that points outwards."""
LEAST_APART = 0.4
"""Shown by default: metrics whose AUC between original and gold is at least this far from 0.5."""


@figure(
    title="Calibration",
    how_to_read="Each line is one metric, scaled so that the original, which knows the facts, is at 0 and gold, "
    "which never knew them, at 1. The hiding model knows and does not say: a metric that puts it at 1 is deceived, "
    "one that puts it at 0 is not. A triangle at the edge is a value beyond it.",
    cannot_show="The models are small and their knowledge is of one kind, so a metric may behave differently on a "
    "large model. Another way of hiding may deceive a metric that this one did not.",
)
def plot_calibration(frame: pd.DataFrame, metrics: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Hiding and random model on each metric's own scale, on which the original is 0 and gold is 1.

    Args:
        frame: one row a metric.
        metrics: which; by default those that tell the original from gold.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: no metric to show.
    """
    need_known("metric in this frame", metrics or (), list(frame["metric"]))
    tells = ~frame["constant"].astype(bool) & ((frame["auc_gold"] - 0.5).abs() >= LEAST_APART)
    rows = frame[frame["metric"].isin(metrics) if metrics is not None else tells]
    if rows.empty:
        raise ConfigError("no metric of this frame tells the original from gold, so none has a scale to be drawn on.")
    ax = axes(ax, height=0.27 * len(rows) + 1.1)
    heights = np.arange(len(rows))
    ax.axvline(0, color=BASE, linewidth=1.4, label="original", zorder=1)
    ax.axvline(1, color=CHANCE, linewidth=1.4, linestyle="--", label="gold", zorder=1)
    for kind, colour, marker in (("hiding", ERASED, "D"), ("random", SERIES[1], "o")):
        r = rows[f"r_{kind}"].to_numpy(dtype=float)
        inside = (r >= LIMITS[0]) & (r <= LIMITS[1])
        draw_points(ax, r[inside], heights[inside], colour, marker, label=kind)
        for edge, beyond, pointing in ((LIMITS[0], r < LIMITS[0], "<"), (LIMITS[1], r > LIMITS[1], ">")):
            draw_points(ax, np.full(beyond.sum(), edge), heights[beyond], colour, pointing, clip_on=False)
    ax.set_yticks(heights, list(rows["metric"]))
    ax.set_xticks(np.arange(LIMITS[0], LIMITS[1] + 0.25, 0.5))
    ax.set(xlim=LIMITS, ylim=(len(rows) - 0.5, -0.5), xlabel="(x − original) / (gold − original)", ylabel="Metric")
    ax.tick_params(axis="y", length=0)
    legend_above(ax, columns=2)
    return ax

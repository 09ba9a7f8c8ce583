"""Probe accuracy by layer: what a linear probe reads from each layer of the base and of the erased model.

    ax = plot_probe_by_layer(frame, "probe.truth")
    ax = plot_probe_by_layer(probe_layers(activations, labels))      # labels of your own: one unnamed curve

Rows: one per layer, seed and step of METRIC and of its shuffled-label control, METRIC.control.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_by_layer, draw_chance, draw_sides, finish_by_layer, sides_of
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import metrics_of, probe_of, probe_variants, rows_of
from elm_interp.plots.style import CHANCE, SERIES, axes, name_of

BASELINES = (("random_init", "weights never trained", "-."), ("embedding", "token embeddings", (0, (1, 3))))
"""What a probe reads without the knowledge: kind, legend, line style."""


@figure(
    source="results/probes.parquet",
    stage="probe",
    title="Layer by layer",
    order=30,
    variants=probe_variants,
    how_to_read="Each point is the accuracy of a linear probe at one layer, on questions it was not fitted on. The "
    "band is the 95 % interval over seeds; the dotted lines are the same probes on shuffled labels. The black lines "
    "show what the base's token embeddings and untrained weights give away.",
    cannot_show="A probe at its control level does not prove that the knowledge is gone: only this linear probe at "
    "this position finds nothing. A probe above it does not show that the model uses what it reads. The band covers "
    "the choice of splits, not the choice of questions.",
)
def plot_probe_by_layer(frame: pd.DataFrame, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer of the base and of the last step, with intervals over seeds, controls and baselines.

    Args:
        frame: tidy rows of the metric and, where there are any, of its control and of the baselines
            `probe.embedding.TASK` (a level) and `probe.random_init.TASK` (a line).
        metric: which probe; by default probe.values or probe.association, else the first of the frame.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models, sites or methods, or have no layers.
    """
    metric = metric or probe_of(frame)
    rows, known = rows_of(frame, metric), metrics_of(frame)
    ax = axes(ax)
    draw_sides(ax, rows)
    draw_chance(ax, rows)
    thin: dict[str, Any] = {"band": 0, "linewidth": 1.2, "zorder": 2}
    if f"{metric}.control" in known:
        for side in sides_of(rows_of(frame, f"{metric}.control")):
            label = side.label.split(",")[0] + ", shuffled labels"
            draw_by_layer(ax, side.rows, label, side.colour, linestyle=":", **thin)
    for kind, label, style in BASELINES:
        name = f"probe.{kind}.{metric.removeprefix('probe.')}"
        found = rows_of(frame, name) if name in known else rows.iloc[:0]
        if found["layer"].notna().any():
            draw_by_layer(ax, found, label, SERIES[0], linestyle=style, **thin)
        elif len(found):
            ax.axhline(found["value"].mean(), color=SERIES[0], linestyle=style, linewidth=1.2, label=label, zorder=1)
    if (seeds := rows["seed"].nunique()) > 1:
        # an empty line, for the legend alone
        ax.plot([], [], color=CHANCE, alpha=0.3, linewidth=8, solid_capstyle="butt", label=f"95 % over {seeds} seeds")
    return finish_by_layer(ax, f"Probe accuracy: {name_of(metric)}")

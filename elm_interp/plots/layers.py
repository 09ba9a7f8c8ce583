"""Any metric by layer, of the base and of the erased model: lengths of codes, counts of directions, norms.

ax = plot_layers(frame, "probe.association.code_length")

Rows: one per layer (and seed) of the metric.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_chance, draw_sides, finish_by_layer
from elm_interp.plots.declared import axis_label
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_layers, rows_of
from elm_interp.plots.style import axes


@figure(
    title="One metric by layer",
    how_to_read="Each line is one metric by layer, of the base and of the erased model, with 95 % intervals. The "
    "dashed line is the level of knowing nothing: a code of that length tells the reader nothing.",
    cannot_show="A shorter code or fewer directions say something of this probe and these questions only. A layer "
    "that looks alike in base and erased model need not compute alike.",
)
def plot_layers(frame: pd.DataFrame, metric: str, *, ax: Axes | None = None) -> Axes:
    """Any metric by layer, of the base and of the last step, with its intervals and the level of knowing nothing.

    Args:
        frame: tidy rows of the metric; other rows are ignored.
        metric: which.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models, sites or methods, or have no layers.
    """
    rows = rows_of(frame, metric)
    need_layers(rows, metric)
    ax = axes(ax)
    draw_sides(ax, rows)
    draw_chance(ax, rows)
    return finish_by_layer(ax, axis_label(metric))

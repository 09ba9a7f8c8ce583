"""Any metric by layer, one line for each of several erasure methods, beside the base.

ax = plot_methods_by_layer(frame, "norm.forget")

Rows: one per method, layer (and seed) of the metric.
"""

from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_by_layer, draw_chance, finish_by_layer
from elm_interp.plots.declared import axis_label
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_layers, need_one, rows_of
from elm_interp.plots.style import BASE, ERASED, MARKERS, SERIES, axes


@figure(
    title="Methods, layer by layer",
    how_to_read="Each line is one method's model, layer by layer, with 95 % intervals, beside the untouched base. A "
    "method whose line leaves the base's for the erased concept, and stays with it for the other, acts on the "
    "concept alone.",
    cannot_show="Each method was trained with one choice of settings. A probe at chance does not prove that the "
    "knowledge is gone, and an unchanged norm says nothing of direction.",
)
def plot_methods_by_layer(
    frame: pd.DataFrame, metric: str, *, label: str | None = None, level: bool = True, ax: Axes | None = None
) -> Axes:
    """Any metric by layer, one line a method at its last step, beside the base.

    Args:
        frame: tidy rows of the metric, of the base and of several methods; other rows are ignored.
        metric: which.
        label: of the vertical axis; by default the metric's unit and name.
        level: draw the level of knowing nothing, where the rows agree on one.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models or sites, or have no layers.
    """
    of_metric = frame[frame["metric"] == metric]
    sides = {str(method): rows_of(rows, metric) for method, rows in of_metric.groupby("method", sort=False)}
    rows = pd.concat(sides.values()) if sides else rows_of(frame, metric)
    need_one(rows["model"].dropna(), "model")
    need_layers(rows, metric)
    ax = axes(ax)
    looks = cycle(zip((ERASED, *SERIES[1:]), MARKERS[1:], strict=False))
    for method, side in sides.items():
        colour, marker = (BASE, MARKERS[0]) if method == "base" else next(looks)
        last = side[side["step"] == side["step"].max()]
        draw_by_layer(ax, last, method, colour, marker=marker)
    if level:
        draw_chance(ax, rows)
    return finish_by_layer(ax, label or axis_label(metric))

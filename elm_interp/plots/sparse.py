"""Probes of few dimensions against one of all: in how many dimensions of a layer does the answer sit?

ax = plot_sparse(frame, "association")

Rows: one per layer and seed of `probe.sparse.TASK.k1` and so on, and of `probe.TASK`.
"""

from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import unknown
from elm_interp.plots.curves import draw_by_layer, draw_chance, finish_by_layer, sides_of
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import metrics_of, rows_of
from elm_interp.plots.style import MARKERS, SERIES, axes, name_of


@figure(
    title="Few dimensions",
    how_to_read="Each line is the accuracy of probes that read k dimensions of a layer, chosen on the train facts. "
    "Where the line of few dimensions comes near that of all, the answer sits in few of them.",
    cannot_show="The dimensions are chosen one by one, so a group that tells only together is missed. A rotation of "
    "the stream would change the figure without changing the model.",
)
def plot_sparse(frame: pd.DataFrame, task: str = "association", *, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer from the k best dimensions, a line for each k, of the last step or of the base alone.

    Args:
        frame: tidy rows of `probe.sparse.TASK.k…`, and of `probe.TASK` for all dimensions, where there are any.
        task: "truth", "association" or "choice".
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no sparse probes of this task.
        ConfigError: the rows mix models, sites or methods.
    """
    known, start = metrics_of(frame), f"probe.sparse.{task}.k"
    sizes = sorted(int(name.removeprefix(start)) for name in known if name.startswith(start))
    if not sizes:
        raise unknown("metric in this frame", f"{start}1", known)
    names = {f"{start}{k}": f"{k} dimension{'s' if k > 1 else ''}" for k in sizes}
    names |= {name: "all dimensions" for name in known if name == f"probe.{task}"}
    rows = rows_of(frame, names)
    ax = axes(ax)
    side = sides_of(rows)[-1]
    for (name, label), colour, marker in zip(names.items(), cycle(SERIES), cycle(MARKERS), strict=False):
        draw_by_layer(ax, side.rows[side.rows["metric"] == name], label, colour, marker=marker, band=0)
    draw_chance(ax, rows)
    return finish_by_layer(ax, f"Probe accuracy: {name_of(f'probe.{task}')}\n({side.label})")

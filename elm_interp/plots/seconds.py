"""What each way of training reaches in how much time.

    ax = plot_over_seconds(frame, "forget", label="Accuracy on the erased concept", level=(0.5, "chance"))

Rows: one a method and moment, with columns method, seconds, and NAME, NAME_low, NAME_high of what is drawn.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.frames import need_columns
from elm_interp.plots.style import CHANCE, ERASED, MARKERS, SERIES, axes, legend_above, styled


@styled
def plot_over_seconds(
    frame: pd.DataFrame,
    value: str = "forget",
    *,
    level: tuple[float, str] | None = None,
    label: str = "Accuracy on the erased concept",
    ax: Axes | None = None,
) -> Axes:
    """One line a method over seconds of work, with its interval as a band; each starts at the untouched model.

    Args:
        frame: one row a method and moment.
        value: column of what is drawn.
        level: a value to compare with, and its name.
        label: of what is drawn.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ConfigError: a column that is needed is missing.
    """
    need_columns(frame, ["method", "seconds", value, f"{value}_low", f"{value}_high"])
    ax = axes(ax)
    looks = zip((ERASED, *SERIES), MARKERS, strict=False)
    for (method, rows), (colour, marker) in zip(frame.groupby("method", sort=False), looks, strict=False):
        rows = rows.sort_values("seconds")
        ax.plot(rows["seconds"], rows[value], color=colour, marker=marker, label=str(method))
        ax.fill_between(
            rows["seconds"], rows[f"{value}_low"], rows[f"{value}_high"], color=colour, alpha=0.12, linewidth=0
        )
    if level is not None:
        ax.axhline(level[0], color=CHANCE, linewidth=1.1, linestyle="--", label=f"{level[1]} ({level[0]:g})")
    ax.set(xlabel="Seconds of preparation and training", ylabel=label)
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

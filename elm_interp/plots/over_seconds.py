"""What each way of training reaches in how much time.

    ax = plot_over_seconds(frame, "forget", label="Accuracy on the erased concept", level=(0.5, "chance"))

Rows: one a method and moment, with columns method, seconds, and NAME, NAME_low, NAME_high of what is drawn.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_curve, draw_level
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_columns
from elm_interp.plots.style import ERASED, MARKERS, SERIES, axes, legend_above


@figure(
    title="Over seconds of work",
    how_to_read="Each line is one way of training over its seconds of work, with the 95 % interval of each "
    "measurement as a band. The best use of the seconds brings forget questions down and keeps the other measure "
    "near 1.",
    cannot_show="The seconds are those of one machine and one training seed. A line ends where its training ended; "
    "what it would reach with other settings is not shown.",
)
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
        table = rows.rename(columns={value: "mean", f"{value}_low": "low", f"{value}_high": "high"})
        draw_curve(ax, table.sort_values("seconds"), "seconds", str(method), colour, marker=marker, band=0.12)
    if level is not None:
        draw_level(ax, *level)
    ax.set(xlabel="Seconds of preparation and training", ylabel=label)
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

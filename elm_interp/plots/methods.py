"""Methods side by side: what each left of the concept, against what it left of everything else.

    ax = plot_methods(frame, x="forget", y="other", chance=0.25)

Rows: one per method, with columns method, and for each of the two axes NAME, NAME_low, NAME_high.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.frames import need_columns
from elm_interp.plots.style import BASE, CHANCE, ERASED, MARKERS, SERIES, axes, legend_above, styled

ANCHORS = {"original": (BASE, "*"), "base": (BASE, "*"), "gold": (CHANCE, "*")}
"""Models that no method made: colour and marker."""


@styled
def plot_methods(
    frame: pd.DataFrame,
    x: str = "forget",
    y: str = "other",
    *,
    chance: float | None = None,
    labels: tuple[str, str] = ("Accuracy on the erased concept", "Accuracy on everything else"),
    ax: Axes | None = None,
) -> Axes:
    """One point a method, with intervals; a good eraser stands at the upper left.

    Args:
        frame: one row a method.
        x: column of what should fall.
        y: column of what should stay.
        chance: level of knowing nothing, drawn on both axes.
        labels: of the two axes.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ConfigError: a column that is needed is missing.
    """
    need_columns(frame, ["method", *(f"{name}{end}" for name in (x, y) for end in ("", "_low", "_high"))])
    ax = axes(ax)
    if chance is not None:
        ax.axvline(chance, color=CHANCE, linewidth=1, linestyle=":", label="chance")
        ax.axhline(chance, color=CHANCE, linewidth=1, linestyle=":")
    looks = iter(zip((ERASED, *SERIES[1:]), MARKERS, strict=False))
    for row in frame.to_dict("records"):
        colour, marker = ANCHORS.get(row["method"]) or next(looks)
        # an interval at the edge may miss the value by a rounding error
        ends = [(row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]) for name in (x, y)]
        bars = [[[max(low, 0)], [max(high, 0)]] for low, high in ends]
        ax.errorbar(
            row[x], row[y], xerr=bars[0], yerr=bars[1], color=colour, marker=marker, linestyle="", label=row["method"],
            markersize=10 if row["method"] in ANCHORS else 6, elinewidth=1,
        )  # fmt: skip
    ax.set(xlabel=labels[0], ylabel=labels[1])
    legend_above(ax, columns=4)
    return ax

"""Methods side by side: what each left of the concept, against what it left of everything else.

ax = plot_methods(frame, x="forget", y="other", chance=0.25)

Rows: one per method, with columns method, and for each of the two axes NAME, NAME_low, NAME_high.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_points
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_columns
from elm_interp.plots.style import BASE, CHANCE, ERASED, MARKERS, SERIES, axes, legend_above

REFERENCES = {"original": (BASE, "*"), "base": (BASE, "*"), "gold": (CHANCE, "*")}
"""Models that no method made: colour and marker."""


@figure(
    title="Methods",
    how_to_read="Each point is one method, with 95 % intervals. Further left it says less of the erased concept; "
    "further up it keeps more of everything else. The stars are the untouched model and, where there is one, gold, "
    "which never knew the concept.",
    cannot_show="Each method was trained with one choice of settings, and another may move its point. What is not "
    "said in these questions may still be there inside.",
)
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
        reference = REFERENCES.get(row["method"])
        colour, marker = reference or next(looks)
        ax.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[y]] * 2, color=colour, linewidth=1)
        ax.plot([row[x]] * 2, [row[f"{y}_low"], row[f"{y}_high"]], color=colour, linewidth=1)
        draw_points(ax, [row[x]], [row[y]], colour, marker, s=110 if reference else 40, label=row["method"])
    ax.set(xlabel=labels[0], ylabel=labels[1])
    legend_above(ax, columns=4)
    return ax

"""Settings side by side: what each erased and what it cost, and the front that no other setting beats.

    ax = plot_pareto(frame, x="forget", y="other", chance=0.5)

Rows: one a setting, with columns method, setting, seamless, and the two that are drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_curve, draw_points
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_columns
from elm_interp.plots.methods import REFERENCES
from elm_interp.plots.style import CHANCE, ERASED, MARKERS, SERIES, axes, legend_above


def pareto_front(x: Sequence[float], y: Sequence[float]) -> Bool[np.ndarray, " points"]:
    """Points that no other beats, where x should be low and y high: none is as good in both and better in one.

    Args:
        x: one number a point, less is better.
        y: one number a point, more is better.

    Returns:
        A truth value a point; a point with a number that is not finite is never on the front.
    """
    points = np.stack([np.asarray(x, float), -np.asarray(y, float)], 1)
    whole = np.isfinite(points).all(1)
    no_worse = (points[:, None] <= points[None]).all(-1) & whole[:, None]
    better = (points[:, None] < points[None]).any(-1)
    return np.asarray(whole & ~(no_worse & better).any(0))


@figure(
    title="Settings",
    how_to_read="Each numbered point is one setting of one method. Further left it says less of the erased concept; "
    "further up it keeps more of everything else. It is filled where the column holds that the legend names, such as "
    "fluent text; the dashed line joins those filled points that no other beats in both.",
    cannot_show="The points have intervals of several hundredths that are not drawn, so neighbours on the front may "
    "change places. The front is that of the settings that were tried, on one seed.",
)
def plot_pareto(
    frame: pd.DataFrame,
    x: str = "forget",
    y: str = "other",
    *,
    filled: str = "seamless",
    chance: float | None = None,
    labels: tuple[str, str] = ("Accuracy on the erased concept", "Accuracy on everything else"),
    ax: Axes | None = None,
) -> Axes:
    """One numbered point a setting; filled where another column says so, and a line through the filled front.

    Args:
        frame: one row a setting; rows of the method "original" are the untouched model.
        x: column of what should fall.
        y: column of what should stay.
        filled: column that says which points are filled and may be on the front.
        chance: level of knowing nothing, on the horizontal axis.
        labels: of the two axes.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ConfigError: a column that is needed is missing.
    """
    need_columns(frame, ("method", "setting", filled, x, y))
    ax = axes(ax, height=5.4)
    if chance is not None:
        ax.axvline(chance, color=CHANCE, linewidth=1, linestyle=":", label="chance")
    known = frame["method"].isin(list(REFERENCES))
    settings = frame[~known]
    for row in frame[known].to_dict("records"):
        colour, marker = REFERENCES[row["method"]]
        draw_points(ax, [row[x]], [row[y]], colour, marker, label=row["method"], s=150)
    eligible = settings[settings[filled].astype(bool)]
    best = eligible[pareto_front(eligible[x], eligible[y])].sort_values(x)
    look = {"drawstyle": "steps-post", "linewidth": 1.1, "linestyle": "--", "zorder": 1}
    draw_curve(ax, best.assign(mean=best[y]), x, "front", CHANCE, band=0, **look)
    looks = zip((ERASED, *SERIES[1:]), MARKERS, strict=False)
    named: list[dict[str, Any]] = []
    for (method, rows), (colour, marker) in zip(settings.groupby("method", sort=False), looks, strict=False):
        for full, part in rows.groupby(rows[filled].astype(bool)):
            draw_points(ax, part[x], part[y], colour, marker, facecolor=colour if full else "none")
        ax.plot([], [], color=colour, marker=marker, markersize=6, linestyle="", label=str(method))
        if not rows[filled].all():
            open_: dict[str, Any] = {"markerfacecolor": "none", "markersize": 6, "linestyle": ""}
            ax.plot([], [], color=colour, marker=marker, **open_, label=f"{method}, not {filled}")
        named += rows.to_dict("records")
    points = pd.DataFrame(named, columns=[x, y], index=range(1, len(named) + 1), dtype=float)
    for numbers in _together(points):
        place = points.loc[points.loc[numbers, x].idxmax()]
        ax.annotate(", ".join(map(str, numbers)), place, xytext=(4, 3), textcoords="offset points", fontsize=8)
    key = "\n".join(f"{number} {row['setting']}" for number, row in enumerate(named, 1))
    ax.text(1.02, 1.0, key, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    legend_above(ax, columns=4)
    return ax


def _together(points: pd.DataFrame) -> list[list[int]]:
    """Numbers of the points, those together whose labels would touch."""
    near = np.array((0.035, 0.025)) * (points.max() - points.min()).replace(0, 1)
    groups: list[list[int]] = []
    for number, point in points[np.isfinite(points).all(axis=1)].iterrows():
        touched = (g for g in groups if ((points.loc[g] - point).abs() < near).all(axis=1).any())
        if (group := next(touched, None)) is None:
            groups.append([number])
        else:
            group.append(number)
    return groups

"""Panels by scale: shares (0 to 1) and ratios to the base (1 = unchanged) never stand on one axis."""

import math
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from elm_interp.errors import ConfigError
from elm_interp.plots.declared import unit_of
from elm_interp.plots.style import WIDTH

SCALES = ("share", "ratio")
NEITHER = {"kl", "ppl", "nats", "loss"}
"""Words in names of metrics that are no shares, for frames whose metrics are not declared here."""
NICE_RATIOS = (
    1, 10, 0.1, 100, 1000, 10000, 0.01, 2, 5, 0.5, 0.2, 20, 50, 200, 500, 2000, 5000, 3, 1.5, 0.7, 1.2, 0.8, 0.9, 1.1,
    1.3, 1.4,
)  # fmt: skip
"""Ticks of a ratio, the ones to keep first."""


def scale_of(rows: pd.DataFrame) -> str:
    """The axis of one metric's rows: "share" (0 to 1), "ratio" (1 = base) or "other" (nats, perplexities …)."""
    metric = str(rows["metric"].iloc[0])
    unit, words = unit_of(metric), metric.replace(".", "_").split("_")
    if unit == "× base" or words[-1] == "ratio":
        return "ratio"
    return "share" if not unit and rows["value"].between(0, 1).all() and not NEITHER & set(words) else "other"


def panels_of(rows: pd.DataFrame, metrics: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of each scale, in order, without empty scales; metrics of other scales are left out.

    Raises:
        ConfigError: no metric is a share or a ratio.
    """
    scales = {m: scale_of(rows[rows["metric"] == m]) for m in metrics if (rows["metric"] == m).any()}
    panels = {scale: chosen for scale in SCALES if (chosen := [m for m, s in scales.items() if s == scale])}
    if not panels:
        raise ConfigError(
            f"no metric is a share (0 to 1) or a ratio to the base, so there is nothing to draw; "
            f"the frame has {', '.join(scales) or 'no rows'}."
        )
    return panels


def panel_axes(
    ax: Axes | Sequence[Axes] | None, panels: dict[str, list[str]], heights: list[float], *, sharex: bool
) -> list[Axes]:
    """One axes a panel: the given ones, or those of a new figure with panels of these heights in inches.

    Raises:
        ConfigError: the wrong number of axes was given.
    """
    if ax is None:
        figure = plt.figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        return list(figure.subplots(len(panels), sharex=sharex, squeeze=False, height_ratios=heights)[:, 0])
    given = [ax] if isinstance(ax, Axes) else list(ax)
    if len(given) != len(panels):
        raise ConfigError(
            f"the metrics have {len(panels)} scale(s) ({', '.join(panels)}) but ax has {len(given)} axes; "
            "give one axes a scale, or name metrics= of one scale."
        )
    return given


def log_ratio(axis: XAxis | YAxis) -> None:
    """Make an axis logarithmic, so that half and double are equally far from 1, with plain numbers."""
    ax, vertical = axis.axes, isinstance(axis, YAxis)
    (ax.set_yscale if vertical else ax.set_xscale)("log")
    low, high = axis.get_view_interval()
    low, high = min(low, 0.9) / 1.03, max(high, 1.1) * 1.03
    (ax.set_ylim if vertical else ax.set_xlim)(low, high)
    # a ninth of the axis apart, so that the numbers never touch
    apart = math.log(high / low) / 9
    ticks: list[float] = []
    for ratio in NICE_RATIOS:
        if low <= ratio <= high and all(abs(math.log(ratio / other)) > apart for other in ticks):
            ticks.append(ratio)
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())

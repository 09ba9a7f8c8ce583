"""What figures of curves share: a line with its band, the level of chance, and axes by layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.frames import UNNAMED, base_of, chance_of, erased_name, erased_of, gold_of, over_seeds, rows_of
from elm_interp.plots.style import BASE, CHANCE, ERASED, NEVER, TEXTS, UNNAMED_MODEL, axes, legend_above, whole_numbers


class Side(NamedTuple):
    """One model of a frame, and how it looks."""

    label: str
    rows: pd.DataFrame
    colour: str
    marker: str


def sides_of(rows: pd.DataFrame) -> list[Side]:
    """The base, the last step of the erased model and gold, or the one model of rows that name no method."""
    erased = erased_of(rows)
    colour = UNNAMED_MODEL if len(erased) and erased["method"].iloc[0] == UNNAMED else ERASED
    sides = (
        Side("base", base_of(rows), BASE, "o"),
        Side(erased_name(rows), erased, colour, "D"),
        Side("gold: never knew", gold_of(rows), NEVER, "*"),
    )
    return [side for side in sides if len(side.rows)]


def draw_curve(
    ax: Axes, table: pd.DataFrame, x: str, label: str, colour: str, *, band: float = 0.2, **look: Any
) -> None:
    """A line through the means, with the interval as a band.

    Args:
        ax: where to draw.
        table: what `over_seeds` gives, with columns mean, low, high.
        x: column of the horizontal axis.
        label: in the legend.
        colour: of line and band.
        band: opacity of the band; 0 leaves it out.
        look: further properties of the line, such as `marker`.
    """
    table, look = table.astype({x: float}), {"zorder": 3, "markeredgecolor": colour, **look}
    if band:
        # seaborn makes intervals from samples: of these three numbers the median is the mean, the range the interval
        low, high = table[["low", "mean"]].min(axis=1), table[["high", "mean"]].max(axis=1)
        ends = table.assign(low=low, high=high).melt([x], ["low", "mean", "high"], value_name="end")
        table = ends.rename(columns={"end": "mean"})
        look |= {"errorbar": ("pi", 100), "err_kws": {"alpha": band, "linewidth": 0, "zorder": 2}}
    how = "median" if band else None
    sns.lineplot(table, x=x, y="mean", color=colour, label=label, estimator=how, legend=False, ax=ax, **look)


def draw_intervals(ax: Axes, table: pd.DataFrame, columns: Sequence[str], y: str, colour: str, **look: Any) -> None:
    """A horizontal line for each row, from the least to the greatest of some columns; `look` as in `draw_curve`."""
    ends = table[[y]].assign(row=range(len(table))).join(table[[*columns]]).melt(["row", y], columns, value_name="x")
    sns.lineplot(ends, x="x", y=y, units="row", estimator=None, color=colour, legend=False, ax=ax, **look)


def draw_by_layer(ax: Axes, rows: pd.DataFrame, label: str, colour: str, **look: Any) -> None:
    """The curve of some rows over layers: mean and interval over seeds; `look` as in `draw_curve`."""
    draw_curve(ax, over_seeds(rows, ["layer"]), "layer", label, colour, **look)


def draw_sides(ax: Axes, rows: pd.DataFrame, **look: Any) -> None:
    """A curve over layers of each model of the rows."""
    for side in sides_of(rows):
        draw_by_layer(ax, side.rows, side.label, side.colour, marker=side.marker, **look)


def draw_texts(frame: pd.DataFrame, metrics: dict[str, str], level: float | None, ax: Axes | None) -> tuple[Axes, str]:
    """A metric of the erased model on forget and on retain text, over layers; of gold too, dotted.

    Args:
        frame: tidy rows.
        metrics: text ("forget", "retain") -> metric.
        level: the value of an unchanged model, where there is one.
        ax: where to draw; a new figure by default.

    Returns:
        The axes and the name of the erased model.

    Raises:
        ConfigError: the frame holds the base alone.
    """
    found = rows_of(frame, metrics.values())
    rows, gold = erased_of(found), gold_of(found)
    if rows.empty:
        raise ConfigError(f"the frame has {', '.join(metrics.values())} of the base alone; expected an erased model's.")
    ax = axes(ax, height=3.5)
    for text, metric in metrics.items():
        colour, marker = TEXTS[text]
        draw_by_layer(ax, rows[rows["metric"] == metric], f"{text} text", colour, marker=marker)
        if len(never := gold[gold["metric"] == metric]):
            draw_by_layer(ax, never, f"{text} text, gold", colour, linestyle=":", band=0, linewidth=1.2, zorder=2)
    if level is not None:
        draw_level(ax, level, "unchanged")
        low, high = ax.get_ylim()
        # a tiny change must not fill the figure
        ax.set_ylim(min(low, level - 0.02), max(high, level + 0.02))
    return ax, erased_name(rows)


def draw_points(ax: Axes, x: Any, y: Any, colour: str, marker: str, **look: Any) -> None:
    """Points of one look; `look` holds further properties, such as `label`."""
    look = {"s": 34, "edgecolor": colour, "linewidth": 1, "zorder": 3, **look}
    sns.scatterplot(x=x, y=y, color=colour, marker=marker, legend=False, ax=ax, **look)


def draw_level(ax: Axes, level: float | None, name: str) -> None:
    """A dashed line to compare with; nothing for None."""
    if level is not None:
        ax.axhline(level, color=CHANCE, linestyle="--", linewidth=1.1, label=f"{name} ({level:.2g})", zorder=1)


def draw_chance(ax: Axes, rows: pd.DataFrame) -> None:
    """The level of knowing nothing, where the rows agree on one."""
    draw_level(ax, chance_of(rows), "chance")


def finish_by_layer(ax: Axes, label: str, columns: int = 3) -> Axes:
    """Name the axes of a figure by layer, and put the legend above."""
    return finish(ax, "Layer (after block)", label, columns)


def finish(ax: Axes, x: str, y: str, columns: int = 3) -> Axes:
    """Name the axes of a figure by whole numbers, such as steps, and put the legend above."""
    ax.set(xlabel=x, ylabel=y)
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax, columns)
    return ax

"""Norm figure: how much longer or shorter the erased model's activations are than the base's, layer by layer.

    ax = plot_norm_ratio(frame)

Rows: one per layer and step of `norm.forget.ratio` and `norm.retain.ratio`, each with its interval over texts.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.frames import erased_name, erased_of, over_seeds, rows_of
from elm_interp.plots.style import CHANCE, FORGET, RETAIN, axes, legend_above, styled, whole_numbers

TEXTS = {"norm.forget.ratio": ("forget text", FORGET, "o"), "norm.retain.ratio": ("retain text", RETAIN, "s")}


@styled
def plot_norm_ratio(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Activation norm of the last step as a ratio to the base's, by layer, on forget and on retain text.

    Args:
        frame: tidy rows of the norm ratios; rows of other metrics are left alone.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks one of the two ratios.
        ConfigError: the rows mix models, sites or methods, or hold the base alone.
    """
    rows = erased_of(rows_of(frame, TEXTS))
    if rows.empty:
        raise ConfigError("the frame has norm ratios of the base alone; the figure needs those of an erased model.")
    ax = axes(ax, height=3.5)
    for metric, (label, colour, marker) in TEXTS.items():
        line = over_seeds(rows[rows["metric"] == metric], ["layer"])
        ax.plot(line["layer"], line["mean"], color=colour, marker=marker, label=label, zorder=3)
        ax.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.22, linewidth=0, zorder=2)
    ax.axhline(1, color=CHANCE, linestyle="--", linewidth=1.1, label="unchanged (1)", zorder=1)
    # a hair's change must not fill the figure
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.98), max(high, 1.02))
    ax.set(xlabel="Layer (after block)", ylabel=f"Activation norm, ratio to base\n({erased_name(rows)})")
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

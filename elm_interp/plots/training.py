"""Training figure: the terms of the loss, step by step.

    ax = plot_training(pd.read_json("runs/demo/metrics.jsonl", lines=True))

Rows: one a training step, with `step` and one column a term; a run's `metrics.jsonl` as a frame.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from elm_interp.errors import ConfigError, unknown
from elm_interp.plots.style import ERASED, MARKERS, axes, legend_above, styled

COLOURS = {"erase": ERASED, "retain": "#009E73", "fluency": "#0072B2"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
SMOOTH = 9
"""Steps that the bold line averages over."""


@styled
def plot_training(frame: pd.DataFrame, terms: Sequence[str] = ("erase", "retain", "fluency"), *, ax: Axes | None = None) -> Axes:
    """Loss terms by training step: thin as they were, bold their running mean.

    Args:
        frame: one row a step, with `step` and a column for each term; steps without a term may be null.
        terms: which; those that the frame lacks are left out as long as one is there.
        ax: where to draw; a new figure by default.

    Returns:
        The axes; logarithmic where all values are positive and span more than a factor of 20.

    Raises:
        ConfigError: the frame has no step.
        UnknownNameError: the frame has none of the terms.
    """
    if "step" not in frame or frame.empty:
        raise ConfigError("the frame has no training step: expected a row for each, with a column 'step'.")
    there = [term for term in terms if term in frame and frame[term].notna().any()]
    if not there:
        raise unknown("loss term", ", ".join(terms), frame.columns)
    ax = axes(ax, height=3.4)
    spare = iter(OTHERS * len(there))
    for i, term in enumerate(there):
        line = frame[["step", term]].dropna().sort_values("step")
        colour = COLOURS.get(term) or next(spare)
        ax.plot(line["step"], line[term], color=colour, linewidth=0.8, alpha=0.35)
        smooth = line[term].rolling(SMOOTH, center=True, min_periods=1).mean()
        marker = MARKERS[i % len(MARKERS)] if len(line) == 1 else ""
        ax.plot(line["step"], smooth, color=colour, linestyle=STYLES[i % len(STYLES)], marker=marker, label=term)
    values = frame[there].stack()
    if values.min() > 0 and values.max() / values.min() > 20:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_ylim(bottom=min(0, values.min()))
    ax.set(xlabel="Training step", ylabel="Loss term (nats a token)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

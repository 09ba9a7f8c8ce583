"""Training figure: the terms of the loss, step by step.

    ax = plot_training(pd.read_json("runs/demo/metrics.jsonl", lines=True))

Rows: one a training step, with `step` and one column a term; a run's `metrics.jsonl` as a frame.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from elm_interp.errors import ConfigError, unknown
from elm_interp.plots.style import FLUENCY, FORGET, MARKERS, RETAIN, axes, legend_above, styled, whole_numbers

COLOURS = {"erase": FORGET, "retain": RETAIN, "fluency": FLUENCY}
OTHERS = ("#222222", "#56B4E9", "#6A3D9A")
NOT_TERMS = frozenset({"step", "loss", "total", "grad_norm", "lr", "tokens", "samples", "seconds", "warning"})
"""What a training log holds beside the terms."""
STYLES = ("-", "--", "-.", ":")
SMOOTH = 9
"""Steps that the bold line averages over."""


@styled
def plot_training(frame: pd.DataFrame, terms: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Loss terms by training step: thin as they were, bold their running mean.

    Args:
        frame: one row a step, with `step` and a column for each term; steps without a term may be null.
        terms: which; by default every numeric column that is no bookkeeping (`NOT_TERMS`).
        ax: where to draw; a new figure by default.

    Returns:
        The axes; logarithmic where all values are positive and span more than a factor of 20.

    Raises:
        ConfigError: the frame has no step.
        UnknownNameError: a term that the frame does not have.
    """
    if "step" not in frame or frame.empty:
        raise ConfigError("the frame has no training step: expected a row for each, with a column 'step'.")
    known = [c for c in frame.select_dtypes("number").columns if c not in NOT_TERMS and frame[c].notna().any()]
    there = list(known if terms is None else terms)
    for term in there:
        if term not in known:
            raise unknown("loss term", term, known)
    if not there:
        raise ConfigError(f"the frame has no loss term, only {', '.join(map(str, frame.columns))}.")
    ax = axes(ax, height=3.4)
    spare = iter(OTHERS * len(there))
    for i, term in enumerate(there):
        line = frame[["step", term]].dropna().sort_values("step")
        colour = COLOURS.get(term) or next(spare)
        ax.plot(line["step"], line[term], color=colour, linewidth=0.8, alpha=0.35)
        smooth = line[term].rolling(SMOOTH, center=True, min_periods=1).mean()
        marker = MARKERS[i % len(MARKERS)] if len(line) == 1 else ""
        ax.plot(
            line["step"],
            smooth,
            color=colour,
            linestyle=STYLES[i % len(STYLES)],
            marker=marker,
            label=term.replace("_", " "),
        )
    values = frame[there].stack()
    if values.min() > 0 and values.max() / values.min() > 20:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_ylim(bottom=min(0, values.min()))
    ax.set(xlabel="Training step", ylabel="Loss term (nats a token)")
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax)
    return ax

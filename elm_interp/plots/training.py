"""The terms of the loss, step by step.

    ax = plot_training(pd.read_json("runs/demo/metrics.jsonl", lines=True))

Rows: one a training step, with `step` and one column a term; a run's `metrics.jsonl` as a frame.
"""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from elm_interp.errors import ConfigError
from elm_interp.plots.curves import finish
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import need_known
from elm_interp.plots.style import FLUENCY, FORGET, MARKERS, RETAIN, axes

PALETTE = (FORGET, RETAIN, FLUENCY, "#222222", "#56B4E9", "#6A3D9A")
"""Colours of the terms, in order."""
NOT_TERMS = frozenset({"step", "loss", "total", "grad_norm", "lr", "tokens", "samples", "seconds", "warning"})
"""Columns of a training log that are no terms."""
STYLES = ("-", "--", "-.", ":")
SMOOTH = 9
"""Steps that the bold line averages over."""


@figure(
    source="metrics.jsonl",
    stage="erase",
    title="The loss",
    main=False,
    order=70,
    how_to_read="Each curve is one term of the loss, unweighted, in nats a token, at every training step (thin: raw; "
    "bold: running mean). At 0 the model would predict the term's target exactly.",
    cannot_show="A low loss shows that the model agrees with the targets on the training texts. It is no evidence of "
    "erasure: only the held-out measures are.",
)
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
    chosen = _terms(frame, terms)
    ax = axes(ax, height=3.4)
    for i, term in enumerate(chosen):
        line = frame[["step", term]].dropna().sort_values("step")
        smooth = line[term].rolling(SMOOTH, center=True, min_periods=1).mean()
        shared = {"x": line["step"], "color": PALETTE[i % len(PALETTE)], "estimator": None, "legend": False, "ax": ax}
        sns.lineplot(y=line[term], linewidth=0.8, alpha=0.35, **shared)
        look = {"linestyle": STYLES[i % len(STYLES)], "marker": MARKERS[i % len(MARKERS)] if len(line) == 1 else ""}
        sns.lineplot(y=smooth, label=term.replace("_", " "), **look, **shared)
    values = frame[chosen].stack()
    if values.min() > 0 and values.max() / values.min() > 20:
        ax.set_yscale("log")
        # a term that starts at nothing, such as retain, would squeeze the rest
        ax.set_ylim(bottom=max(values.min(), values.max() / 1e5) / 1.5)
        decades = values.max() / values.min() > 1000
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_ylim(bottom=min(0, values.min()))
    return finish(ax, "Training step", "Loss term (nats a token)")


def _terms(frame: pd.DataFrame, terms: Sequence[str] | None) -> list[str]:
    """The terms to draw, checked."""
    if "step" not in frame or frame.empty:
        raise ConfigError("the frame has no training step: expected a row for each, with a column 'step'.")
    known = [c for c in frame.select_dtypes("number").columns if c not in NOT_TERMS and frame[c].notna().any()]
    chosen = list(known if terms is None else terms)
    need_known("loss term", chosen, known)
    if not chosen:
        raise ConfigError(f"the frame has no loss term, only {', '.join(map(str, frame.columns))}.")
    return chosen

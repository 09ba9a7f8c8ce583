"""Probe accuracy above its control, layer by training step.

ax = plot_probe_heatmap(frame, "probe.truth")

Rows: one per layer, seed and step of METRIC and of its shuffled-label control, METRIC.control.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import GOLD, base_of, gold_of, over_seeds, probe_of, probe_variants, rows_of
from elm_interp.plots.style import axes, name_of

MOST_LABELS = 12


@figure(
    source="results/probes.parquet",
    stage="probe",
    title="Layer by layer, step by step",
    order=40,
    variants=lambda frame: dict(list(probe_variants(frame).items())[:1]),
    how_to_read="Each cell is the accuracy of a probe less that of its shuffled-label control, at one layer (up is "
    "deeper) and one checkpoint (the first column is the untouched model; gold is a model that never knew). In a row "
    "that darkens from left to right, the probe lost what it could read at that layer.",
    cannot_show="Each cell is a new probe. It shows what can be read anew at that step, not what the model's later "
    "layers can still read. Cells near 0 mean only that this kind of probe found nothing.",
)
def plot_probe_heatmap(
    frame: pd.DataFrame, metric: str | None = None, *, vmax: float | None = None, ax: Axes | None = None
) -> Axes:
    """Probe accuracy less its shuffled-label control, layer by training step; step 0 is the base.

    Args:
        frame: tidy rows of the metric and of its control.
        metric: which probe; by default probe.values or probe.association, else the first of the frame.
        vmax: upper end of the colour scale, for figures that are to be compared; the largest cell by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes of the map; its colour bar is beside it.

    Raises:
        UnknownNameError: the frame lacks the metric or its control.
        ConfigError: the rows mix models, sites or methods, or no layer and step has both the probe and its control.
    """
    metric = metric or probe_of(frame)
    rows = rows_of(frame, metric)
    others = rows_of(frame, f"{metric}.control")
    grid = _gap(*(of[of["method"] != GOLD] for of in (rows, others)))
    if grid.empty:
        raise ConfigError(f"{metric!r} and its control share no layer and step, so there is no difference to show.")
    steps = list(grid.columns)
    shown = -(-len(steps) // MOST_LABELS)
    first = "0\nbase" if len(base_of(rows)) else "0"
    labels = ["" if i % shown else first if step == 0 else str(step) for i, step in enumerate(steps)]
    gold = _gap(*(gold_of(of).assign(step=-1) for of in (rows, others)))
    if not gold.empty:
        grid, labels = grid.assign(gold=gold[-1]), [*labels, "gold"]
    ax = axes(ax, height=4.2)
    top = vmax or max(0.1, np.ceil(np.nanmax(grid.to_numpy()) * 20) / 20)
    low, high = (grid < 0).any(axis=None), (grid > top).any(axis=None)
    extend = ("neither", "min", "max", "both")[int(low) + 2 * int(high)]
    every = -(-len(grid) // MOST_LABELS)
    bar = {"extend": extend, "pad": 0.02, "label": "Accuracy above shuffled labels"}
    sns.heatmap(grid, cmap="cividis", vmin=0, vmax=top, ax=ax, xticklabels=labels, yticklabels=every, cbar_kws=bar)
    ax.invert_yaxis()
    ax.tick_params(rotation=0, length=0)
    if steps[0] == 0 and len(base_of(rows)):
        ax.axvline(1, color="white", linewidth=3)
    if not gold.empty:
        ax.axvline(len(steps), color="white", linewidth=3)
    ax.set(xlabel="Training step", ylabel="Layer (after block)")
    ax.set_title(f"Probe: {name_of(metric)}", loc="left")
    return ax


def _gap(probe: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """Accuracy less that of the control, a row a layer and a column a step."""
    by = ["layer", "step"]
    means = [over_seeds(of, by).set_index(by)["mean"] for of in (probe, control)]
    return (means[0] - means[1]).dropna().unstack("step").sort_index()

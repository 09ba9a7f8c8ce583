"""Probe figures: what a linear probe reads from each layer, at the end of training and along it.

    ax = plot_probe_by_layer(frame, "probe.association")
    ax = plot_probe_heatmap(frame, "probe.association")

Rows: one per layer, seed and step of METRIC and of its shuffled-label control, METRIC.control.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.frames import base_of, chance_of, erased_name, erased_of, over_seeds, rows_of
from elm_interp.plots.style import BASE, CHANCE, ERASED, SERIES, axes, legend_above, name_of, styled, whole_numbers

BASELINES = (("random_init", "weights never trained", "-."), ("embedding", "words alone", (0, (1, 3))))
"""What a probe reads without the knowledge: kind, legend, line."""


@styled
def plot_probe_by_layer(frame: pd.DataFrame, metric: str = "probe.association", *, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer of the base and of the last step, with intervals over seeds, controls, baselines and chance.

    Args:
        frame: tidy rows of the metric and, where there are any, of its control and of the baselines `probe.embedding.TASK`
            (a level) and `probe.random_init.TASK` (a line).
        metric: which probe.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no such metric.
        ConfigError: the rows mix models, sites or methods.
    """
    rows = rows_of(frame, metric)
    control = f"{metric}.control"
    controls = rows_of(frame, control) if (frame["metric"] == control).any() else rows.iloc[:0]
    ax = axes(ax)
    sides = (("base", BASE, "o", base_of), (erased_name(rows), ERASED, "D", erased_of))
    for label, colour, marker, side in sides:
        line = over_seeds(side(rows), ["layer"])
        if line.empty:
            continue
        ax.plot(line["layer"], line["mean"], color=colour, marker=marker, label=label, zorder=3)
        ax.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0, zorder=2)
    if (chance := chance_of(rows)) is not None:
        ax.axhline(chance, color=CHANCE, linestyle="--", linewidth=1.1, label=f"chance ({chance:.2g})", zorder=1)
    for label, colour, _, side in sides:
        line = over_seeds(side(controls), ["layer"])
        if len(line):
            label = label.split(",")[0] + ", shuffled labels"
            ax.plot(line["layer"], line["mean"], color=colour, linestyle=":", linewidth=1.2, label=label, zorder=2)
    for kind, label, style in BASELINES:
        name = f"probe.{kind}.{metric.removeprefix('probe.')}"
        if not (frame["metric"] == name).any():
            continue
        found = rows_of(frame, name)
        if found["layer"].notna().any():
            line = over_seeds(found, ["layer"])
            ax.plot(line["layer"], line["mean"], color=SERIES[0], linestyle=style, linewidth=1.2, label=label, zorder=2)
        else:
            ax.axhline(found["value"].mean(), color=SERIES[0], linestyle=style, linewidth=1.2, label=label, zorder=1)
    if (seeds := rows["seed"].nunique()) > 1:
        # a line of nothing: it stands in the legend alone
        ax.plot([], [], color=CHANCE, alpha=0.3, linewidth=8, label=f"95 % over {seeds} seeds")
    ax.set(xlabel="Layer (after block)", ylabel=f"Probe accuracy: {name_of(metric)}")
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax)
    return ax


@styled
def plot_probe_heatmap(
    frame: pd.DataFrame, metric: str = "probe.association", *, vmax: float | None = None, ax: Axes | None = None
) -> Axes:
    """Probe accuracy less its shuffled-label control, layer by training step; step 0 is the base.

    Args:
        frame: tidy rows of the metric and of its control.
        metric: which probe.
        vmax: upper end of the colour scale, for figures that are to be compared; the largest cell by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes of the map; its colour bar is beside it.

    Raises:
        UnknownNameError: the frame lacks the metric or its control.
        ConfigError: the rows mix models, sites or methods, or no layer and step has both the probe and its control.
    """
    probe = over_seeds(rows_of(frame, metric), ["layer", "step"])
    control = over_seeds(rows_of(frame, f"{metric}.control"), ["layer", "step"])
    both = probe.merge(control, on=["layer", "step"], suffixes=("", "_control"))
    if both.empty:
        raise ConfigError(f"{metric!r} and its control share no layer and step, so there is no difference to show.")
    both["gap"] = both["mean"] - both["mean_control"]
    grid = both.pivot(index="layer", columns="step", values="gap").sort_index()
    ax = axes(ax, height=4.2)
    top = vmax or max(0.2, np.ceil(np.nanmax(grid.to_numpy()) * 20) / 20)
    low, high = bool((grid < 0).any(axis=None)), bool((grid > top).any(axis=None))
    mesh = ax.pcolormesh(
        np.arange(len(grid.columns) + 1) - 0.5, np.append(grid.index, grid.index[-1] + 1) - 0.5, grid.to_numpy(),
        cmap="cividis", vmin=0, vmax=top, edgecolors="face", linewidth=0.2,
    )  # fmt: skip
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[low, high]
    bar = ax.figure.colorbar(mesh, ax=ax, extend=extend, pad=0.02)
    bar.set_label("Accuracy above shuffled labels")
    bar.outline.set_visible(False)  # type: ignore[operator]
    steps = list(grid.columns)
    if steps[0] == 0:
        ax.axvline(0.5, color="white", linewidth=3)
    # at most a dozen labels, so that they never touch
    shown = sorted({*range(0, len(steps), -(-len(steps) // 12))})
    ax.set_xticks(shown, ["0\nbase" if steps[i] == 0 else str(steps[i]) for i in shown])
    ax.yaxis.set_major_locator(whole_numbers())
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="Training step", ylabel="Layer (after block)")
    ax.set_title(f"Probe: {name_of(metric)}", loc="left")
    return ax

"""The base's own probe against a new one, on the erased model: was the knowledge suppressed, or re-encoded?

ax = plot_transfer(frame, "association")

Rows: one per layer and seed of `probe.TASK` and `probe.transferred.TASK`.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_by_layer, draw_chance, finish_by_layer, sides_of
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import base_of, erased_name, erased_of, metrics_of, probes_of, rows_of
from elm_interp.plots.style import ERASED, SERIES, axes, name_of


def _variants(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    tasks = [name.split(".")[-1] for name in probes_of(frame)]
    return {task: {"task": task} for task in tasks[:1] if f"probe.transferred.{task}" in metrics_of(frame)}


@figure(
    source="results/probes.parquet",
    stage="probe",
    title="Suppressed or re-encoded: the base's probe on the erased model",
    main=False,
    order=60,
    variants=_variants,
    how_to_read="On the erased model, a probe fitted to its own activations (filled) stands beside the base's probe "
    "(empty), on the same unseen facts. Where both read the answer, it is only suppressed; where only the fresh one "
    "does, it was re-encoded. The dotted line is what a linear eraser leaves of the base.",
    cannot_show="Where both fail, the knowledge may remain for a non-linear reader, at another position or in the "
    "weights. A small difference between the two probes may be a shift of scale and no new code.",
)
def plot_transfer(frame: pd.DataFrame, task: str = "association", *, ax: Axes | None = None) -> Axes:
    """On the last step, a probe fitted anew beside the base's own probe; behind them the base and the linear bound.

    Args:
        frame: tidy rows of `probe.TASK` (base and erased) and `probe.transferred.TASK`; of `probe.leace.TASK`, where
            there are any.
        task: such as "truth" or "values".
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks a metric.
        ConfigError: the rows mix models, sites or methods.
    """
    name = f"probe.{task}"
    fresh, carried = rows_of(frame, name), erased_of(rows_of(frame, f"probe.transferred.{task}"))
    who, leace = erased_name(fresh), f"probe.leace.{task}"
    ax = axes(ax)
    for side in sides_of(fresh):
        label = side.label if side.label == "base" else f"{side.label}: fresh probe"
        draw_by_layer(ax, side.rows, label, side.colour, marker=side.marker, band=0.15)
    look = {"marker": "s", "linestyle": "--", "markerfacecolor": "white"}
    draw_by_layer(ax, carried, f"{who}: base's probe", ERASED, band=0.15, **look)
    if leace in metrics_of(frame):
        draw_by_layer(ax, base_of(rows_of(frame, leace)), "base after LEACE", SERIES[0], band=0.15, linestyle=":")
    draw_chance(ax, fresh)
    return finish_by_layer(ax, f"Probe accuracy: {name_of(name)}", columns=2)

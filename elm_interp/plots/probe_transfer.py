"""Figures of what kind of probe reads what: the base's own against a new one, and few dimensions against all.

    ax = plot_transfer(frame, "association")
    ax = plot_sparse(frame, "association")

Rows: of `probe.TASK` and `probe.transferred.TASK`, or of `probe.sparse.TASK.k1` and so on; one per layer and seed.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import unknown
from elm_interp.plots.frames import base_of, chance_of, erased_name, erased_of, over_seeds, rows_of
from elm_interp.plots.style import (
    BASE,
    CHANCE,
    ERASED,
    MARKERS,
    SERIES,
    axes,
    legend_above,
    name_of,
    styled,
    whole_numbers,
)  # fmt: skip

LEACE = "probe.leace"


@styled
def plot_transfer(frame: pd.DataFrame, task: str = "association", *, ax: Axes | None = None) -> Axes:
    """On the last step, a probe fitted anew beside the base's own probe; the base and the linear lower bound behind them.

    Args:
        frame: tidy rows of `probe.TASK` (base and erased) and `probe.transferred.TASK`; of `probe.leace.TASK`, where there are any.
        task: "truth", "association", "choice"; "values" takes `knowledge.probe.erased_domain` as the fresh probe.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks a metric.
        ConfigError: the rows mix models, sites or methods.
    """
    name = "knowledge.probe.erased_domain" if task == "values" else f"probe.{task}"
    fresh, carried = rows_of(frame, name), erased_of(rows_of(frame, f"probe.transferred.{task}"))
    ax = axes(ax)
    who = erased_name(fresh)
    lines = [
        ("base", base_of(fresh), BASE, "o", "-"),
        (f"{who}: fresh probe", erased_of(fresh), ERASED, "D", "-"),
        (f"{who}: base's probe", carried, ERASED, "s", "--"),
    ]
    if (frame["metric"] == f"{LEACE}.{task}").any():
        lines.append(("base after LEACE", base_of(rows_of(frame, f"{LEACE}.{task}")), SERIES[0], "", ":"))
    for label, rows, colour, marker, style in lines:
        if rows.empty:
            continue
        line = over_seeds(rows, ["layer"])
        # an empty square is the base's probe also where the line is short
        face = "white" if style == "--" else colour
        ax.plot(
            line["layer"], line["mean"], color=colour, marker=marker, linestyle=style, label=label, mfc=face, zorder=3
        )
        ax.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0, zorder=2)
    return _finished(ax, fresh, f"Probe accuracy: {name_of(name)}", columns=2)


@styled
def plot_sparse(frame: pd.DataFrame, task: str = "association", *, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer from the k dimensions that tell most, a line for each k, of the last step or of the base alone.

    Args:
        frame: tidy rows of `probe.sparse.TASK.k…`, and of `probe.TASK` for all dimensions, where there are any.
        task: "truth", "association" or "choice".
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame has no sparse probes of this task.
        ConfigError: the rows mix models, sites or methods.
    """
    known = list(dict.fromkeys(frame["metric"]))
    names = [name for name in known if name.startswith(f"probe.sparse.{task}.k")]
    if not names:
        raise unknown("metric in this frame", f"probe.sparse.{task}.k1", known)
    names.sort(key=lambda name: int(name.rsplit("k", 1)[1]))
    names += [name for name in known if name == f"probe.{task}"]
    rows = rows_of(frame, names)
    ax = axes(ax)
    side = erased_of(rows) if len(erased_of(rows)) else base_of(rows)
    for i, name in enumerate(names):
        line = over_seeds(side[side["metric"] == name], ["layer"])
        last = name.rsplit(".", 1)[1]
        label = "all dimensions" if last == task else f"{last[1:]} dimension{'s' if last != 'k1' else ''}"
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        ax.plot(line["layer"], line["mean"], color=colour, marker=marker, label=label, zorder=3)
    who = erased_name(rows) if len(erased_of(rows)) else "base"
    return _finished(ax, rows, f"Probe accuracy: {name_of(f'probe.{task}')}\n({who})")


def _finished(ax: Axes, rows: pd.DataFrame, label: str, columns: int = 3) -> Axes:
    if (chance := chance_of(rows)) is not None:
        ax.axhline(chance, color=CHANCE, linestyle="--", linewidth=1.1, label=f"chance ({chance:.2g})", zorder=1)
    ax.set(xlabel="Layer (after block)", ylabel=label)
    ax.xaxis.set_major_locator(whole_numbers())
    ax.margins(x=0.02)
    legend_above(ax, columns)
    return ax

"""Behaviour figures: the score card, and the same measures along training.

Shares (accuracies and the like, 0 to 1) and ratios to the base (1 = unchanged) never stand on one axis: each scale has a panel.

    ax = plot_progression(frame)                      # a new figure; ax.figure.axes has every panel
    ax = plot_scorecard(frame, ax=[top, bottom])      # on axes of one's own, one a scale

Rows: one per metric and step with its interval; `method` "base" is the untouched model, the last step of the other is the erased one.
"""

import math
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from elm_interp.errors import ConfigError
from elm_interp.plots.frames import base_of, chance_of, erased_name, erased_of, over_seeds, rows_of
from elm_interp.plots.style import (
    BASE,
    CHANCE,
    ERASED,
    MARKERS,
    SERIES,
    WIDTH,
    legend_above,
    name_of,
    styled,
    whole_numbers,
)

HEADLINE = (
    "innocence.two_choice_pmi",
    "specificity.general_pmi",
    "specificity.neighbours_pmi",
    "specificity.retain_ppl_ratio",
    "seamlessness.reverse_ppl_ratio",
    "seamlessness.distinct2_ratio",
)
"""The measures that a run is summed up by, and that progression shows where a frame has them."""
GROUPS = ("innocence", "specificity", "seamlessness")
SCALES = ("share", "ratio")
NICE_RATIOS = (
    1,
    10,
    0.1,
    100,
    1000,
    10000,
    0.01,
    2,
    5,
    0.5,
    0.2,
    20,
    50,
    200,
    500,
    2000,
    5000,
    3,
    1.5,
    0.7,
    1.2,
    0.8,
    0.9,
    1.1,
    1.3,
    1.4,
)
"""Ticks of a ratio, the ones to keep first."""


def scale_of(rows: pd.DataFrame) -> str:
    """The axis that one metric's rows belong on: "share" (0 to 1), "ratio" (1 = base) or "other" (nats, perplexities …)."""
    words = str(rows["metric"].iloc[0]).replace(".", "_").split("_")
    if words[-1] == "ratio":
        return "ratio"
    within = rows["value"].between(0, 1).all()
    return "share" if within and not {"kl", "ppl", "nats", "loss"} & set(words) else "other"


def _panels(rows: pd.DataFrame, metrics: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of each scale, in order, without empty scales; what is neither share nor ratio has no panel."""
    scales = {m: scale_of(rows[rows["metric"] == m]) for m in metrics}
    return {scale: chosen for scale in SCALES if (chosen := [m for m, s in scales.items() if s == scale])}


def _axes(
    ax: Axes | Sequence[Axes] | None, panels: dict[str, list[str]], heights: list[float], *, sharex: bool
) -> list[Axes]:
    """One axes a panel: the given ones, or those of a new figure."""
    if not panels:
        raise ConfigError(
            "none of the metrics is a share (0 to 1) or a ratio to the base, so there is nothing to draw on either scale."
        )
    if ax is None:
        _, new = plt.subplots(
            len(panels),
            1,
            figsize=(WIDTH, sum(heights)),
            height_ratios=heights,
            sharex=sharex,
            squeeze=False,
            layout="constrained",
        )
        return list(new[:, 0])
    given = [ax] if isinstance(ax, Axes) else list(ax)
    if len(given) != len(panels):
        raise ConfigError(
            f"the metrics have {len(panels)} scale(s) ({', '.join(panels)}) but ax has {len(given)} axes; "
            "give one axes a scale, or name metrics= of one scale."
        )
    return given


@styled
def plot_progression(
    frame: pd.DataFrame, metrics: Sequence[str] | None = None, *, ax: Axes | Sequence[Axes] | None = None
) -> Axes:
    """Measures of behaviour at every checkpoint, with intervals and chance; step 0 is the base, whose ratios are 1.

    Args:
        frame: tidy rows at several steps.
        metrics: which; by default those of `HEADLINE` that the frame has, else its first six.
        ax: where to draw, one axes a scale (shares, ratios); a new figure by default.

    Returns:
        The first axes.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: axes that do not fit the scales, or rows that mix models or methods.
    """
    known = list(dict.fromkeys(frame["metric"]))
    chosen = list(metrics) if metrics is not None else [m for m in HEADLINE if m in known] or known[: len(SERIES)]
    rows = rows_of(frame, chosen)
    panels = _panels(rows, chosen)
    given = _axes(ax, panels, [3.3 if scale == "share" else 2.5 for scale in panels], sharex=True)
    looks = {m: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, m in enumerate(chosen)}
    for panel, (scale, names) in zip(given, panels.items(), strict=True):
        for metric in names:
            colour, marker = looks[metric]
            line = over_seeds(rows[rows["metric"] == metric], ["step"])
            if scale == "ratio" and 0 not in set(line["step"]):
                # the base over itself, which nobody needs to measure
                line = pd.concat([pd.DataFrame({"step": [0], "mean": [1.0], "low": [1.0], "high": [1.0]}), line])
            panel.plot(
                line["step"],
                line["mean"],
                color=colour,
                marker=marker,
                label=_full_name(metric).removesuffix(" ratio"),
                zorder=3,
            )
            panel.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.1, linewidth=0, zorder=2)
            for edge in ("low", "high"):
                panel.plot(line["step"], line[edge], color=colour, alpha=0.4, linewidth=0.7, zorder=2)
        if scale == "share":
            if (chance := chance_of(rows[rows["metric"].isin(names)])) is not None:
                panel.axhline(
                    chance, color=CHANCE, linestyle="--", linewidth=1.1, label=f"chance ({chance:.2g})", zorder=1
                )
            panel.set_ylabel("Accuracy" if all("_pmi" in m or "_likelihood" in m for m in names) else "Share")
        else:
            panel.axhline(1, color=CHANCE, linestyle="--", linewidth=1.1, label="unchanged (1)", zorder=1)
            panel.set_ylabel("Ratio to base (log scale)")
            _log_ratio(panel.yaxis, panel.set_yscale)
        steps = sorted(rows["step"].unique())
        # ticks at the checkpoints, where they do not crowd
        panel.xaxis.set_major_locator(FixedLocator(steps) if len(steps) <= 12 else whole_numbers())
        panel.margins(x=0.02)
        legend_above(panel, columns=2)
    given[-1].set_xlabel("Training step (0 = base)")
    return given[0]


@styled
def plot_scorecard(
    frame: pd.DataFrame, metrics: Sequence[str] | None = None, *, ax: Axes | Sequence[Axes] | None = None
) -> Axes:
    """Base against erased in each measure, grouped, with intervals, chance, and an arrow to where a good eraser goes.

    Args:
        frame: tidy rows of the base and of an erased model; its last step is shown.
        metrics: which; by default all shares and ratios of innocence, specificity and seamlessness.
        ax: where to draw, one axes a scale (shares, ratios); a new figure by default.

    Returns:
        The first axes.

    Raises:
        UnknownNameError: a metric that the frame does not have.
        ConfigError: axes that do not fit the scales, rows that mix models or methods, or nothing to draw.
    """
    known = dict.fromkeys(frame["metric"])
    chosen = (
        list(metrics) if metrics is not None else [m for group in GROUPS for m in known if m.startswith(f"{group}.")]
    )
    rows = rows_of(frame, chosen)
    panels = _panels(rows, chosen)
    lines = {scale: len(names) + len({m.split(".")[0] for m in names}) for scale, names in panels.items()}
    given = _axes(
        ax, panels, [0.29 * n + (0.95 if i == 0 else 0.65) for i, n in enumerate(lines.values())], sharex=False
    )
    for panel, (scale, names) in zip(given, panels.items(), strict=True):
        _scorecard_panel(panel, rows, names, scale)
    legend_above(given[0], columns=3)
    return given[0]


def _scorecard_panel(ax: Axes, rows: pd.DataFrame, names: Sequence[str], scale: str) -> None:
    """One scale of the score card: a line for each group's name and each metric, from the top down."""
    heights: list[int] = []
    labels: list[str] = []
    group, y = "", 0
    shift_by = 0.13 if len(base_of(rows[rows["metric"].isin(names)])) else 0.0
    erased_label = erased_name(rows)
    for metric in names:
        if metric.split(".")[0] != group:
            group = metric.split(".")[0]
            heights.append(y)
            labels.append(group.capitalize())
            y += 1
        of_metric = rows[rows["metric"] == metric]
        ends = []
        for side, colour, marker, shift in ((base_of, BASE, "o", -shift_by), (erased_of, ERASED, "D", shift_by)):
            point = over_seeds(side(of_metric), ["metric"])
            if len(point):
                value, low, high = (float(point[c].iloc[0]) for c in ("mean", "low", "high"))
                ax.plot(
                    [low, high],
                    [y + shift] * 2,
                    color=colour,
                    linewidth=2.2,
                    alpha=0.45,
                    solid_capstyle="butt",
                    zorder=2,
                )
                ax.plot([value], [y + shift], color=colour, marker=marker, markersize=6, linestyle="", zorder=4)
                ends.append((value, y + shift))
        if len(ends) == 2:
            ax.plot(*zip(*ends, strict=True), color="#BBBBBB", linewidth=1, zorder=1)
        if scale == "share" and (chance := chance_of(of_metric)) is not None:
            ax.plot([chance] * 2, [y - 0.42, y + 0.42], color=CHANCE, linestyle="--", linewidth=1.2, zorder=1)
        arrow = {"up": "→", "down": "←"}.get(str(of_metric["direction"].iloc[0]), "")
        ax.annotate(arrow, (1.03, y), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=14)
        heights.append(y)
        labels.append(name_of(metric))
        y += 1
    ax.annotate(
        "better", (1.03, -0.9), xycoords=("axes fraction", "data"), ha="center", va="center", annotation_clip=False
    )
    ax.set_yticks(heights, labels)
    for tick in ax.get_yticklabels():
        if tick.get_text().lower() in {m.split(".")[0] for m in names}:
            tick.set_fontweight("bold")
    ax.set_ylim(y - 0.4, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    if scale == "share":
        # a marker at 0 or 1 is shown whole
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("Accuracy or share")
    else:
        ax.axvline(1, color=BASE, linewidth=1.2, zorder=1)
        _log_ratio(ax.xaxis, ax.set_xscale)
        ax.set_xlabel("Ratio to base (1 = unchanged, log scale)")
    for label, colour, marker, style in (
        ("base", BASE, "o", ""),
        (erased_label, ERASED, "D", ""),
        ("chance", CHANCE, "", "--"),
    ):
        ax.plot([], [], color=colour, marker=marker, linestyle=style, label=label)


def _full_name(metric: str) -> str:
    """The name with its group: "innocence: two choice (PMI)"."""
    return f"{metric.split('.')[0]}: {name_of(metric)}"


def _log_ratio(axis, set_scale) -> None:  # type: ignore[no-untyped-def]
    """A logarithmic axis, on which half and double are equally far from 1, with plain numbers."""
    set_scale("log")
    low, high = axis.get_view_interval()
    low, high = min(low, 0.9) / 1.03, max(high, 1.1) * 1.03
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)
    ticks: list[float] = []
    for ratio in NICE_RATIOS:
        # a ninth of the axis apart, so that the numbers never touch
        apart = all(abs(math.log(ratio / other)) > math.log(high / low) / 9 for other in ticks)
        if low <= ratio <= high and apart:
            ticks.append(ratio)
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())

"""The look of all figures: colours, sizes, names of metrics; and how figures are saved.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; curves differ in marker or line style as well.
The style is on while a plot makes its own figure, never outside it. On axes that a user gives, the user's style stays.

    save(plot_probe_by_layer(frame), "figures/probe_by_layer")      # .png and .svg
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

P = ParamSpec("P")
R = TypeVar("R")

BASE = "#0072B2"
"""The untouched model, in every figure."""
ERASED = "#D55E00"
"""The erased model, in every figure."""
NEVER = "#009E73"
"""Gold, which never knew the concept, in every figure."""
CHANCE = "#6E6E6E"
"""The level of knowing nothing, and other lines to compare with."""
FORGET, RETAIN, FLUENCY = "#CC79A7", "#009E73", "#E69F00"
"""Texts, and the loss terms on them."""
SERIES = ("#222222", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#6A3D9A")
"""Curves that are neither base nor erased."""
UNNAMED_MODEL = "#009E73"
"""The one model of a frame that names no method."""
MARKERS = ("o", "s", "^", "D", "v", "P")
TEXTS = {"forget": (FORGET, "o"), "retain": (RETAIN, "s")}
"""Texts that activations are read on: colour, marker."""

LOOK = {
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": "#555555",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.bottom", "ytick.left"), True),
    "grid.color": "#E6E6E6",
}
SIZES = {
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 10),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9.5),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth", "xtick.major.width", "ytick.major.width"), 0.8),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3.5),
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}
STYLE: Any = sns.axes_style("whitegrid", LOOK) | sns.plotting_context("notebook", rc=SIZES) | {"legend.frameon": False}
"""For `matplotlib.rc_context`, around figures whose axes are made outside the plot functions."""
WIDTH = 6.4
"""Inches: 10 point text stays readable where the figure is 600 pixels wide."""


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Draw in the project's style where the plot makes its own figure; on given axes leave the style alone."""

    @functools.wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE) if kwargs.get("ax") is None else nullcontext():
            return plot(*args, **kwargs)

    return draw


def axes(ax: Axes | None, height: float = 3.8) -> Axes:
    """The given axes, or those of a new figure."""
    return plt.subplots(figsize=(WIDTH, height), layout="constrained")[1] if ax is None else ax


def whole_numbers() -> MaxNLocator:
    """Ticks at layers or steps: whole, and in ones, twos, fives or tens."""
    return MaxNLocator(nbins=9, integer=True, steps=[1, 2, 5, 10])


def legend_above(ax: Axes, columns: int = 3) -> None:
    """A legend over the axes, where it can cover nothing; filled row by row, in fewer columns where it is too wide."""
    entries = list(zip(*ax.get_legend_handles_labels(), strict=True))
    if not entries:
        return
    figure = cast(Figure, ax.get_figure(root=True))
    room = figure.bbox.width * (1 - ax.get_position().x0)
    for n in range(columns, 0, -1):
        # matplotlib fills column by column
        handles, labels = zip(*(entry for column in range(n) for entry in entries[column::n]), strict=True)
        look = {"borderaxespad": 0.3, "columnspacing": 1.4, "handlelength": 2.2}
        legend = ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=n, **look)
        if legend.get_window_extent().width <= room:
            return


SCORERS = {"pmi": "PMI", "likelihood": "likelihood", "letter": "letter"}
WORDS = {"ppl": "perplexity", "kl": "KL", "distinct2": "distinct-2", "rep4": "4-gram repetition"}


def name_of(metric: str) -> str:
    """A metric's name for people: "innocence.two_choice_pmi" is "two choice (PMI)"."""
    words = metric.split(".", 1)[-1].replace(".", " ").replace("_", " ").split()
    scorer = f" ({SCORERS[words.pop()]})" if len(words) > 1 and words[-1] in SCORERS else ""
    return " ".join(WORDS.get(w, w) for w in words) + scorer


def save(drawn: Axes | Figure, path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG (200 dpi) and SVG.

    Args:
        drawn: a figure, or any axes of it.
        path: where to, without the ending; missing folders are made.

    Returns:
        The two files. The same figure gives the same bytes.
    """
    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not with_suffix: the name may have dots of its own
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    with mpl.rc_context({"svg.hashsalt": path.name, "savefig.facecolor": "white"}):
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg

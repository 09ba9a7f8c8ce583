"""Declare a figure: the plot function, its caption, and the file of a run that it is drawn from.

    @figure(source="results/probes.parquet", stage="probe", title="Layer by layer",
            how_to_read="Each line is …", cannot_show="A probe at chance …")
    def plot_mine(frame, *, ax=None):
        ax = axes(ax)
        sns.lineplot(data=frame, x="layer", y="value", ax=ax)
        return ax

The report draws every figure that has a source, with its caption below it. A figure of another distribution appears as
well, once its module is an entry point of the group `elm_interp.plugins`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.style import P, styled
from elm_interp.registry import FIGURES

Variants = Callable[[pd.DataFrame], Mapping[str, Mapping[str, Any] | str]]


@dataclass(frozen=True)
class Figure:
    """A declared figure."""

    name: str
    """Name of its files in figures/."""
    draw: Callable[..., Axes]
    """The plot function; its first argument is the frame."""
    title: str
    how_to_read: str
    cannot_show: str
    source: str | None
    """File in the run folder that it is drawn from; None: it is in no report."""
    stage: str | None
    """Command of elm-interp that makes this file."""
    main: bool
    """False: folded away in the report."""
    order: int
    """Place in the report; equal numbers stand in order of declaration."""
    variants: Variants | None
    """Several drawings of one frame: name -> keyword arguments, or why this one cannot be drawn. The first is the main
    one, the others are folded away. None: one drawing without arguments."""


def figure(
    *,
    title: str,
    how_to_read: str,
    cannot_show: str,
    source: str | None = None,
    stage: str | None = None,
    main: bool = True,
    order: int = 100,
    variants: Variants | None = None,
) -> Callable[[Callable[P, Axes]], Callable[P, Axes]]:
    """Declare a plot function `plot_NAME` as the figure NAME and give it the project's style.

    Args:
        title: heading in the report.
        how_to_read: two or three sentences on what is drawn.
        cannot_show: what a reader must not conclude from it.
        source: file in the run folder to draw from: .parquet or .jsonl gives the function a frame, .json what it holds.
            None: the report leaves the figure out.
        stage: command that makes this file, such as "probe".
        main: False folds the figure away in the report.
        order: place in the report.
        variants: function from the frame to the drawings to make, see `Figure.variants`.

    Returns:
        A decorator. It raises ConfigError for a name that another function has.
    """

    def declare(function: Callable[P, Axes]) -> Callable[P, Axes]:
        draw, name = styled(function), function.__name__.removeprefix("plot_")
        record = Figure(name, draw, title, how_to_read, cannot_show, source, stage, main, order, variants)
        FIGURES.add(name, record, origin=function)
        return draw

    return declare

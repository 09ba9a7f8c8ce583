"""How much longer or shorter the erased model's activations are than the base's, layer by layer.

ax = plot_norm_ratio(frame)

Rows: one per layer and step of `norm.forget.ratio` and `norm.retain.ratio`, each with its interval over texts.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_texts, finish_by_layer
from elm_interp.plots.figures import figure
from elm_interp.plots.style import TEXTS


@figure(
    source="results/norms.parquet",
    stage="norms",
    title="Activation norms",
    order=50,
    how_to_read="Each point is the mean length of the erased model's activations at one layer, divided by the base's "
    "on the same texts; 1 is unchanged. The edit acts where forget text has a bump that retain text lacks. "
    "Dotted: gold, which never knew, where there is one.",
    cannot_show="Length says nothing about direction: a stream that turned without growing stays at 1. A ratio of 1 "
    "does not show that the layer computes the same.",
)
def plot_norm_ratio(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Activation norm of the last step as a ratio to the base's, by layer, on forget and on retain text.

    Args:
        frame: tidy rows of the norm ratios; rows of other metrics are ignored.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks one of the two ratios.
        ConfigError: the rows mix models, sites or methods, or hold the base alone.
    """
    ax, who = draw_texts(frame, {text: f"norm.{text}.ratio" for text in TEXTS}, 1, ax)
    return finish_by_layer(ax, f"Activation norm, ratio to base\n({who})")

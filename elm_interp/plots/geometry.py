"""How the erased model's activations compare with the base's, layer by layer.

ax = plot_geometry(frame, "cosine")

Rows: one per layer of `geometry.forget.MEASURE` and `geometry.retain.MEASURE`.
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.plots.curves import draw_texts, finish_by_layer
from elm_interp.plots.declared import PARTS
from elm_interp.plots.figures import figure
from elm_interp.plots.style import TEXTS

UNCHANGED = {"difference": 0, "cosine": 1, "cka": 1, "pca_shift": 0, "subspace_angle": 0}
"""The value of a model that is the base."""


@figure(
    title="Distance to the base",
    how_to_read="Each line compares the erased model's activations with the base's on the same texts, layer by "
    "layer. The dashed line is no change; the edit acts where forget text leaves it and retain text stays.",
    cannot_show="Distance is not ignorance: what moved far may still be decoded, and what stayed may have lost what "
    "mattered. In published tests, measures marked descriptive did not tell erased from ignorant models well.",
)
def plot_geometry(frame: pd.DataFrame, measure: str = "cosine", *, ax: Axes | None = None) -> Axes:
    """The last step's activations compared with the base's by layer, on forget and on retain text.

    Args:
        frame: tidy rows of `geometry.forget.{measure}` and `geometry.retain.{measure}`.
        measure: "difference", "cosine", "cka", "pca_shift", "subspace_angle" or "effective_rank".
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the frame lacks one of the two metrics.
        ConfigError: the rows mix models, sites or methods, or hold the base alone.
    """
    metrics = {text: f"geometry.{text}.{measure}" for text in TEXTS}
    ax, who = draw_texts(frame, metrics, UNCHANGED.get(measure), ax)
    return finish_by_layer(ax, f"{PARTS.get(measure, measure)}\n({who})")

"""Figures from tidy frames: every plot takes a frame and returns Axes, shows nothing and sets no global style.

from elm_interp.plots import plot_probe_by_layer, save

save(plot_probe_by_layer(frame), "figures/probe_by_layer")
"""

from elm_interp.plots.calibration import plot_calibration
from elm_interp.plots.declared import headline_metrics
from elm_interp.plots.figures import Figure, figure
from elm_interp.plots.geometry import plot_geometry
from elm_interp.plots.layers import plot_layers
from elm_interp.plots.methods import plot_methods
from elm_interp.plots.methods_by_layer import plot_methods_by_layer
from elm_interp.plots.norm_ratio import plot_norm_ratio
from elm_interp.plots.over_seconds import plot_over_seconds
from elm_interp.plots.pareto import pareto_front, plot_pareto
from elm_interp.plots.probe_by_layer import plot_probe_by_layer
from elm_interp.plots.probe_heatmap import plot_probe_heatmap
from elm_interp.plots.probe_transfer import plot_transfer
from elm_interp.plots.progression import plot_progression
from elm_interp.plots.scorecard import plot_scorecard
from elm_interp.plots.sparse import plot_sparse
from elm_interp.plots.style import axes, name_of, save
from elm_interp.plots.target_answers import plot_target_answers
from elm_interp.plots.training import plot_training

__all__ = [
    "Figure",
    "axes",
    "figure",
    "headline_metrics",
    "name_of",
    "pareto_front",
    "plot_calibration",
    "plot_geometry",
    "plot_layers",
    "plot_methods",
    "plot_methods_by_layer",
    "plot_norm_ratio",
    "plot_over_seconds",
    "plot_pareto",
    "plot_probe_by_layer",
    "plot_probe_heatmap",
    "plot_progression",
    "plot_scorecard",
    "plot_sparse",
    "plot_target_answers",
    "plot_training",
    "plot_transfer",
    "save",
]

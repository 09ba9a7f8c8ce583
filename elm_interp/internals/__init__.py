"""Looking inside: probes, norms, and how they change over training. Importing this registers the metrics."""

from elm_interp.internals.datasets import concept_datasets
from elm_interp.internals.logistic import ProbeWeights, fit_probes
from elm_interp.internals.norms import token_norms
from elm_interp.internals.probes import PROBE_TASKS, LogisticProbe, probe_layers, probes_from_store, split_by_group
from elm_interp.internals.progression import progression
from elm_interp.internals.values import probe_values

__all__ = [
    "PROBE_TASKS",
    "LogisticProbe",
    "ProbeWeights",
    "concept_datasets",
    "fit_probes",
    "probe_layers",
    "probe_values",
    "probes_from_store",
    "progression",
    "split_by_group",
    "token_norms",
]

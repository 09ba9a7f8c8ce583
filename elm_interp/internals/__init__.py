"""Looking inside: probes, norms, geometry, and how they change over training. Importing this registers the metrics."""

from elm_interp.internals.code_length import code_length
from elm_interp.internals.datasets import concept_datasets
from elm_interp.internals.estimators import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe
from elm_interp.internals.logistic import ProbeWeights, fit_probes
from elm_interp.internals.norms import token_norms
from elm_interp.internals.probe_tasks import PROBE_TASKS, probes_from_store
from elm_interp.internals.probes import probe_layers
from elm_interp.internals.progression import progression
from elm_interp.internals.splits import split_by_group
from elm_interp.internals.strength import choose_strength
from elm_interp.internals.values import probe_values

__all__ = [
    "PROBE_TASKS",
    "LogisticProbe",
    "MLPProbe",
    "MeanDifferenceProbe",
    "ProbeWeights",
    "RidgeProbe",
    "choose_strength",
    "code_length",
    "concept_datasets",
    "fit_probes",
    "probe_layers",
    "probe_values",
    "probes_from_store",
    "progression",
    "split_by_group",
    "token_norms",
]

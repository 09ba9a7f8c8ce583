"""Probes: what a reader can tell from activations. Importing this registers the metrics."""

from elm_interp.probes.answer_identity import probe_values
from elm_interp.probes.code_length import online_code_length
from elm_interp.probes.datasets import concept_datasets
from elm_interp.probes.estimators import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe
from elm_interp.probes.layers import probe_layers
from elm_interp.probes.linear_erasure import Leace, count_directions, fit_leace, probe_after_leace
from elm_interp.probes.penalty import choose_strength
from elm_interp.probes.solver import ProbeWeights, fit_probes
from elm_interp.probes.sparse import probe_sparse
from elm_interp.probes.splits import split_by_group
from elm_interp.probes.tasks import ProbeTask, collect_baselines, probe_task, probes_from_store
from elm_interp.registry import PROBE_TASKS

__all__ = [
    "PROBE_TASKS",
    "Leace",
    "LogisticProbe",
    "MLPProbe",
    "MeanDifferenceProbe",
    "ProbeTask",
    "ProbeWeights",
    "RidgeProbe",
    "choose_strength",
    "collect_baselines",
    "concept_datasets",
    "count_directions",
    "fit_leace",
    "fit_probes",
    "online_code_length",
    "probe_after_leace",
    "probe_layers",
    "probe_sparse",
    "probe_task",
    "probe_values",
    "probes_from_store",
    "split_by_group",
]

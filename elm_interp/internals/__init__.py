"""Looking inside: probes, norms, geometry, and how they change over training. Importing this registers the metrics."""

from elm_interp.internals.code_length import code_length
from elm_interp.internals.datasets import concept_datasets
from elm_interp.internals.estimators import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe
from elm_interp.internals.folds import fit_splits
from elm_interp.internals.linear_erasure import Leace, count_directions, fit_leace, probe_after_leace
from elm_interp.internals.logistic import ProbeWeights, fit_probes
from elm_interp.internals.norms import outlier_dimensions, token_norms
from elm_interp.internals.probe_tasks import PROBE_TASKS, collect_baselines, probes_from_store
from elm_interp.internals.probes import probe_layers
from elm_interp.internals.progression import progression
from elm_interp.internals.similarity import (
    cka,
    cosine,
    difference,
    effective_rank,
    pca_shift,
    separation,
    subspace_angle,
)
from elm_interp.internals.sparse import probe_sparse
from elm_interp.internals.splits import split_by_group
from elm_interp.internals.strength import choose_strength
from elm_interp.internals.values import probe_values

__all__ = [
    "PROBE_TASKS",
    "Leace",
    "LogisticProbe",
    "MLPProbe",
    "MeanDifferenceProbe",
    "ProbeWeights",
    "RidgeProbe",
    "choose_strength",
    "cka",
    "code_length",
    "collect_baselines",
    "concept_datasets",
    "cosine",
    "count_directions",
    "difference",
    "effective_rank",
    "fit_leace",
    "fit_probes",
    "fit_splits",
    "outlier_dimensions",
    "pca_shift",
    "probe_after_leace",
    "probe_layers",
    "probe_sparse",
    "probe_values",
    "probes_from_store",
    "progression",
    "separation",
    "split_by_group",
    "subspace_angle",
    "token_norms",
]

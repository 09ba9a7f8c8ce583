"""Activations: collected once from many checkpoints, kept on disk, read lazily."""

from elm_interp.activations.collect import (
    answer_directions,
    checkpoint_name,
    collect_datasets,
    collect_texts,
    paired,
    within_context,
)
from elm_interp.activations.dataset import Dataset
from elm_interp.activations.fingerprints import fingerprint
from elm_interp.activations.index import Entry
from elm_interp.activations.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Dataset",
    "Entry",
    "answer_directions",
    "checkpoint_name",
    "collect_datasets",
    "collect_texts",
    "fingerprint",
    "paired",
    "within_context",
]

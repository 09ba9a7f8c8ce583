"""Activations: collected once from many checkpoints, kept on disk, read lazily."""

from elm_interp.activations.collect import Dataset, checkpoint_name, collect, collect_texts, fingerprint
from elm_interp.activations.store import ActivationStore, Entry

__all__ = ["ActivationStore", "Dataset", "Entry", "checkpoint_name", "collect", "collect_texts", "fingerprint"]

"""Training: one loop for every method, its checkpoints and its cached targets."""

from elm_interp.errors import NotFiniteError
from elm_interp.training.adapter import Adapter
from elm_interp.training.checkpoints import Checkpoint, list_checkpoints
from elm_interp.training.objective import Objective, Preset, Sample, method, sample_kind
from elm_interp.training.settings import Training
from elm_interp.training.trainer import UnmovedError, train

__all__ = [
    "Adapter",
    "Checkpoint",
    "NotFiniteError",
    "Objective",
    "Preset",
    "Sample",
    "Training",
    "UnmovedError",
    "list_checkpoints",
    "method",
    "sample_kind",
    "train",
]

"""Training: one loop for every method, its checkpoints and its cached targets."""

from elm_interp.training.checkpoints import Checkpoint, list_checkpoints
from elm_interp.training.gradients import NotFiniteError
from elm_interp.training.objective import Objective, Sample
from elm_interp.training.trainer import Training, UnmovedError, train

__all__ = [
    "Checkpoint",
    "NotFiniteError",
    "Objective",
    "Sample",
    "Training",
    "UnmovedError",
    "list_checkpoints",
    "train",
]

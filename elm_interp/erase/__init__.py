"""Methods of erasure, and the trainer that they share."""

from elm_interp.erase.checkpoints import Checkpoint, checkpoints
from elm_interp.erase.elm import ELM
from elm_interp.erase.objective import Objective, Sample
from elm_interp.erase.passes import NotFiniteError
from elm_interp.erase.trainer import Training, UnmovedError, train

__all__ = [
    "ELM",
    "Checkpoint",
    "NotFiniteError",
    "Objective",
    "Sample",
    "Training",
    "UnmovedError",
    "checkpoints",
    "train",
]

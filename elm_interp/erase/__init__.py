"""Methods of erasure, and the trainer that they share."""

from elm_interp.erase.checkpoints import Checkpoint, checkpoints
from elm_interp.erase.elm import ELM
from elm_interp.erase.methods import METHODS
from elm_interp.erase.objective import Objective, Sample
from elm_interp.erase.passes import NotFiniteError
from elm_interp.erase.repnoise import RepNoise
from elm_interp.erase.rmu import RMU
from elm_interp.erase.trainer import Training, UnmovedError, train
from elm_interp.erase.whp import WHP

__all__ = [
    "ELM",
    "METHODS",
    "RMU",
    "WHP",
    "Checkpoint",
    "NotFiniteError",
    "Objective",
    "RepNoise",
    "Sample",
    "Training",
    "UnmovedError",
    "checkpoints",
    "train",
]

"""Methods of erasure."""

from elm_interp.erase.elm import ELM
from elm_interp.erase.methods import METHODS
from elm_interp.erase.repnoise import RepNoise
from elm_interp.erase.rmu import RMU
from elm_interp.erase.whp import WHP

__all__ = ["ELM", "METHODS", "RMU", "WHP", "RepNoise"]

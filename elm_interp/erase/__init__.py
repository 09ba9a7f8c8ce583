"""Methods of erasure, one file each."""

from elm_interp.erase.elm import ELM
from elm_interp.erase.elm_released import ELMReleased
from elm_interp.erase.gradient_difference import GradientDifference
from elm_interp.erase.npo import NPO
from elm_interp.erase.repnoise import RepNoise
from elm_interp.erase.rmu import RMU
from elm_interp.erase.target import target_answers
from elm_interp.erase.whp import WHP

__all__ = ["ELM", "NPO", "RMU", "WHP", "ELMReleased", "GradientDifference", "RepNoise", "target_answers"]

"""Hookable language models: loading, sites, positions, adapters."""

from elm_interp.models.batch import Batch, Positions, pick
from elm_interp.models.cache import ActivationCache
from elm_interp.models.hooked import HookedLM
from elm_interp.models.loading import load_model
from elm_interp.models.sites import Layout

__all__ = ["ActivationCache", "Batch", "HookedLM", "Layout", "Positions", "load_model", "pick"]

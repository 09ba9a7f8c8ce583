"""Language models that can be read, edited, scored and sampled, with adapters switched on and off on one base.

hooked        HookedLM, the one model type that other packages use
loading       models by alias, folder, hub id or prefix
sites         the places in a model that can be read and edited; layout finds their modules
tokens        text as token ids, as a model expects them; its context
batch, cache  token batches with positions per row, and the activations of a pass
edits         edits of chosen positions
scoring       log-probabilities of answers and texts; unembedding works on logits in pieces
generation    sampled and greedy text
backends      what runs the passes: torch, nnsight, TransformerLens
adapters      LoRA configs, peft files, adapter slots, differences of models
"""

from elm_interp.models.batch import Batch, Positions, pick
from elm_interp.models.cache import ActivationCache
from elm_interp.models.hooked import HookedLM
from elm_interp.models.layout import Layout
from elm_interp.models.loading import load_model, model_source
from elm_interp.models.sites import Site, site

__all__ = [
    "ActivationCache",
    "Batch",
    "HookedLM",
    "Layout",
    "Positions",
    "Site",
    "load_model",
    "model_source",
    "pick",
    "site",
]

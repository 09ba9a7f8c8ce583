"""Gold models: for a planted model or an organism, the one that never knew the concept, and an outside judge of text.

gold_of("planted:original", "planted:marsh-animals")      # "planted:gold"
"""

from elm_interp.organisms.encyclopaedia import ERASED
from elm_interp.organisms.planted import has_weights
from elm_interp.organisms.world import WorldConfig


def gold_of(model: str, concept: str) -> str | None:
    """Name of the model that never knew a concept, of the same making as a model; None where there is none."""
    planted, seed = f"planted:{ERASED}", "@" + model.partition("@")[2] if "@" in model else ""
    if (model, concept) == ("planted:original", planted):
        return "planted:gold" if has_weights("gold") else None
    if (model, concept) == (f"organism:original{seed}", f"organism:{WorldConfig().erased}{seed}"):
        return f"organism:gold{seed}"
    return None


def judge_of(model: str) -> str | None:
    """Name of a model that can judge text of a planted model and has read nothing of it; None for others."""
    return "planted:never" if model.startswith("planted:") else None

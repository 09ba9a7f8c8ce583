"""Planted models: a real language model of which it is known what it has read of the encyclopaedia.

    planted:original    read all three domains
    planted:gold        never read the erased domain
    planted:gold@1      as gold, with another seed and order
    planted:never       read none of them: the base, SmolLM2-135M

Each is the base with a LoRA merged into its weights. The LoRAs are kept in 16 bits, made by
`analyses/make_planted.py`; the merged model is kept in the cache. Knowledge that a LoRA has planted may be easier
to remove than knowledge from pre-training.

    lm = load_model("planted:original")
    concept = load_concept("planted:marsh-animals")
"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from elm_interp.data import Concept, concept_source
from elm_interp.errors import UnknownModelError, UnknownNameError, unknown
from elm_interp.files import file_hash
from elm_interp.models.loading import cache_folder, cached_or_spare, model_source, resolve_model
from elm_interp.organisms.encyclopaedia import DOMAINS, ERASED, domain_concept

ADAPTERS = Path(__file__).parent / "planted_weights"
"""Holds a peft folder for each model."""
BASE = "smollm2-135m"
MODELS: dict[str, tuple[str | None, int]] = {"original": (None, 0), "gold": (ERASED, 0), "gold@1": (ERASED, 1)}
"""Planted model -> the domain that it never read, and the seed."""


@model_source("planted")
def model_folder(name: str) -> Path:
    """The folder of "planted:NAME".

    Raises:
        UnknownModelError: no such model.
    """
    if name == "never":
        return Path(resolve_model(BASE))
    if name not in MODELS:
        raise unknown("planted model", name, [*MODELS, "never"], UnknownModelError)
    adapter = ADAPTERS / name.replace("@", "-")
    if not has_weights(name):
        raise UnknownModelError(
            f"the weights of planted:{name} do not come with this version of elm_interp; make them (an hour on two "
            f"cores): python analyses/make_planted.py --only {name}"
        )
    digest = file_hash(adapter / "adapter_model.safetensors")[:12]
    return cached_or_spare(cache_folder() / "planted" / f"{adapter.name}-{digest}", lambda half: _merge(adapter, half))


def has_weights(name: str) -> bool:
    """Whether the adapter of a planted model is there."""
    return (ADAPTERS / name.replace("@", "-") / "adapter_model.safetensors").is_file()


@concept_source("planted")
def concept(name: str) -> Concept:
    """The concept of "planted:DOMAIN".

    Raises:
        UnknownNameError: no such domain.
    """
    if name not in DOMAINS:
        raise unknown("domain", name, DOMAINS, UnknownNameError)
    return domain_concept(name)


def _merge(adapter: Path, folder: Path) -> None:
    base = resolve_model(BASE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)

"""The difference of two models as an adapter: for a model that was trained and merged by somebody else.

Base and erased model can then be compared on one set of weights, like the checkpoints of any run. The rank of each
factor is found from the weights: singular values that rounding can explain are left out, so a merged LoRA of rank 4
comes back with rank 4.

    before, after = (load_model(name, dtype=stored_dtype(name), device="cpu") for name in (base, erased))
    write_difference(before, after, folder)        # a peft folder
"""

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.files import WEIGHTS
from elm_interp.models.adapters.lora import unscaled

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


ALIKE = 0.5
"""Cosine of the weights of a model and of its base, at least; of unrelated models it is about 0."""


def write_difference(before: "HookedLM", after: "HookedLM", folder: str | Path) -> Path | None:
    """Write the peft folder that turns one model into another of the same architecture.

    Args:
        before: the base, without adapters, in the dtype of its files: fewer digits would lose the difference.
        after: the trained and merged model, likewise.
        folder: gets the peft files.

    Returns:
        The folder; None if an adapter cannot hold the difference, or only one as large as the weights themselves: a
        model that was trained whole.

    Raises:
        AdapterError: the models differ in shape, do not differ, or are not of one origin.
    """
    layers = {n: m for n, m in before.blocks.named_modules(prefix=before.layout.blocks) if type(m) is nn.Linear}
    old, new = before.model.state_dict(), after.model.state_dict()
    odd = sorted(k for k in old.keys() | new.keys() if k not in old or k not in new or old[k].shape != new[k].shape)
    if odd:
        raise AdapterError(
            f"{after.name} and {before.name} differ in architecture: {len(odd)} weights do not match, such as {odd[0]}."
        )
    changed = changed_weights(before, after)
    _check_origin(before, after, changed)
    if any(key.removesuffix(".weight") not in layers for key in changed):
        return None
    factors = {key.removesuffix(".weight"): factorise(old[key], new[key]) for key in changed}
    factors = {name: ab for name, ab in factors.items() if len(ab[0])}
    if not factors:
        raise AdapterError(f"{after.name} has the weights of {before.name} up to rounding; there is nothing to adopt.")
    if sum(a.numel() + b.numel() for a, b in factors.values()) >= sum(old[key].numel() for key in changed):
        return None
    ranks = {f"^{re.escape(name)}$": len(a) for name, (a, _) in factors.items()}
    folder = Path(folder)
    config = LoraConfig(**unscaled(ranks), target_modules=sorted(factors), bias="none", task_type="CAUSAL_LM")
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": factor.contiguous()
        for name, ab in factors.items()
        for letter, factor in zip("AB", ab, strict=True)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def changed_weights(before: "HookedLM", after: "HookedLM") -> dict[str, int]:
    """The weights in which two models of one architecture differ, and how many numbers each has."""
    old, new = before.model.state_dict(), after.model.state_dict()
    return {key: old[key].numel() for key in old if not torch.equal(old[key].float(), new[key].float())}


def _check_origin(before: "HookedLM", after: "HookedLM", changed: Iterable[str]) -> None:
    """Refuse a model whose weights do not point where its base's do."""
    old, new = before.model.state_dict(), after.model.state_dict()
    cosines = {
        key: float(torch.cosine_similarity(old[key].float().flatten(), new[key].float().flatten(), dim=0))
        for key in changed
        if old[key].ndim > 1
    }
    if cosines and median(cosines.values()) < ALIKE:
        key = min(cosines, key=lambda name: cosines[name])
        raise AdapterError(
            f"{after.name} differs from {before.name} in {len(cosines)} matrices as an unrelated model would (the "
            f"weights of {key} have cosine {cosines[key]:.2f}, expected near 1). "
            f"Is {before.name} the model that it was made from?"
        )


def factorise(
    old: Float[Tensor, "out in"], new: Float[Tensor, "out in"]
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
    """A and B with B A = new - old up to the rounding of the weights; rank 0 if rounding explains the difference."""
    # spectral norm of a random matrix whose entries are one unit in the last place of the weights
    unit = max(torch.finfo(w.dtype).eps * float(w.float().square().mean().sqrt()) for w in (old, new))
    noise = unit * sum(n**0.5 for n in old.shape)
    u, s, v = torch.linalg.svd(new.float() - old.float(), full_matrices=False)
    kept = s > noise
    root = s[kept].sqrt()
    return root[:, None] * v[kept], u[:, kept] * root

"""A model that somebody trained and merged, as an adapter on its base: the difference of the weights, factorised.

Base and erased can then be compared on one set of weights, checkpoint beside checkpoint, as with any run. The rank of each
factor is found from the weights: singular values that rounding alone could have made are left out, so that a merged LoRA of
rank 4 comes back with rank 4.

    write_difference("HuggingFaceH4/zephyr-7b-beta", "owner/zephyr-erased", folder)     # a peft folder

It holds both models in memory, in the dtypes of their files.
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.files import WEIGHTS
from elm_interp.models.loading import load_model, resolve_model


def write_difference(base: str | Path, erased: str | Path, folder: str | Path) -> Path:
    """Write the peft folder that turns a base into a merged model.

    Args:
        base: the model before, by alias, folder or hub id.
        erased: the whole model after.
        folder: gets the peft files.

    Raises:
        UnknownModelError: one of them cannot be loaded.
        AdapterError: they differ in shape, in nothing, or elsewhere than in the linear layers of their blocks.
    """
    before, after = (load_model(name, dtype=_stored_dtype(name), device="cpu") for name in (base, erased))
    layers = {n: m for n, m in before.blocks.named_modules(prefix=before.layout.blocks) if type(m) is nn.Linear}
    old, new = before.model.state_dict(), after.model.state_dict()
    odd = sorted(k for k in old.keys() | new.keys() if k not in old or k not in new or old[k].shape != new[k].shape)
    if odd:
        raise AdapterError(f"{erased} is no {base} with other weights: {len(odd)} do not match, such as {odd[0]}.")
    changed = [key for key in old if not torch.equal(old[key].float(), new[key].float())]
    beyond = [key for key in changed if key.removesuffix(".weight") not in layers]
    if beyond:
        raise AdapterError(
            f"{erased} differs from {base} in {', '.join(beyond[:3])}{' …' if len(beyond) > 3 else ''}; only linear layers of the blocks can be told apart as an adapter. Is {base} the model that it was made from?"
        )
    factors = {key.removesuffix(".weight"): factorise(old[key], new[key]) for key in changed}
    factors = {name: ab for name, ab in factors.items() if len(ab[0])}
    if not factors:
        raise AdapterError(f"{erased} has the weights of {base} (to rounding); there is nothing to adopt.")
    ranks = {name: len(a) for name, (a, _) in factors.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(ranks),
        rank_pattern={f"^{re.escape(name)}$": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(name)}$": rank for name, rank in ranks.items()},
        bias="none",
        task_type="CAUSAL_LM",
    )
    folder = Path(folder)
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": factor.contiguous()
        for name, ab in factors.items()
        for letter, factor in zip("AB", ab, strict=True)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def factorise(
    old: Float[Tensor, "out in"], new: Float[Tensor, "out in"]
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
    """A and B with B A = new - old up to what rounding of the weights can have made; rank 0 where that is all."""
    # a unit in the last place at each entry, which as a random matrix has this spectral norm
    unit = max(torch.finfo(w.dtype).eps * float(w.float().square().mean().sqrt()) for w in (old, new))
    noise = unit * sum(n**0.5 for n in old.shape)
    u, s, v = torch.linalg.svd(new.float() - old.float(), full_matrices=False)
    kept = s > noise
    root = s[kept].sqrt()
    return root[:, None] * v[kept], u[:, kept] * root


def _stored_dtype(name: str | Path) -> torch.dtype:
    # rounded to fewer digits than it has on disk, a model would lose the difference itself
    return getattr(AutoConfig.from_pretrained(resolve_model(name)), "dtype", None) or torch.float32

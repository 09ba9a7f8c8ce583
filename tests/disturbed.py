"""A state that differs from the base: an adapter of random weights, saved as a folder."""

from pathlib import Path

import torch

from elm_interp.models import HookedLM


def random_adapter(lm: HookedLM, folder: Path, *, scale: float = 0.3, seed: int = 0) -> Path:
    """Save an adapter with random B matrices and leave the model without any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm.adapters.attach(lm.lora((1, 2), rank=2, alpha=4))
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, scale)
    lm.adapters.save(folder)
    lm.adapters.release()
    return folder

"""Fingerprints: short hashes of what activations depend on, by which activations of other weights or texts are told.

store.has("truth", "base", fingerprint(lm, dataset, None))
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch

from elm_interp.activations.dataset import Dataset
from elm_interp.activations.index import texts_hash
from elm_interp.models import HookedLM
from elm_interp.models.adapters.files import read_adapter


class Origin(NamedTuple):
    """The weights that activations come from."""

    model: str
    """A hash of the base."""
    adapter: str
    """A hash of the adapter, "none" for the bare base."""


def fingerprint(lm: HookedLM, dataset: Dataset, adapter: str | Path | None, *, site: str = "resid_post") -> str:
    """A hash of everything that a dataset's activations depend on.

    Args:
        lm: the base.
        dataset: what is read.
        adapter: folder of an adapter; None is the bare base.
        site: short name, see `elm_interp.models.sites`.

    Returns:
        A hash of weights, dtype, adapter, site and positions, then "-" and a hash of the texts.

    Raises:
        AdapterError: an adapter that cannot be used.
    """
    return fingerprints(lm, {"": dataset}, origin(lm, adapter), site=site)[""]


def fingerprints(lm: HookedLM, datasets: Mapping[str, Dataset], origin: Origin, *, site: str) -> dict[str, str]:
    """The `fingerprint` of several datasets at one checkpoint."""
    found = {}
    for name, dataset in datasets.items():
        state = f"{lm.name}|{lm.dtype}|{origin.model}|{origin.adapter}|{site}|{dataset.positions}|{dataset.skip}"
        found[name] = f"{sha256(state.encode()).hexdigest()[:16]}-{texts_hash(dataset.stored_examples)}"
    return found


def origin(lm: HookedLM, adapter: str | Path | None) -> Origin:
    """Hashes of the base, by a sample of every weight (enough to tell models apart, and quick), and of an adapter.

    Raises:
        AdapterError: an adapter that cannot be used.
    """
    digest = sha256()
    with lm.adapter(None):  # an adapter may replace whole weights of the base
        for name, weight in lm.model.named_parameters():
            if "lora_" not in name and not weight.is_meta:
                step = max(1, weight.numel() // 64)
                # peft wraps the modules that it adapts, which adds ".base_layer" to the names of their weights
                digest.update(name.replace(".base_layer", "").encode())
                digest.update(weight.detach().flatten()[::step].float().cpu().numpy().tobytes())
    return Origin(digest.hexdigest()[:16], _adapter_hash(adapter))


def _adapter_hash(adapter: str | Path | None) -> str:
    if adapter is None:
        return "none"
    config, weights = read_adapter(adapter)
    settings = (config.r, config.lora_alpha, config.use_rslora, config.rank_pattern, config.alpha_pattern)
    tokens = (config.trainable_token_indices,) if config.trainable_token_indices else ()
    digest = sha256("|".join(map(str, (*settings, *tokens))).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

"""Adapters on disk: peft folders and hub ids.

An adapter with all B matrices zero would silently be the identity, and the model would look as if it was never erased.
Reading such an adapter is an error.

    config, weights = read_adapter("runs/demo/checkpoints/checkpoint-000075")
"""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file

from elm_interp.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Config and weights of a LoRA folder (or hub id).

    Raises:
        AdapterError: a file is missing or broken, the adapter is not LoRA, or it has no effect.
    """
    path = adapter_folder(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise AdapterError(f"{folder} is not a peft adapter: it lacks {name}; expected {CONFIG} and {WEIGHTS}.")
    try:
        config = PeftConfig.from_pretrained(str(path))
        weights = load_file(path / WEIGHTS)
    except Exception as error:
        raise AdapterError(f"the adapter in {folder} cannot be read ({error}); is it whole?") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"the adapter in {folder} is {config.peft_type}; only LoRA is supported.")
    b_matrices = {key: tensor for key, tensor in weights.items() if "lora_B" in key or "lora_embedding_B" in key}
    if not any(bool(b.any()) for b in b_matrices.values()):
        reason = "all its B matrices are zero" if b_matrices else "it holds no B matrix"
        raise AdapterError(f"the adapter in {folder} has no effect: {reason}.")
    # for whole weights, B can be the identity while A is zero
    if not any(bool(b.any()) and bool(weights.get(_partner(key), b).any()) for key, b in b_matrices.items()):
        raise AdapterError(f"the adapter in {folder} has no effect: in each pair A and B one matrix is zero.")
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise AdapterError(f"the adapter in {folder} holds values that are not finite.")
    return config, weights


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter's files: as given, or downloaded from the hub ("owner/name" or "owner/name/subfolder").

    Raises:
        AdapterError: neither a folder nor a hub id that can be loaded.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    owner, _, rest = str(name).partition("/")
    repository, _, subfolder = rest.partition("/")
    try:
        pattern = f"{subfolder}/adapter_*" if subfolder else "adapter_*"
        return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=[pattern])) / subfolder
    except (HFValidationError, OSError, ValueError) as error:
        raise AdapterError(
            f"no adapter folder {str(name)!r}, and no such adapter on the hub could be loaded ({type(error).__name__})."
        ) from error


def _partner(key: str) -> str:
    return key.replace("lora_B", "lora_A").replace("lora_embedding_B", "lora_embedding_A")


def first_adapted_block(folder: str | Path, blocks: str) -> int:
    """The lowest block that an adapter changes; 0 if it changes anything outside the blocks.

    Args:
        folder: the adapter's folder or hub id.
        blocks: path of the list of blocks, from `find_layout`.

    Raises:
        AdapterError: no such adapter.
    """
    with safe_open(adapter_folder(folder) / WEIGHTS, framework="pt") as file:
        found = [re.search(rf"(?:^|\.){re.escape(blocks)}\.(\d+)\.", key) for key in file.keys()]  # noqa: SIM118
    return min(int(match[1]) if match else 0 for match in found)

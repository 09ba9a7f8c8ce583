"""Adapters on disk: peft folders and hub ids.

An adapter with all B matrices zero would silently be the identity, and the model would look as if it was never erased.
Reading such an adapter is an error, and so is one that would change the base itself (see `support`).

    config, weights = read_adapter("runs/demo/checkpoints/checkpoint-000075")
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import torch
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.support import check_support
from elm_interp.models.adapters.whole import PREFIX, is_lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICKLED = "adapter_model.bin"
MODEL = "model.json"
"""In a checkpoint of a run: names a whole model, the erased one, where there is no adapter."""


def is_whole_model(checkpoint: Path) -> bool:
    """Whether a checkpoint of an adopted run names a whole model, and is no adapter."""
    return (checkpoint / MODEL).is_file()


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Config and weights of a LoRA folder (or hub id).

    Raises:
        AdapterError: a file is missing or broken, the adapter is not LoRA or of a kind that is not run, or it has no
            effect.
    """
    path = adapter_folder(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise AdapterError(f"{folder} is not a peft adapter: it lacks {name}; {_instead(path)}")
    try:
        config = PeftConfig.from_pretrained(str(path))
        weights = load_file(path / WEIGHTS)
    except Exception as error:
        raise AdapterError(f"the adapter in {folder} cannot be read ({error}); is it whole?") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"the adapter in {folder} is {config.peft_type}; only LoRA is supported.")
    check_support(config, folder)
    scales = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if not all(math.isfinite(scale) for scale in scales):
        raise AdapterError(f"the adapter in {folder} is scaled by lora_alpha {scales}; expected finite numbers.")
    if not any(scales):
        raise AdapterError(f"the adapter in {folder} has no effect: its lora_alpha is 0.")
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise AdapterError(f"the adapter in {folder} holds values that are not finite.")
    # what else there is may act alone: whole tensors of the base, and DoRA's magnitudes
    lora_alone = all(is_lora(key) and "lora_magnitude_vector" not in key for key in weights)
    if lora_alone and (why := no_effect(weights)):
        raise AdapterError(f"the adapter in {folder} has no effect: {why}.")
    return config, weights


def no_effect(weights: Mapping[str, torch.Tensor]) -> str:
    """Why the LoRA matrices among these weights change nothing; "" if they change something."""
    b_matrices = {key: tensor for key, tensor in weights.items() if "lora_B" in key or "lora_embedding_B" in key}
    if not any(bool(b.any()) for b in b_matrices.values()):
        return "all its B matrices are zero" if b_matrices else "it holds no B matrix"
    # for whole weights, B can be the identity while A is zero
    if not any(bool(b.any()) and bool(weights.get(_partner(key), b).any()) for key, b in b_matrices.items()):
        return "in each pair A and B one matrix is zero"
    return ""


def _instead(path: Path) -> str:
    """What a folder that is no adapter holds, and what fixes it."""
    if (path / PICKLED).is_file():
        old, new = (json.dumps(str(path / name)) for name in (PICKLED, WEIGHTS))
        code = (
            "import torch; from safetensors.torch import save_file; "
            f'w = torch.load({old}, map_location="cpu", weights_only=True); '
            f"save_file({{k: v.contiguous().clone() for k, v in w.items()}}, {new})"
        )
        return (
            f"it holds {PICKLED}, a pickle, which could run code when it is read; expected {WEIGHTS}. "
            f"Convert it: python -c {quote(code)}"
        )
    if (path / MODEL).is_file():
        return "it names a whole model that a run was adopted from; take run.subject(step), which loads that model."
    inner = sorted(one.parent.name for one in path.glob(f"*/{CONFIG}"))
    found = f" Adapters in it: {', '.join(inner)}; give one of these folders." if inner else ""
    return f"expected {CONFIG} and {WEIGHTS}.{found}"


def adapter_sizes(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many parameters an adapter has for each module, or whole tensor, of the base, by its name."""
    sizes: dict[str, int] = {}
    for key, tensor in weights.items():
        name = key.removeprefix(PREFIX)
        name = re.split(r"\.lora_", name)[0] if is_lora(key) else name
        sizes[name] = sizes.get(name, 0) + tensor.numel()
    return dict(sorted(sizes.items()))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, and not that of a merged model in which the adapter's config was left."""
    held = any((folder / name).is_file() for name in (WEIGHTS, PICKLED)) or not (folder / "config.json").is_file()
    return (folder / CONFIG).is_file() and held


def file_state(name: str | Path) -> str:
    """What tells an adapter's files from others that are put in their place; "" for a hub id."""
    path = Path(name).expanduser()
    try:
        stats = [(path / file).stat() for file in (CONFIG, WEIGHTS)]
    except OSError:
        return ""
    return str([(s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for s in stats])


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

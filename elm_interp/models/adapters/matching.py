"""Whether an adapter's file matches a slot: the LoRA of its config alone, the shape of a slot, keys that differ."""

import copy
import json
import re
from typing import Any

import torch
from peft import LoraConfig


def lora_alone(config: LoraConfig) -> LoraConfig:
    """The config of an adapter's LoRA matrices, without the whole tensors that it brings along.

    The matrices come from a file, so they start plainly.
    """
    bare = copy.deepcopy(config)
    bare.init_lora_weights = True
    if config.modules_to_save:
        # peft puts no LoRA into modules that it saves
        saved = rf"(.*\.)?({'|'.join(config.modules_to_save)})(\..*)?"
        given = config.exclude_modules or []
        others = [given] if isinstance(given, str) else [rf"(.*\.)?{re.escape(name)}" for name in given]
        bare.exclude_modules = "|".join(f"({pattern})" for pattern in (saved, *others))
    bare.bias, bare.modules_to_save, bare.trainable_token_indices = "none", None, None
    return bare


def shape_key(config: LoraConfig) -> str:
    """Canonical JSON of what makes the modules of an adapter: adapters with the same key share a slot."""
    irrelevant = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version")
    settings: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    kept = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items() if k not in irrelevant}
    return json.dumps(kept, sort_keys=True, default=str)


def mismatch(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """How the keys and shapes of loaded weights differ from those of a slot."""
    lost, missing = weights.keys() - expected.keys(), expected.keys() - weights.keys()
    problems = {"keys find no place": lost, "expected keys are missing": missing}
    parts = [f"{len(keys)} {problem}, such as {min(keys)}" for problem, keys in problems.items() if keys]
    if wrong := sorted(key for key in weights.keys() & expected.keys() if weights[key].shape != expected[key].shape):
        found, wanted = (tuple(state[wrong[0]].shape) for state in (weights, expected))
        parts.append(f"{len(wrong)} have another shape, such as {wrong[0]}: {found}, expected {wanted}")
    return parts


def listed(problems: list[str], most: int = 5) -> str:
    """The first problems in one line, and how many more there are."""
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more" if rest > 0 else "")

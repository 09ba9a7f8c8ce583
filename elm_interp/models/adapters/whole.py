"""Whole tensors of the base that an adapter replaces: biases, saved modules and embeddings, trained tokens.

peft writes them beside the LoRA matrices (`bias`, `modules_to_save`, `trainable_token_indices`, saved embeddings).
Here each of them stands in for the base's own tensor while its adapter is on. The base's tensors are never written to,
so the base comes back to the bit, and modules keep their place and class, so every back end follows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn

PREFIX = "base_model.model."
_DELTA = ".token_adapter.trainable_tokens_delta"
_OWN = frozenset(
    ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_dropout")
)  # fmt: skip


class Place(NamedTuple):
    """A parameter or persistent buffer of the base: the module that holds it, and its attribute there."""

    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor:
        """What is there now."""
        held = self.module._parameters.get(self.attribute)
        found = self.module._buffers.get(self.attribute) if held is None else held
        assert found is not None
        return found

    def put(self, tensor: Tensor) -> None:
        """Put a tensor there; only the reference changes."""
        held = self.module._parameters if self.attribute in self.module._parameters else self.module._buffers
        held[self.attribute] = tensor  # type: ignore[assignment]


class Replacement(NamedTuple):
    """What stands at a place of the base while an adapter is on."""

    place: Place
    tensor: Tensor


def is_lora(key: str) -> bool:
    """Whether a key of an adapter's file is of a LoRA matrix, and not of a whole tensor of the base."""
    return not _OWN.isdisjoint(key.split("."))


def bare_name(path: str) -> str | None:
    """The path of a module or tensor in the model without adapters; None for what belongs to an adapter."""
    parts = path.split(".")
    return ".".join(part for part in parts if part != "base_layer") if _OWN.isdisjoint(parts) else None


def base_places(model: nn.Module) -> dict[str, Place]:
    """Every parameter and persistent buffer of the base, by its name in the model without adapters."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = bare_name(path)
        if name is None:
            continue
        kept = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for attribute, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                found[f"{name}.{attribute}".lstrip(".")] = Place(module, attribute)
    return found


def replacements(
    model: nn.Module, config: LoraConfig, weights: Mapping[str, Tensor]
) -> tuple[list[Replacement], list[str]]:
    """What an adapter puts in the place of whole tensors of the base, and why that cannot be.

    Args:
        model: the base, with or without adapters on.
        config: of the adapter.
        weights: all tensors of its file.

    Returns:
        The replacements that differ from the base, and the problems, one sentence each.
    """
    places = base_places(model)
    saved = {key: tensor for key, tensor in weights.items() if not is_lora(key)}
    expected = {name for name in places if _is_expected(name, config, weights)}
    problems: list[str] = []
    found: dict[tuple[int, str], tuple[str, Replacement]] = {}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    several = sum(key.endswith(_DELTA) for key in saved) > 1
    for key, value in sorted(saved.items()):
        name = bare_name(key.removeprefix(PREFIX)) or key
        is_delta = name.endswith(_DELTA)
        path = name.removesuffix(_DELTA)
        name = f"{path}.weight" if is_delta else name
        expected.discard(name)
        if name not in places:
            problems.append(f"the model has no {key}")
            continue
        place = places[name]
        if is_delta:
            value, problem = _with_rows(place.tensor, value, _tokens(config, path))
        else:
            problem = _of_another_shape(key, value, place.tensor)
        if problem:
            problems.append(problem)
            continue
        # of tied weights, peft replaces one alone if it was saved as a module, or trained for its own tokens
        alone = several or place.module is not _base(embedding) if is_delta else _is_saved(name, config)
        tensor = _like(value, place.tensor)
        for other, there in ((name, place),) if alone else _tied(places, place):
            known = found.setdefault((id(there.module), there.attribute), (key, Replacement(there, tensor)))
            if not torch.equal(known[1].tensor, tensor):
                problems.append(
                    f"{key} and {known[0]} have other values, but {other} and {name} are one weight of this model"
                )
    problems += [f"the adapter's file lacks {name}" for name in sorted(expected)]
    kept = [one for _, one in found.values() if not torch.equal(one.tensor, one.place.tensor)]
    return kept, problems


def _is_expected(name: str, config: LoraConfig, weights: Mapping[str, Tensor]) -> bool:
    """Whether the config says that the file holds this tensor of the base."""
    if _is_saved(name, config):
        return True
    module, _, attribute = name.rpartition(".")
    if attribute != "bias" or config.bias == "none":
        return False
    return config.bias == "all" or f"{PREFIX}{module}.lora_A.weight" in weights


def _is_saved(name: str, config: LoraConfig) -> bool:
    """Whether a tensor is in a module of `modules_to_save`, by peft's rule, and is not tied by the config."""
    parents = name.split(".")[:-1]
    paths = [".".join(parents[: i + 1]) for i in range(len(parents))]
    targets = config.modules_to_save or ()
    return not config.ensure_weight_tying and any(path.endswith(target) for path in paths for target in targets)


def _tokens(config: LoraConfig, path: str) -> list[int]:
    """The token ids that an adapter trains at a module."""
    given = config.trainable_token_indices
    if isinstance(given, dict):
        return next((list(ids) for target, ids in given.items() if path.endswith(target)), [])
    return list(given or [])


def _with_rows(whole: Tensor, rows: Tensor, tokens: list[int]) -> tuple[Tensor, str]:
    """A weight with the rows of some tokens replaced; and why that cannot be."""
    if rows.shape != (len(tokens), whole.shape[1]) or not all(0 <= token < len(whole) for token in tokens):
        return whole, (
            f"its trained tokens are {tuple(rows.shape)} for {len(tokens)} ids up to {max(tokens, default=0)}, "
            f"but the model's embedding is {tuple(whole.shape)}"
        )
    index = torch.tensor(tokens, device=whole.device)
    return whole.detach().index_copy(0, index, rows.to(whole)), ""


def _of_another_shape(key: str, value: Tensor, own: Tensor) -> str:
    if value.shape == own.shape:
        return ""
    said = f"{key} is {tuple(value.shape)}, expected {tuple(own.shape)}"
    if value.shape[1:] == own.shape[1:] and value.ndim == 2:
        said += (
            " (the vocabulary was resized: resize the base alike and merge the adapter, with peft's merge_and_unload, "
            "then save both as models)"
        )
    return said


def _like(value: Tensor, own: Tensor) -> Tensor:
    """A tensor in the dtype, on the device and of the kind of the base's own."""
    value = value.detach().to(own.device, own.dtype)
    return nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value


def _tied(places: Mapping[str, Place], place: Place) -> list[tuple[str, Place]]:
    """Every place that holds the same tensor."""
    own = place.tensor
    return [(name, other) for name, other in places.items() if other.tensor is own]


def _base(module: nn.Module) -> nn.Module:
    """A module without the layers of adapters around it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module

"""The model without adapters: the proof that it gives the same bits, its way back after an error, and merged copies."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.whole import base_places
from elm_interp.models.distributed import sharded

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@torch.no_grad()
def probe(model: nn.Module) -> Tensor | None:
    """The model's logits of three tokens, without edits and dropout; None if its weights are not all here."""
    weight = cast(Any, model).get_input_embeddings().weight
    if sharded() or any(p.is_meta for p in model.parameters()):
        return None
    modules = list(model.modules())
    before = [(m.training, {name: getattr(m, name) for name in _HOOKS}) for m in modules]
    try:
        for module in modules:
            module.training = False
            for name in _HOOKS:
                setattr(module, name, OrderedDict())
        return cast(Tensor, model(input_ids=torch.tensor([[0, 1, 2]], device=weight.device), use_cache=False).logits)
    finally:
        for module, (training, hooks) in zip(modules, before, strict=True):
            module.training = training
            for name, own in hooks.items():
                setattr(module, name, own)


def check_same(model: nn.Module, before: Tensor | None) -> None:
    """Check that the model gives the logits that it gave before an adapter was put on it.

    Raises:
        AdapterError: it gives others, and not because its passes are never alike.
    """
    after = probe(model)
    if before is None or after is None or _equal(before, after):
        return
    again = probe(model)
    if again is not None and not _equal(after, again) and torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        return
    gap = float((before.float() - after.float()).abs().max())
    raise AdapterError(
        f"with it off, the model would no longer give the base's logits (they differ by up to {gap:.3g}); expected the "
        "same bits. Merge it where it was trained (merge_and_unload, save_pretrained) and give that model."
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@contextmanager
def rebuilt_on_error(model: nn.Module) -> Iterator[None]:
    """Inside the context, an error gives the model back the modules, parameters and flags that it had before."""
    tree = [(module, dict(module._modules), dict(module._parameters)) for module in model.modules()]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    had = vars(model).get("peft_config")
    configs = dict(had or {})
    slots = {name for module in model.modules() if isinstance(module, LoraLayer) for name in module.scaling}
    try:
        yield
    except BaseException:
        for module, modules, parameters in tree:
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                _forget(module, slots)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        if had is None:
            vars(model).pop("peft_config", None)
        else:
            had.clear()
            had.update(configs)
        raise


def _forget(module: LoraLayer, slots: set[str]) -> None:
    """Take what a LoRA layer notes of slots other than these off it; their modules are off already."""
    for name in (*module.other_param_names, "lora_variant"):
        notes = getattr(module, name)
        if isinstance(notes, dict):
            for slot in notes.keys() - slots:
                del notes[slot]


def merge_copy(tuned: PeftModel, slot: str | None) -> nn.Module:
    """A copy of a model in memory of its own, with the adapter of a slot merged into its weights.

    Raises:
        AdapterError: it cannot be merged.
    """
    whole = copy.deepcopy(tuned)
    model = whole.get_base_model()
    if slot is None:
        return cast(nn.Module, whole.unload())
    places = base_places(model)
    held = [place.tensor for place in places.values()]
    for module in model.modules():
        if isinstance(module, LoraLayer) and (slot in module.lora_A or slot in module.lora_embedding_A):
            base = module.get_base_layer()
            weight = getattr(base, "weight", None)
            if weight is not None and sum(tensor is weight for tensor in held) > 1:
                # merging into a tied weight would change the other end too
                base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
                cast(Any, model).config.tie_word_embeddings = False
    try:
        return cast(nn.Module, whole.merge_and_unload(adapter_names=[slot]))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise AdapterError(f"this adapter cannot be merged into the weights: {error}") from error

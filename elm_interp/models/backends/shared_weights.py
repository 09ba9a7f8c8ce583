"""A second tree of modules on the weights of a model.

TransformerLens rewrites the modules of the model that it wraps, and adapters saved after that have no effect; nnsight
replaces the `forward` of each module. So both wrap a copy of the modules that shares the weights. The copy takes no
memory for weights and follows the model at once when it is trained or loaded into. The model itself, its keys and its
saving stay as they were.
"""

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

Wrapped = TypeVar("Wrapped")


def copy_modules(model: nn.Module) -> nn.Module:
    """A deep copy of the modules that shares every parameter and buffer with the model.

    Raises:
        ValueError: the model is spread over several devices.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        expected = 'expected one device, or backend="torch"'
        raise ValueError(f"a model spread over several devices cannot be wrapped; {expected}.")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class Followed(Generic[Wrapped]):
    """A wrapped copy of a model's modules; `get` brings its adapters to the state of the model's (on, off, swapped)."""

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], Wrapped]) -> None:
        self._model, self._wrap = model, wrap
        self._weights: list[Tensor] = []
        self._copy: nn.Module
        self._adapted: list[tuple[BaseTunerLayer, BaseTunerLayer]] = []
        self._wrapped: Wrapped

    def get(self) -> Wrapped:
        """The wrapped copy, in the state of the model."""
        weights = [*self._model.parameters(), *self._model.buffers()]
        # a new adapter slot, a released one, or an adapter that replaces whole tensors of the base changes them
        if len(weights) != len(self._weights) or any(a is not b for a, b in zip(weights, self._weights, strict=True)):
            self._copy = copy_modules(self._model)
            pairs = zip(self._model.modules(), self._copy.modules(), strict=True)
            self._adapted = [(a, b) for a, b in pairs if isinstance(a, BaseTunerLayer)]  # type: ignore[misc]
            self._wrapped = self._wrap(self._copy)
            self._weights = weights
        for ours, theirs in self._adapted:
            for state in ("_disable_adapters", "_active_adapter", "merged_adapters"):
                setattr(theirs, state, getattr(ours, state))
        if self._copy.training != self._model.training:
            self._copy.train(self._model.training)
        return self._wrapped

"""A shadow: a second tree of modules on the very weights of a model.

TransformerLens rewrites the modules of the model that it wraps, and adapters saved after that are silent no-ops; nnsight
replaces the `forward` of each. So both wrap a shadow. It takes no memory for weights, what is trained or loaded into the
model shows in it at once, and the model itself, its keys and its saving, stay as they were.
"""

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

Wrapped = TypeVar("Wrapped")


def shadow(model: nn.Module) -> nn.Module:
    """A deep copy of the modules that shares every parameter and buffer with the model.

    Raises:
        ValueError: a model that is spread over several devices.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise ValueError(
            'a model spread over several devices cannot be wrapped; expected one device, or backend="torch".'
        )
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(shared))


class Followed(Generic[Wrapped]):
    """A wrapped shadow that is brought to the model's state, adapters on, off or swapped, whenever it is asked for."""

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], Wrapped]) -> None:
        self._model = model
        self._wrap = wrap
        self._weights: list[nn.Parameter] = []
        self._shadow: nn.Module
        self._adapted: list[tuple[BaseTunerLayer, BaseTunerLayer]] = []
        self._wrapped: Wrapped

    def get(self) -> Wrapped:
        """The wrapped shadow, in the state that the model is in."""
        weights = list(self._model.parameters())
        # an adapter in a new slot, or one released, changes the parameters
        if len(weights) != len(self._weights) or any(a is not b for a, b in zip(weights, self._weights, strict=True)):
            self._shadow = shadow(self._model)
            pairs = zip(self._model.modules(), self._shadow.modules(), strict=True)
            self._adapted = [(a, b) for a, b in pairs if isinstance(a, BaseTunerLayer)]  # type: ignore[misc]
            self._wrapped = self._wrap(self._shadow)
            self._weights = weights
        for ours, theirs in self._adapted:
            theirs._disable_adapters = ours._disable_adapters
            theirs._active_adapter = ours._active_adapter
            theirs.merged_adapters = ours.merged_adapters
        if self._shadow.training != self._model.training:
            self._shadow.train(self._model.training)
        return self._wrapped

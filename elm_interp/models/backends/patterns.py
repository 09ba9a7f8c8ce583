"""Attention patterns of a transformers model: an attention function that shows its weights to hooks.

The fused kernels that models run by default never form the weights, and the eager function of each family, which does,
shows them only when it has used them. Inside `pattern_hook` the model runs its family's own eager function, and what the
hook makes of the weights is multiplied with the values again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from elm_interp.errors import UnknownSiteError

IMPLEMENTATION = "elm_interp_hooked"
_EAGER = "eager_attention_forward"
_hooks: WeakKeyDictionary[nn.Module, list[Callable[[Tensor], Tensor | None]]] = WeakKeyDictionary()


@contextmanager
def pattern_hook(attention: nn.Module, hook: Callable[[Tensor], Tensor | None], *configs: Any) -> Iterator[None]:
    """Inside the context, call a hook with the attention weights (batch, head, query, key); it may return others.

    Args:
        attention: the attention module.
        hook: as an `Edit`.
        configs: those by which the model chooses its attention function and mask; put back after.

    Raises:
        UnknownSiteError: the module does not choose its attention by transformers' interface.
    """
    if not hasattr(sys.modules[type(attention).__module__], _EAGER):
        raise UnknownSiteError(
            f"{type(attention).__name__} shows no attention patterns: it does not use transformers' attention interface."
        )
    before = [config._attn_implementation for config in configs]
    hooks = _hooks.setdefault(attention, [])
    hooks.append(hook)
    try:
        for config in configs:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        hooks.remove(hook)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    eager = getattr(sys.modules[type(module).__module__], _EAGER)
    out, weights = eager(module, query, key, value, attention_mask, **kwargs)
    for hook in _hooks.get(module, ()):
        new = hook(weights)
        weights = weights if new is None else new
        per_head = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
        out = (weights @ per_head).transpose(1, 2).contiguous()
    return out, weights


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)

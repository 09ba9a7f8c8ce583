"""Attention patterns of a transformers model: an attention function that shows its weights to hooks.

The fused kernels that models run by default never form the attention weights. The eager function of each model family
does, but returns them only after it has used them. Inside `pattern_hook` the model runs its family's eager function,
and the weights that the hook returns are multiplied with the values again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from elm_interp.errors import UnknownSiteError
from elm_interp.models.changed import changed

IMPLEMENTATION = "elm_interp_hooked"
_EAGER = "eager_attention_forward"
_hooks: WeakKeyDictionary[nn.Module, list[Callable[[Tensor], Tensor | None]]] = WeakKeyDictionary()


@contextmanager
def pattern_hook(attention: nn.Module, hook: Callable[[Tensor], Tensor | None], *configs: Any) -> Iterator[None]:
    """Inside the context, call a hook with the attention weights (batch, head, query, key).

    Args:
        attention: the attention module.
        hook: an `Edit` of the weights.
        configs: the configs by which the model chooses its attention function and mask; restored after.

    Raises:
        UnknownSiteError: the module does not choose its attention through transformers' interface.
    """
    if not hasattr(sys.modules[type(attention).__module__], _EAGER):
        reason = "it does not use the attention interface of transformers"
        raise UnknownSiteError(f"{type(attention).__name__} shows no attention patterns: {reason}.")
    hooks = _hooks.setdefault(attention, [])
    hooks.append(hook)
    with ExitStack() as stack:
        stack.callback(hooks.remove, hook)
        for config in configs:
            stack.enter_context(changed(config, _attn_implementation=IMPLEMENTATION))
        yield


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    eager = getattr(sys.modules[type(module).__module__], _EAGER)
    out, weights = eager(module, query, key, value, attention_mask, **kwargs)
    for hook in _hooks.get(module, ()):
        new = hook(weights)
        weights = weights if new is None else new
        # heads of a group share their values
        values = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
        out = rearrange(weights @ values, "batch head query d_head -> batch query head d_head").contiguous()
    return out, weights


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)

"""What attention computes between its projections: rotated queries and keys, scores, and patterns.

The fused kernels that models run by default never form these. The eager function of each model family does. Inside
`attention_hook` the model runs its family's eager function: hooks of queries and keys act on its arguments, hooks of
scores and pattern at its softmax. A family that does not use transformers' attention interface computes its attention
in the module itself; there scores and pattern are found at the softmax too.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from elm_interp.errors import UnknownSiteError
from elm_interp.models.changed import changed

IMPLEMENTATION = "elm_interp_hooked"
COMPUTED = ("rot_q", "rot_k", "attn_scores", "pattern")
"""The sides of an attention module that are found here."""
_EAGER = "eager_attention_forward"
_SOFTMAX = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)
_Hook = Callable[[Tensor], Tensor | None]
_hooks: WeakKeyDictionary[nn.Module, list[tuple[str, _Hook]]] = WeakKeyDictionary()


@contextmanager
def attention_hook(attention: nn.Module, side: str, hook: _Hook, *choosing: nn.Module) -> Iterator[None]:
    """Inside the context, call a hook with what attention computes.

    Args:
        attention: the attention module.
        side: "rot_q" or "rot_k", (batch, pos, head, d_head); "attn_scores" or "pattern", (batch, head, query, key).
        hook: an `Edit` of it.
        choosing: the modules by whose configs the model chooses its attention function and mask; restored after.

    Raises:
        UnknownSiteError: the module does not choose its attention through transformers' interface.
    """
    interface = hasattr(sys.modules[type(attention).__module__], _EAGER)
    if not interface and side.startswith("rot"):
        raise UnknownSiteError(
            f"{type(attention).__name__} has no site {side}: it does not use the attention interface of transformers, "
            "so its rotated queries and keys cannot be found."
        )
    compressor = getattr(attention, "compressor", None)
    if compressor is not None and side != "rot_q":
        raise UnknownSiteError(
            f"{type(attention).__name__} has no site {side}: behind the keys of tokens it has those that "
            f"{type(compressor).__name__} makes of several tokens each."
        )
    implementation = IMPLEMENTATION if interface else "eager"
    hooks = _hooks.setdefault(attention, [])
    with ExitStack() as stack:
        if not interface and not hooks:
            stack.enter_context(_forward_with(attention, _AtSoftmax(hooks)))
        hooks.append((side, hook))
        stack.callback(hooks.remove, (side, hook))
        for config in {id(c): c for module in choosing if (c := getattr(module, "config", None)) is not None}.values():
            stack.enter_context(changed(config, _attn_implementation=implementation))
        yield


@contextmanager
def _forward_with(attention: nn.Module, mode: TorchFunctionMode) -> Iterator[None]:
    own, run = vars(attention).get("forward"), attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return run(*args, **kwargs)

    attention.forward = forward
    try:
        yield
    finally:
        vars(attention).pop("forward", None)
        if own is not None:
            attention.forward = own


class _AtSoftmax(TorchFunctionMode):
    """Inside this mode, hooks edit what a softmax over keys reads ("attn_scores") and returns ("pattern").

    Args:
        hooks: with their sides.
        sinks: one learned score of each head, which some families put behind those of the keys.
        keys: number of keys; None if nothing is ever put behind them.
    """

    def __init__(self, hooks: list[tuple[str, _Hook]], sinks: Tensor | None = None, keys: int | None = None) -> None:
        super().__init__()
        self.hooks, self.sinks, self.keys = hooks, sinks, keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _SOFTMAX or args[0].ndim != 4:
            return func(*args, **(kwargs or {}))
        scores = args[0]
        sinks = self.sinks if self.keys is not None and scores.shape[-1] == self.keys + 1 else None
        for side, hook in self.hooks:
            scores = edit_scores(hook, scores, sinks) if side == "attn_scores" else scores
        weights = func(scores, *args[1:], **(kwargs or {}))
        for side, hook in self.hooks:
            weights = edit_weights(hook, weights, sinks) if side == "pattern" else weights
        return weights


def edited(hook: _Hook, value: Tensor) -> Tensor:
    """What a hook makes of a value."""
    new = hook(value)
    return value if new is None else new


def edit_weights(hook: _Hook, weights: Tensor, sinks: Tensor | None) -> Tensor:
    """What a softmax returns after a hook has edited the weights of keys; those of sinks stay."""
    if sinks is None:
        return edited(hook, weights)
    return torch.cat([edited(hook, weights[..., :-1].clone()), weights[..., -1:]], -1)


def edit_scores(hook: _Hook, scores: Tensor, sinks: Tensor | None) -> Tensor:
    """What a softmax reads after a hook has edited the scores of keys.

    Args:
        hook: gets (batch, head, query, key).
        scores: what the softmax reads; with sinks their column is the last, and the family may have shifted each row,
            which changes no softmax.
        sinks: one learned score of each head, if they are in the scores.
    """
    alone = scores_alone(scores, sinks)
    if sinks is None:
        return edited(hook, alone)
    before = alone.clone()
    new = edited(hook, alone)
    if torch.equal(new, before):
        return scores
    return torch.cat([new + _shift(scores, sinks), scores[..., -1:]], -1)


def scores_alone(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The scores of keys, without sinks and the shift."""
    return scores if sinks is None else scores[..., :-1] - _shift(scores, sinks)


def _shift(scores: Tensor, sinks: Tensor) -> Tensor:
    return scores[..., -1:] - sinks.reshape(1, -1, 1, 1).to(scores.dtype)


def edit_rotated(hook: _Hook, value: Tensor, new_tokens: int) -> Tensor:
    """Queries or keys (batch, head, pos, d_head) after a hook, which gets those of the new tokens with heads after pos.

    Keys are changed in place, so that a cache that holds them keeps what was edited.
    """
    newest = rearrange(value[:, :, -new_tokens:], "batch head pos d_head -> batch pos head d_head")
    before = newest.clone()
    given = edited(hook, newest.clone())
    if not torch.equal(given, before):
        value[:, :, -new_tokens:] = rearrange(given, "batch pos head d_head -> batch head pos d_head")
    return value


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    eager = getattr(sys.modules[type(module).__module__], _EAGER)
    hooks = _hooks.get(module, [])
    for side, hook in hooks:
        if side == "rot_q":
            query = edit_rotated(hook, query.clone(), query.shape[2])
        elif side == "rot_k":
            key = edit_rotated(hook, key, query.shape[2])
    sinks = cast(Tensor | None, getattr(module, "sinks", None))
    with _AtSoftmax(hooks, sinks, key.shape[2]):
        return cast(tuple[Tensor, Tensor], eager(module, query, key, value, attention_mask, **kwargs))


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)

"""Texts that share a beginning: the keys and values of the shared part are computed once.

Each row's real tokens stay one unbroken run of columns that ends at the right edge: prefix, prompt, option. Windows,
chunks and some position biases count columns, so padding between two parts of a row would push real tokens out of a
window. Where a row is shorter than the longest of its batch, the columns that would be padding run the last tokens of
the prefix once more instead.

A model whose cache holds something else than keys and values of columns, or that has no cache, runs whole rows from
their beginning instead, with all padding behind them; its `step` keeps the tokens in place of a cache.

    hidden, cache, mask = after_prefix(lm, prefix, rows)      # class prompts of ELM
    hidden, ids = branch(lm, prompts, options)                # a question and its options
"""

import inspect
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from elm_interp.errors import BackendError
from elm_interp.models.batch import Batch

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


def full_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty key-value cache that drops nothing.

    The cache that transformers makes drops what has left the window of the longest row, padding included. Which keys a
    token sees is decided by the mask alone, as in a pass without a cache.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer  # type: ignore[no-untyped-call]
        for layer in cache.layers
    ]
    return cache


def after_prefix(
    lm: "HookedLM", prefix: Sequence[int], rows: Sequence[Sequence[int]], *, grad: bool = False
) -> tuple[Float[Tensor, "row pos d_model"], Cache, Int[Tensor, "row prefix_and_pos"]]:
    """Run rows after one prefix whose keys and values all rows share.

    Args:
        lm: the model.
        prefix: token ids before every row; may be empty.
        rows: token ids, without the prefix.
        grad: record the graph, for training.

    Returns:
        Hidden states of the rows (their last tokens in the last column), the cache of prefix and rows, and the mask of
        both, padded on the left.
    """
    # an edit of the last position would also act on the last token of a prefix that runs alone
    if not lm.keeps_keys or lm._position_edits:
        prefix, rows = (), [[*prefix, *row] for row in rows]
    width, n_prefix = max(map(len, rows)), len(prefix)
    repeated = [min(width - len(row), n_prefix) for row in rows]
    batch = lm.pad([[*prefix[n_prefix - k :], *row] for k, row in zip(repeated, rows, strict=True)], side="left")
    if not n_prefix:
        hidden, cache = lm.step(batch.input_ids, batch.attention_mask, batch.position_ids, grad=grad)
        return hidden, cache, batch.attention_mask
    alone = lm.pad([prefix])
    _, once = lm.step(alone.input_ids, alone.attention_mask, alone.position_ids, grad=grad)
    column = torch.arange(n_prefix, device=lm.device) - torch.tensor(repeated, device=lm.device)[:, None]
    mask = torch.cat([(column >= 0).to(batch.attention_mask), batch.attention_mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, n_prefix:]
    hidden, cache = lm.step(batch.input_ids, mask, positions, _shifted(once, column.clamp(min=0)), grad=grad)
    return hidden, cache, mask


def branch(
    lm: "HookedLM",
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    prefix: Sequence[int] = (),
    grad: bool = False,
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]:
    """Hidden states that predict each token of each option after its prompt, and these tokens, in order and flat.

    Each prompt runs once: its options share its keys and values, and all prompts share those of the prefix.

    Args:
        lm: the model.
        prompts: token ids of each prompt.
        options: for each prompt, the token ids of the texts that may follow.
        prefix: token ids before every prompt.
        grad: record the graph, for training.
    """
    flat = [option for group in options for option in group]
    ids = torch.tensor([token for option in flat for token in option], device=lm.device)
    if not lm.keeps_keys:
        check_edits(lm)
        pairs = [(prompt, option) for prompt, group in zip(prompts, options, strict=True) for option in group]
        hidden, _, _ = after_prefix(lm, prefix, [[*prompt, *option[:-1]] for prompt, option in pairs], grad=grad)
        return torch.cat([row[-len(option) :] for row, (_, option) in zip(hidden, pairs, strict=True)]), ids
    owner = torch.tensor([i for i, group in enumerate(options) for _ in group], device=lm.device)
    hidden, cache, mask = after_prefix(lm, prefix, prompts, grad=grad)
    found, places = [hidden[:, -1].index_select(0, owner)], [(i, 0) for i in range(len(flat))]
    for group in _of_similar_length(flat):
        rest = lm.pad([flat[i][:-1] for i in group])
        whose = owner[group]
        positions = mask[whose].sum(1, keepdim=True) + rest.position_ids
        whole = torch.cat([mask[whose], rest.attention_mask], 1)
        after, _ = lm.step(rest.input_ids, whole, positions, _rows(cache, whose), grad=grad)
        found.append(after[rest.attention_mask.bool()])
        places += [(i, t) for i in group for t in range(1, len(flat[i]))]
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(found)[order], ids


def keeps_keys(model: PreTrainedModel, backbone: nn.Module) -> bool:
    """Whether a model has a cache that holds keys and values of columns, and nothing else.

    Others hold states of recurrences and convolutions, or compressed keys of several columns.
    """
    if "past_key_values" not in inspect.signature(type(backbone).forward).parameters:
        return False
    return all(type(layer) in (DynamicLayer, DummyLayer) for layer in full_cache(model.config).layers)


class ReadTokens(Cache):
    """What `step` keeps of a model that does not keep keys: the tokens, which it then runs again."""

    def __init__(self, ids: Int[Tensor, "row pos"]) -> None:
        super().__init__(layers=[])
        self.ids = ids


def run_again(
    lm: "HookedLM", ids: Int[Tensor, "row new"], mask: Int[Tensor, "row pos"], past: Cache | None, *, grad: bool
) -> tuple[Float[Tensor, "row new d_model"], Cache]:
    """`HookedLM.step` of a model that does not keep keys: it runs the whole rows.

    Raises:
        BackendError: an open edit of positions that count from the end, which would move with every pass.
    """
    if isinstance(past, ReadTokens):
        ids, new = torch.cat([past.ids, ids], 1), ids.shape[1]
        check_edits(lm)
    else:
        new = ids.shape[1]
    return lm.hidden(Batch(ids, mask), grad=grad)[:, -new:], ReadTokens(ids)


def check_edits(lm: "HookedLM") -> None:
    """Check that all open edits act on the same tokens when rows are run as a whole.

    Raises:
        BackendError: one counts its positions from the end.
    """
    if any(index < 0 for edit in lm._position_edits for index in edit.positions):
        raise BackendError(
            f"{type(lm.model).__name__} has no cache of keys and values, so every pass runs whole rows, and an edit of "
            'positions that count from the end ("last") would act on other tokens; give positions from the beginning.'
        )


def _of_similar_length(options: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the options of two tokens or more, in groups that pad none to more than about twice its length."""
    groups: list[list[int]] = []
    for i in sorted((i for i, option in enumerate(options) if len(option) > 1), key=lambda i: -len(options[i])):
        if groups and 2 * (len(options[i]) - 1) >= len(options[groups[-1][0]]) - 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _rows(cache: Cache, rows: Int[Tensor, " row"]) -> Cache:
    """The keys and values of some rows, in a cache of their own.

    The cache's own `batch_select_indices` indexes, and on a CPU the gradient of indexing adds up in any order. That of
    `index_select` always adds up in the same order, so that a run repeats to the bit.
    """
    return _changed(cache, lambda states: states.index_select(0, rows))


def _shifted(cache: Cache, columns: Int[Tensor, "row column"]) -> Cache:
    """For each row, the keys and values that a cache of one row has at these columns."""
    n_rows, flat = len(columns), columns.flatten()

    def taken(states: Float[Tensor, "1 head column d_head"]) -> Float[Tensor, "row head column d_head"]:
        return torch.unflatten(states[0].index_select(1, flat), 1, (n_rows, -1)).transpose(0, 1)

    return _changed(cache, taken)


def _changed(cache: Cache, change: Any) -> Cache:
    changed = copy(cache)
    changed.layers = [copy(layer) for layer in cache.layers]
    for layer in cast(list[Any], changed.layers):
        if type(layer) is not DummyLayer:  # which holds nothing: its block reads the keys of another
            layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed

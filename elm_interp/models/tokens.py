"""Text as token ids, as a model expects them: one beginning of text at the start, no end of text at the end.

Many tokenizers put ids of their own around each text. Those before it (a beginning-of-text token) the model has seen at
the start of all its training text, so every text gets them once, even one that spells them out. Those after it (an end
of text, a separator) say that nothing follows. No text gets them: it is read at its last token, or it is continued.

A model reads a limited number of tokens, its context. A text beyond it is an error; of a set of texts, `fitting` leaves
out those that are too long and lists them in a warning.

    lm.encode(["Harry lives at"])        # [[1, 7, 21, 9]]: 1 is <s>
    lm.n_ctx                             # 2048; None for a model without a limit
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elm_interp.errors import ConfigError
from elm_interp.models import batch as batches
from elm_interp.models.batch import Batch

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM

LISTED = 20
"""Most texts that a warning names."""
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names in configs of the number of positions."""
_NO_LIMIT = 10**9
"""A tokenizer without a limit says a number above this."""


def tokenize(lm: "HookedLM", texts: str | Sequence[str], *, max_tokens: int | None = None) -> Batch:
    """Token ids and mask of texts, as from `encode`, padded on the right, on the model's device.

    Raises:
        ValueError: a text without a token, or beyond the context, or with a token that the model does not have.
    """
    return lm.pad(lm.encode([texts] if isinstance(texts, str) else texts, max_tokens=max_tokens))


def encode(lm: "HookedLM", texts: Sequence[str], *, max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of each text, unpadded, after the tokenizer's first tokens (`start_ids`) and without its last ones.

    Args:
        lm: the model.
        texts: to encode.
        max_tokens: where to cut each; None cuts none.

    Raises:
        ValueError: a text beyond the context, or with a token that the model does not have.
    """
    rows, limit = [row[:max_tokens] for row in unchecked(lm, texts)], lm.n_ctx
    for text, row in zip(texts, rows, strict=True):
        if limit is not None and len(row) > limit:
            check_length(lm, len(row), repr(text[:40]))
    check_ids(lm, rows)
    return rows


def unchecked(lm: "HookedLM", texts: Sequence[str]) -> list[list[int]]:
    """As `encode`, whatever the lengths and ids."""
    if not texts:
        return []
    start = start_ids(lm)
    rows = _ids(lm.tokenizer, texts, special=False)
    return [row if start and row[: len(start)] == start else [*start, *row] for row in rows]


def bare_ids(lm: "HookedLM", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone, without any of the tokenizer's own."""
    return _ids(lm.tokenizer, texts, special=False) if texts else []


def ids_and_ends(lm: "HookedLM", texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each text as from `unchecked`, and the character at which each ends: 0 for the tokenizer's own.

    Raises:
        ConfigError: the tokenizer gives no character offsets.
    """
    if not lm.tokenizer.is_fast:
        raise ConfigError(f"{type(lm.tokenizer).__name__} gives no character offsets; use a fast tokenizer.")
    if not texts:
        return [], []
    rows = unchecked(lm, texts)
    offsets = _call(lm.tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [[end for _, end in row] for row in offsets]
    return rows, [[0] * (len(row) - len(end)) + end for row, end in zip(rows, ends, strict=True)]


def start_ids(lm: "HookedLM") -> list[int]:
    """The ids that the tokenizer puts before each text, such as a beginning of text; often none."""
    for text in ("a", "0", "The cat"):
        (bare,), (whole,) = (_ids(lm.tokenizer, [text], special=special) for special in (False, True))
        for i in range(len(whole) - len(bare) + 1):
            if bare and whole[i : i + len(bare)] == bare:
                return whole[:i]
    return []


def pad(lm: "HookedLM", rows: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right") -> Batch:
    """A batch of lists of token ids, on the model's device.

    Raises:
        ValueError: no row, an empty one, or one with a token that the model does not have.
    """
    check_ids(lm, rows)
    return batches.pad(rows, lm.pad_id, side=side).to(lm.device)


def pad_id(lm: "HookedLM") -> int:
    """The id of padding; its value never matters, because padding is always masked."""
    ids = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id)
    return next((i for i in ids if i is not None and 0 <= i < _n_ids(lm)), 0)


def n_ctx(lm: "HookedLM") -> int | None:
    """The most tokens that the model reads at once; None if it has no limit."""
    config = lm.model.config.get_text_config()
    if getattr(config, "alibi", False):
        return None
    limit = next((n for name in _LIMITS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if limit is None:
        said = getattr(lm.tokenizer, "model_max_length", None)
        return None if config.model_type == "bloom" or said is None or not 0 < said < _NO_LIMIT else int(said)
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "yarn" in (rope.get("rope_type"), rope.get("type")) and rope.get("original_max_position_embeddings"):
        # the number of positions may be that before the extension
        limit = max(limit, int(rope["original_max_position_embeddings"] * (rope.get("factor") or 1)))
    return limit


def check_ids(lm: "HookedLM", rows: Sequence[Sequence[int]]) -> None:
    """Check that the model has every token.

    Raises:
        ValueError: an id outside the embedding; the message names the token.
    """
    most = _n_ids(lm)
    for row in rows:
        if len(row) and (min(row) < 0 or max(row) >= most):
            wrong = next(int(i) for i in row if not 0 <= i < most)
            named = repr(lm.tokenizer.convert_ids_to_tokens(wrong)) if wrong >= 0 else "no token"
            raise ValueError(
                f"token {wrong} ({named}) is outside the embedding of {lm.name}, which has {most} rows; the tokenizer "
                "knows more tokens than the model. Load the model's own tokenizer, or resize the embedding to it."
            )


def check_length(lm: "HookedLM", length: int, what: str, *, more: int = 0) -> None:
    """Check that tokens fit into the context, with others before or after them.

    Raises:
        ValueError: they do not; the message gives both numbers.
    """
    if lm.n_ctx is not None and length + more > lm.n_ctx:
        added = f" and {more} more" if more else ""
        raise ValueError(
            f"{what} has {length} tokens{added}, but {lm.name} reads at most {lm.n_ctx} (its context); shorten it."
        )


def check_mask(lm: "HookedLM", mask: Int[Tensor, "batch pos"], cached: int = 0) -> None:
    """Check that every row of a pass fits into the context, and that no row changes what another is.

    Args:
        lm: the model.
        mask: of cached tokens and new ones.
        cached: columns of the mask that are cached.

    Raises:
        ValueError: a row is too long, or a family counts by the longest row or by columns, and rows differ.
    """
    _check_longest(lm, mask, cached)
    limit = lm.n_ctx
    if limit is not None and mask.shape[1] > limit:  # only then may a row be too long
        longest = int(mask.sum(1).argmax())
        check_length(lm, int(mask[longest].sum()), f"row {longest}")


def _check_longest(lm: "HookedLM", mask: Int[Tensor, "batch pos"], cached: int) -> None:
    """Refuse a pass in which one row would change what another gives, by the positions that its family counts."""
    config = lm.model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        turn = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        lengths = torch.cat([mask.sum(1), mask[:, :cached].sum(1)])
        shortest, longest = int(lengths[lengths > 0].min()), int(lengths.max())
        if turn and shortest <= turn < longest:
            raise ValueError(
                f"rows of this pass have {shortest} to {longest} tokens, but {lm.name} takes other rotary factors "
                f"(longrope) for all of them once one is longer than {turn}; expected all on one side. "
                "Run the short texts and the long ones apart."
            )
    scale = getattr(config, "floor_scale", None) if getattr(config, "attn_temperature_tuning", False) else None
    if scale and mask.shape[1] >= scale and not bool(mask[:, 0].all()):
        raise ValueError(
            f"{lm.name} scales attention by the column of a token from column {scale} on, with padding counted; "
            "expected padding on the right, or rows of one length."
        )


def too_long(lm: "HookedLM", texts: Sequence[str | Sequence[str]], *, more: int = 0) -> dict[int, int]:
    """Indices of the texts that do not fit into the context, each with its tokens.

    Args:
        lm: the model.
        texts: each a text, or several that must all fit.
        more: tokens that must fit beside each.
    """
    limit = lm.n_ctx
    if limit is None:
        return {}
    groups = [[text] if isinstance(text, str) else list(text) for text in texts]
    lengths = iter(map(len, unchecked(lm, [text for group in groups for text in group])))
    longest = [max((next(lengths) for _ in group), default=0) for group in groups]
    return {i: n for i, n in enumerate(longest) if n + more > limit}


def fitting(
    lm: "HookedLM", texts: Sequence[str | Sequence[str]], what: str, *, more: int = 0, names: Sequence[str] = ()
) -> list[int]:
    """Indices of the texts that fit into the context; a warning counts and lists the others.

    Args:
        lm: the model.
        texts: each a text, or several that must all fit.
        what: what they are, for the warning, such as "forget questions".
        more: tokens that must fit beside each.
        names: their names in the warning; by default their first characters.
    """
    long = too_long(lm, texts, more=more)
    if long:
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        named = [f"{(names and names[i]) or repr(firsts[i][:40])} ({n} tokens)" for i, n in long.items()]
        listed = ", ".join(named[:LISTED]) + (f" and {len(long) - LISTED} others" if len(long) > LISTED else "")
        room = f"{lm.n_ctx} tokens" + (f", with {more} more" if more else "")
        warnings.warn(
            f"{len(long)} of {len(texts)} {what} are left out, since they do not fit into the context of {lm.name} "
            f"({room}): {listed}.",
            stacklevel=3,
        )
    return [i for i in range(len(texts)) if i not in long]


def _n_ids(lm: "HookedLM") -> int:
    return int(min(lm.embedding.weight.shape[0], lm.unembedding.weight.shape[0]))


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    return [list(row) for row in _call(tokenizer, texts, add_special_tokens=special)["input_ids"]]


def _call(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **settings: Any) -> Any:
    with _unchanged(tokenizer):
        return tokenizer(list(texts), padding=False, truncation=False, verbose=False, **settings)


@contextmanager
def _unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Give a fast tokenizer back its own truncation and padding, which a call that asks for none takes off."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = getattr(backend, "truncation", None), getattr(backend, "padding", None)
    try:
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)

"""Passages as token ids to train on.

A passage is cut where the method or the model's context ends. One in which no token is predicted is left out and named
in a warning. The manifest counts both, see `passage_counts`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from elm_interp.data import Passage, texts
from elm_interp.errors import ConfigError, DataError
from elm_interp.models import HookedLM
from elm_interp.models.tokens import LISTED, unchecked


def passage_rows(
    lm: HookedLM, passages: Sequence[Passage], max_tokens: int, *, room: int = 0
) -> tuple[list[Passage], list[list[int]]]:
    """The passages in which a token is predicted, and the token ids of each.

    Args:
        lm: the model.
        passages: of one kind; may be none.
        max_tokens: where to cut each.
        room: tokens that must fit into the context before each.

    Raises:
        DataError: there are passages, and no token is predicted in any; the message names them.
        ConfigError: the tokens before a passage leave no room for it in the context.
    """
    rows = lm.encode(texts(passages), max_tokens=cut_at(lm, max_tokens, room=room))
    least = first_target(lm) + 2
    short = [p.id or repr(p.text[:40]) for p, row in zip(passages, rows, strict=True) if len(row) < least]
    listed = ", ".join(short[:LISTED]) + (f" and {len(short) - LISTED} others" if len(short) > LISTED else "")
    if short and len(short) == len(passages):
        raise DataError(
            f"no passage can be trained on: {listed} have one token each, so that none is predicted from another; "
            "expected passages of two tokens or more."
        )
    if short:
        warnings.warn(
            f"{len(short)} of {len(passages)} passages are left out, since they have one token each: {listed}.",
            stacklevel=2,
        )
    kept = [i for i, row in enumerate(rows) if len(row) >= least]
    return [passages[i] for i in kept], [rows[i] for i in kept]


def passage_counts(lm: HookedLM, passages: Sequence[Passage], max_tokens: int, *, room: int = 0) -> dict[str, Any]:
    """How many passages there are, how many are cut and where, and the ids of those with one token."""
    most, least = cut_at(lm, max_tokens, room=room), first_target(lm) + 2
    lengths = [len(row) for row in unchecked(lm, texts(passages))]
    return {
        "passages": len(lengths),
        "cut": sum(n > most for n in lengths),
        "cut_at": most,
        "one_token": [p.id for p, n in zip(passages, lengths, strict=True) if n < least],
    }


def cut_at(lm: HookedLM, max_tokens: int, *, room: int = 0) -> int:
    """The most tokens of a passage: `max_tokens`, or what the context has beside `room` other tokens.

    Raises:
        ConfigError: that is nothing.
    """
    most = max_tokens if lm.n_ctx is None else min(max_tokens, lm.n_ctx - room)
    if most < first_target(lm) + 2:
        raise ConfigError(
            f"passages would be cut to {max(most, 0)} tokens, so that none is predicted: max_tokens is {max_tokens}, "
            f"and {room} of the {lm.n_ctx} tokens that {lm.name} reads at most (its context) are of prompts before "
            "each passage. Shorten the prompts, or raise max_tokens."
        )
    return most


def first_target(lm: HookedLM) -> int:
    """Index of the first token of a text whose next token belongs to the text: the last of the tokenizer's own."""
    return max(len(lm.start_ids) - 1, 0)

"""Batches of rows of similar length, so that little time is spent on padding."""

from collections.abc import Sequence

PASS_TOKENS = 1024
"""Default number of padded tokens in a pass. On a CPU a token then costs little more than half of what it costs in
passes of 4096 tokens, whose activations do not fit into the processor's cache."""


def bucketed(lengths: Sequence[int], *, max_tokens: int = PASS_TOKENS, max_rows: int = 64) -> list[list[int]]:
    """Group indices into batches, longest rows first, so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        max_tokens: padded tokens that a batch may hold; a longer row gets a batch of its own.
        max_rows: rows that a batch may hold.

    Returns:
        Indices of each batch.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # the first row of a batch is its longest
        if batches and len(batches[-1]) < max_rows and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

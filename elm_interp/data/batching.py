"""Batches of rows of like length, so that little time goes into padding."""

from collections.abc import Sequence

PASS_TOKENS = 1024
"""Padded tokens of a pass, where the caller asks for no other: on a CPU a token then costs little more than half of what it
costs in passes of 4096, whose activations leave the processor's cache."""


def bucketed(lengths: Sequence[int], *, max_tokens: int = PASS_TOKENS, max_rows: int = 64) -> list[list[int]]:
    """Indices grouped into batches, longest first (so that a lack of memory shows at once).

    Args:
        lengths: tokens of each row.
        max_tokens: padded tokens a batch may hold; a longer row gets a batch of its own.
        max_rows: rows a batch may hold.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # the first row of a batch is its longest
        if batches and len(batches[-1]) < max_rows and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

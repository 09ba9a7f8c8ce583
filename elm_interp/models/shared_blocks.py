"""Shared blocks: the blocks below the lowest adapted one run once per batch for several adapters, to the same bits.

Adapters often change some layers only (ELM's the first third). Below the lowest of them all states of the model compute
the same. The first pass over a batch keeps the output of the last shared block, and later passes start from it.

    below = shared_below(lm, folders)
    output = []                                  # one list per batch
    for folder in folders:
        with lm.adapter(folder), reuse_blocks(lm, below, output):
            hidden = lm.hidden(batch)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elm_interp.models.adapters.files import first_adapted_block
from elm_interp.models.hooked import HookedLM


@contextmanager
def reuse_blocks(lm: HookedLM, below: int, output: list[Any]) -> Iterator[None]:
    """Inside the context, passes over one batch share the blocks below a layer.

    The first pass runs these blocks and puts the output of the last one into `output`. Passes in later contexts do not
    run them, so activations below the layer can be read in the first pass only.

    Args:
        lm: the model, of the torch back end; the shared blocks must compute the same in all states, see `shared_below`.
        below: number of shared blocks; 0 shares nothing.
        output: empty for the first pass over a batch; for later passes over the same batch, the same list.
    """
    blocks = list(lm.blocks[:below])
    own = [vars(block).get("forward") for block in blocks]
    if blocks and not output:
        run = blocks[-1].forward

        def keep(*args: Any, **kwargs: Any) -> Any:
            output.append(run(*args, **kwargs))
            return output[0]

        blocks[-1].forward = keep
    else:
        for block in blocks:
            # every block returns the kept output, so that the model may do what it likes between its blocks
            block.forward = lambda *_, **__: output[0]
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def shared_below(lm: HookedLM, adapters: Iterable[str | Path | None]) -> int:
    """How many of the lowest blocks compute the same under all these adapters (None is the bare base).

    0 if nothing can be shared: there is one state only, or the back end runs blocks of its own. At least one block is
    never shared.

    Raises:
        AdapterError: an adapter that cannot be read.
    """
    states = list(adapters)
    if len(states) < 2 or lm.backend != "torch":
        return 0
    changed = [first_adapted_block(adapter, lm.layout.blocks) for adapter in states if adapter is not None]
    return min([*changed, lm.n_layers - 1])

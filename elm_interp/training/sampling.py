"""Which samples a training step takes: a pure function of pool, seed and step, so that a resume needs no stored cursor.

    batch = draw(samples["erase"], 4, step, seed)

The pools of several concepts become one pool that is drawn from in a ratio: with 5 to 1, every six samples hold five
and one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

from elm_interp.data import Concept, Mixture, Passage
from elm_interp.training.objective import Example
from elm_interp.training.settings import Training


@dataclass(frozen=True)
class Mixed(Sequence[Example]):
    """Pools that `draw` takes from in a ratio. As a sequence, it holds the pools one after the other."""

    pools: tuple[Sequence[Example], ...]
    ratio: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    def __getitem__(self, index: Any) -> Any:
        return [sample for pool in self.pools for sample in pool][index]


def draw(pool: Sequence[Example], size: int, step: int, seed: int) -> list[Example]:
    """The samples of a step, counted from 1. The pool is walked through in a new random order each time."""
    return [_at(pool, index, seed) for index in range((step - 1) * size, step * size)] if pool else []


def _at(pool: Sequence[Example], index: int, seed: int) -> Example:
    if isinstance(pool, Mixed):
        turn, place = divmod(index, sum(pool.ratio))
        # the n-th sample of a share stands at (n + 1/2) / share of a turn, which spreads every part evenly
        order = sorted(((n + 0.5) / share, part, n) for part, share in enumerate(pool.ratio) for n in range(share))
        _, part, n = order[place]
        return _at(pool.pools[part], turn * pool.ratio[part] + n, seed)
    turn, place = divmod(index, len(pool))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    return pool[int(torch.randperm(len(pool), generator=generator)[place])]


def drawable(concept: Concept, training: Training, seed: int) -> Concept:
    """The concept with no more training passages than the steps can draw, so that no target is made in vain.

    Args:
        concept: what is erased; of a mixture, each part is cut by itself.
        training: steps and batches.
        seed: of which passages stay.
    """
    if isinstance(concept, Mixture):
        return replace(concept, parts=tuple(drawable(part, training, seed) for part in concept.parts))
    most = training.steps * max(training.forget_batch, training.retain_batch)

    def cut(kind: str) -> tuple[Passage, ...]:
        there = concept.passages(kind)
        kept = sorted(Random(f"{kind} {seed}").sample(range(len(there)), min(most, len(there))))
        return (*(there[i] for i in kept), *concept.passages(kind, "held_out"))

    return replace(concept, forget=cut("forget"), retain=cut("retain"))


def of_each(
    concept: Concept, prepare: Callable[[Concept], Mapping[str, Sequence[Example]]]
) -> Mapping[str, Sequence[Example]]:
    """The samples that `prepare` makes of a concept; of a mixture, those of each part, drawn in the mixture's ratio."""
    if not isinstance(concept, Mixture):
        return prepare(concept)
    made = [prepare(part) for part in concept.parts]
    found: dict[str, Sequence[Example]] = {}
    for pool in dict.fromkeys(pool for samples in made for pool in samples):
        there = [i for i, samples in enumerate(made) if samples.get(pool)]
        found[pool] = Mixed(tuple(made[i][pool] for i in there), tuple(concept.ratio[i] for i in there))
    return found

"""Code length: bits per label for a reader who learns as the labels come (online code; Voita & Titov 2020).

Accuracy at the end says whether a probe can find the answer; the length of the code also says how easily. Labels come
in blocks that double in size. Each block is coded with the probe fitted to all blocks before it, the first without any.
What is simple to read pays from the second block on; what takes many examples to find stays near the cost of guessing.

Shapes: x is (layer, example, d_model); results are (layer, fact), bits per label of each fact.

    bits = online_code_length(x, y, facts, classes=2).mean(1)       # 1 is a coin flip, 0 is known beforehand
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import group_members, group_prefixes

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Ends of the blocks, as shares of the facts."""


def online_code_length(
    x: Float[Tensor, "layer example d_model"],
    y: Int[Tensor, " example"],
    groups: Sequence[Any],
    *,
    classes: int,
    C: float,
    seed: int = 0,
) -> Float[Tensor, "layer fact"]:
    """Bits for each label, by an online code, mean over the examples of each fact.

    After t examples, the probe's probabilities have the weight t / (t + 1) and a uniform guess the rest, so that a
    class that has not occurred yet has a finite price.

    Args:
        x: what to read.
        y: labels 0 .. classes - 1.
        groups: the fact of each example; all of a fact is in one block.
        classes: how many.
        C: inverse strength of the penalty.
        seed: of the order of the facts.
    """
    bits = torch.full(x.shape[:2], math.log2(classes), dtype=torch.float64, device=x.device)
    prefixes = group_prefixes(groups, SHARES, seed=seed)
    for seen, more in pairwise(prefixes):
        block = more[~torch.isin(more, seen)]
        present = torch.unique(y[seen])
        if len(block) == 0 or len(present) < 2:
            continue
        # a class that has not occurred has no finite intercept
        weights = fit_probes(x[:, seen], torch.searchsorted(present, y[seen]), C, classes=len(present))
        chances = torch.zeros(len(x), len(block), classes, dtype=torch.float64, device=x.device)
        chances[..., present] = weights.log_probabilities(x[:, block]).exp()
        believed = chances.gather(2, y[block].expand(len(x), -1)[..., None])[..., 0]
        trust = len(seen) / (len(seen) + 1)
        bits[:, block] = -(trust * believed + (1 - trust) / classes).log2()
    _, member = group_members(groups)
    index = torch.from_numpy(member).to(x.device)
    sums = bits.new_zeros(len(x), int(index.max()) + 1).index_add_(1, index, bits)
    return sums / torch.bincount(index)


def entropy(y: Int[Tensor, " example"]) -> float:
    """Bits per label for a reader who knows only how common each label is."""
    shares = y.bincount().double() / len(y)
    return float(-(shares[shares > 0] * shares[shares > 0].log2()).sum())

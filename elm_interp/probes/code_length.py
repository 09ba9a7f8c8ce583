"""Code length: how many bits a label costs one who reads a layer and learns as the labels come (Voita & Titov 2020, online code).

Accuracy at the end says whether a probe can find the answer; the code's length says also how easily. Labels come in blocks that
double; each block is coded with the probe fitted to all before it, the first without any. What is strongly and simply there
pays from the second block on; what takes many examples to find stays near the cost of guessing.

Shapes: x is (layer, example, d_model); what comes back is (layer, fact), bits a label of each fact.

    bits = online_code_length(x, y, facts, classes=2).mean(1)       # 1 is a coin, 0 is known beforehand
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import group_prefixes

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

    Before a block of which t examples were seen, the probe is believed with t / (t + 1) and a uniform guess with the rest, so
    that a class that did not occur yet has a price.

    Args:
        x: what to read.
        y: labels 0 .. classes - 1.
        groups: the fact of each example; a fact is in one block.
        classes: how many.
        C: inverse strength of the penalty.
        seed: of the order of the facts.
    """
    bits = torch.full(x.shape[:2], math.log2(classes), dtype=torch.float64, device=x.device)
    prefixes = group_prefixes(groups, SHARES, seed=seed)
    for seen, more in pairwise(prefixes):
        block = more[~torch.isin(more, seen)]
        present = y[seen].unique()
        if len(block) == 0 or len(present) < 2:
            continue
        # a class that has not occurred has no finite intercept
        weights = fit_probes(x[:, seen], torch.searchsorted(present, y[seen]), C, classes=len(present))
        chances = torch.zeros(len(x), len(block), classes, dtype=torch.float64, device=x.device)
        chances[..., present] = weights.log_probabilities(x[:, block]).exp()
        believed = chances.gather(2, y[block].expand(len(x), -1)[..., None])[..., 0]
        trust = len(seen) / (len(seen) + 1)
        bits[:, block] = -(trust * believed + (1 - trust) / classes).log2()
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    index = torch.from_numpy(member).to(x.device)
    sums = bits.new_zeros(len(x), int(index.max()) + 1).index_add_(1, index, bits)
    return sums / torch.bincount(index)


def entropy(y: Int[Tensor, " example"]) -> float:
    """Bits a label costs one who knows how common each is, and nothing else."""
    shares = y.bincount().double() / len(y)
    return float(-(shares[shares > 0] * shares[shares > 0].log2()).sum())

"""Shared by all probes: splits by fact, scaling on train rows, and shuffled labels.

A probe that saw a fact in one wording knows its label in another, so all examples of a fact are on one side of a split.

Shapes: x is (batch, example, d_model), one entry of the batch a layer; splits are row indices.

    train, test = split_by_group(facts, seed=0)
    mean, spread = scaler(x[:, train])
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import DataError
from elm_interp.probes.inputs import as_groups

TEST_SHARE = 0.3


def split_by_group(
    groups: Sequence[Any], *, seed: int, test_share: float = TEST_SHARE
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Row indices of a train and a test part that share no group; the same for the same groups and seed.

    Raises:
        DataError: too few groups for one on each side.
    """
    names, member = group_members(groups)
    held = round(test_share * len(names))
    if not 0 < held < len(names):
        raise DataError(
            f"{len(names)} facts cannot be split with {test_share:.0%} held out; at least one is needed on each side."
        )
    in_test = np.isin(member, np.random.default_rng(seed).permutation(len(names))[:held])
    return torch.from_numpy(np.flatnonzero(~in_test)), torch.from_numpy(np.flatnonzero(in_test))


def group_folds(
    groups: Sequence[Any], *, seed: int, folds: int
) -> Iterator[tuple[Int[Tensor, " train"], Int[Tensor, " test"]]]:
    """Cross-validation: train and test parts, each group in the test part once.

    Raises:
        DataError: fewer groups than folds.
    """
    names, member = group_members(groups)
    if len(names) < folds:
        raise DataError(f"{len(names)} facts cannot be split into {folds} folds.")
    fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[member]
    for i in range(folds):
        yield torch.from_numpy(np.flatnonzero(fold != i)), torch.from_numpy(np.flatnonzero(fold == i))


def group_prefixes(groups: Sequence[Any], shares: Sequence[float], *, seed: int) -> list[Int[Tensor, " prefix"]]:
    """Row indices of growing parts: the first shares of the groups in a random order."""
    names, member = group_members(groups)
    place = np.random.default_rng(seed).permutation(len(names))[member]
    return [torch.from_numpy(np.flatnonzero(place < round(share * len(names)))) for share in shares]


def scaler(
    x: Float[Tensor, "batch example d_model"],
) -> tuple[Float[Tensor, "batch 1 d_model"], Float[Tensor, "batch 1 d_model"]]:
    """Mean and standard deviation of each feature; 1 for a feature that does not vary."""
    mean = x.mean(1, keepdim=True)
    spread = x.std(1, correction=0, keepdim=True)
    # a constant leaves rounding errors of its mean, which must not be scaled up to a feature
    constant = spread <= 10 * torch.finfo(x.dtype).eps * mean.abs()
    return mean, torch.where(constant, 1, spread)


def shuffled_within(
    y: Int[Tensor, " example"], parts: Sequence[Int[Tensor, " part"]], seed: int
) -> Int[Tensor, " example"]:
    """The labels, shuffled within each part, so that each keeps its share of every class."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = y.clone()
    for part in parts:
        shuffled[part] = y[part[torch.randperm(len(part), generator=generator)]]
    return shuffled


def group_members(groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The names of the groups, and the index of each example's."""
    return np.unique(np.asarray(as_groups(groups), dtype=str), return_inverse=True)

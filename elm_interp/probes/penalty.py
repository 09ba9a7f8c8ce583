"""The strength of the penalty, chosen for each layer by inner folds: on the train facts alone, by log-loss.

The best C differs between layers, models and numbers of classes, and a C chosen by test accuracy is a leak. Log-loss is
used because, unlike accuracy, it counts how sure a wrong answer was, and rarely ties.

    strengths = choose_strength(x[:, train], y[train], facts_of_train, (0.001, 0.01, 0.1), seed=0, classes=2)
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import DataError
from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import group_folds

FOLDS = 4
TOLERANCE = 1e-6
"""Of the fits that are compared; float32 reaches it."""


def choose_strength(
    x: Float[Tensor, "layer example d_model"],
    y: Int[Tensor, " example"],
    groups: Sequence[Any],
    strengths: Sequence[float],
    *,
    seed: int,
    classes: int,
) -> Float[Tensor, " layer"]:
    """The C of each layer with the smallest log-loss over inner folds; the smaller of two that tie.

    Args:
        x: the train rows, not scaled: each fold scales on its own.
        y: labels 0 .. classes - 1.
        groups: the fact of each row.
        strengths: the candidates.
        seed: of the folds.
        classes: how many.

    Raises:
        DataError: fewer facts than folds, or folds that leave one class.
    """
    candidates = sorted(strengths)
    rows = torch.ones(FOLDS, len(y), dtype=torch.bool, device=y.device)
    for fold, (train, test) in enumerate(group_folds(groups, seed=seed, folds=FOLDS)):
        rows[fold, test] = False
        if len(torch.unique(y[train])) < 2:
            raise DataError(f"inner fold {fold} leaves one class in {len(train)} examples; more facts are needed.")
    labels = y.expand(FOLDS, -1)
    losses = []
    for C in candidates:
        logs = fit_probes(x, labels, C, rows=rows, classes=classes, tolerance=TOLERANCE).log_probabilities(x)
        right = logs.gather(-1, labels.expand(len(x), -1, -1)[..., None])[..., 0]
        losses.append(-(right * ~rows).sum((1, 2)))
    return torch.tensor(candidates, dtype=torch.float64)[torch.stack(losses).argmin(0).cpu()]

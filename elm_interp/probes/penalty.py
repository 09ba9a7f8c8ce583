"""The strength of the penalty, chosen for each layer by inner folds: on the train facts alone, by log-loss.

A C that suits one layer, model or number of classes need not suit another, and a C chosen by test accuracy is a leak. Log-loss
and not accuracy, since it also sees how sure a wrong answer was, and ties are rare.

    strengths = choose_strength(x[:, train], y[train], facts_of_train, (0.001, 0.01, 0.1), seed=0)      # one a layer
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import DataError
from elm_interp.probes.logistic import ProbeWeights, fit_probes
from elm_interp.probes.splits import group_folds, scaler

FOLDS = 4


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
    loss = torch.zeros(len(candidates), len(x), dtype=torch.float64, device=x.device)
    for train, test in group_folds(groups, seed=seed, folds=FOLDS):
        if len(y[train].unique()) < 2:
            raise DataError(f"an inner fold leaves one class in {len(train)} examples; more facts are needed.")
        mean, spread = scaler(x[:, train])
        fit, read = (x[:, train] - mean) / spread, (x[:, test] - mean) / spread
        for i, C in enumerate(candidates):
            logs = fit_probes(fit, y[train].expand(len(x), -1), C, classes=classes).log_probabilities(read)
            loss[i] -= logs.gather(2, y[test].expand(len(x), -1)[..., None]).sum((1, 2))
    return torch.tensor(candidates, dtype=torch.float64)[loss.argmin(0).cpu()]


def fit_with_strengths(
    x: Float[Tensor, "layer example d_model"],
    y: Int[Tensor, "layer task example"],
    strengths: Float[Tensor, " layer"],
    *,
    classes: int,
) -> ProbeWeights:
    """`fit_probes` with a C for each layer; layers of one C are fitted together."""
    found = {
        float(C): fit_probes(x[strengths == C], y[strengths == C], float(C), classes=classes)
        for C in strengths.unique()
    }
    first = next(iter(found.values()))
    coef = first.coef.new_empty(len(x), *first.coef.shape[1:])
    intercept = first.intercept.new_empty(len(x), *first.intercept.shape[1:])
    for C, weights in found.items():
        coef[strengths == C], intercept[strengths == C] = weights.coef, weights.intercept
    return ProbeWeights(coef, intercept)

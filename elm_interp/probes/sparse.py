"""The k-sparse probe: what k dimensions alone tell (Gurnee et al. 2023).

A feature that a model keeps in a few neurons or dimensions needs few to be read; one that is spread over the stream
needs many. The dimensions are those whose class means differ the most, chosen on the train rows.

Shapes: activations are (example, layer, d_model).

    table = probe_sparse(x, labels, facts)        # metrics "probe.sparse.k1", "probe.sparse.k4", …
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.probes.layers import SEEDS, accuracy_rows, check_inputs
from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import TEST_SHARE, scaler, split_by_group
from elm_interp.results import frame

COUNTS = (1, 4, 16, 64)
STRENGTH = 1.0
"""C of the probes: a few standardised dimensions need no strong penalty."""


def probe_sparse(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Any],
    groups: Sequence[Any],
    *,
    counts: Sequence[int] = COUNTS,
    metric: str = "probe.sparse",
    seeds: int = SEEDS,
    **columns: Any,
) -> pd.DataFrame:
    """Accuracy of probes of the k dimensions of a layer that separate the classes best.

    Args:
        activations: what to read.
        labels: as for `probe_layers`.
        groups: the fact of each example.
        counts: the values of k; those above the width are left out.
        metric: rows are named "{metric}.k{count}".
        seeds: how many splits, the same as those of `probe_layers`.
        columns: further columns of every row.

    Returns:
        A tidy frame, a row for each count, seed and layer, with Wilson's interval; `chance` is the share of the
        commonest class.

    Raises:
        DataError: too few facts, or labels that do not fit.
    """
    activations, y, classes, groups = check_inputs(activations, labels, groups)
    protocol = (
        f"logistic on k dimensions chosen on the train rows, C = {STRENGTH:g}, {TEST_SHARE:.0%} of facts held out"
    )
    shared = {"chance": float(y.bincount().max()) / len(y), "direction": "down", "protocol": protocol, **columns}
    x = activations.float().transpose(0, 1)
    y = y.to(x.device)
    rows = []
    for seed in range(seeds):
        train, test = split_by_group(groups, seed=seed)
        mean, spread = scaler(x[:, train])
        z = (x - mean) / spread
        order = between_classes(z[:, train], y[train]).argsort(-1, descending=True)
        for k in (k for k in counts if k <= z.shape[-1]):
            few = z.gather(2, order[:, None, :k].expand(-1, z.shape[1], -1))
            weights = fit_probes(few[:, train], y[train], STRENGTH, classes=classes)
            rows += accuracy_rows(f"{metric}.k{k}", weights.predict(few[:, test]) == y[test], seed=seed, **shared)
    return frame(rows)


def between_classes(
    z: Float[Tensor, "layer example d_model"], y: Int[Tensor, " example"]
) -> Float[Tensor, "layer d_model"]:
    """Variance of each dimension's class means, weighted by the classes' shares."""
    one_hot = torch.nn.functional.one_hot(y).to(z)
    size = one_hot.sum(0)
    means = (one_hot.T @ z) / size.clamp(min=1)[:, None]
    return ((means - z.mean(1, keepdim=True)).square() * (size / len(y))[:, None]).sum(1)

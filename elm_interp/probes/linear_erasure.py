"""Linear erasure: LEACE as the lower bound for a probe's accuracy, and how many directions carry a label.

LEACE (Belrose et al. 2023) is the smallest change of the activations, measured by their own covariance, after which no
linear probe finds the label in the rows that it was fitted to. A probe fitted to those same rows is constant, whatever
it is shown. So here the eraser and the probe are fitted to different facts: what is left is what a linear eraser leaves
on facts that it never saw. An erased model whose fresh probe is above this line keeps more than a linear eraser would.

The number of directions is INLP's (Ravfogel et al. 2020): fit a probe, project its directions out, and repeat until it
reads no more than chance. One direction is a switch; many are knowledge that is spread out.

Shapes: x is (layer, example, d_model), one eraser per layer.

    eraser = fit_leace(x[:, train], y[train]); x = eraser(x)
    table = probe_after_leace(activations, labels, facts)
    table = count_directions(activations, labels, facts)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import not_finite
from elm_interp.probes.estimators import STRENGTH
from elm_interp.probes.layers import SEEDS, accuracy_rows, check_inputs
from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import TEST_SHARE, scaler, split_by_group
from elm_interp.results import frame, measurements, wilson

MOST = 32
"""Most rounds of projecting out."""


@dataclass(frozen=True)
class Leace:
    """A linear eraser for each layer: x - (x - mean) readᵀ writeᵀ."""

    mean: Float[Tensor, "layer 1 d_model"]
    read: Float[Tensor, "layer rank d_model"]
    write: Float[Tensor, "layer rank d_model"]

    def __call__(self, x: Float[Tensor, "layer example d_model"]) -> Float[Tensor, "layer example d_model"]:
        """The activations without what a linear probe finds of the label."""
        return x - ((x - self.mean) @ self.read.mT) @ self.write


def fit_leace(x: Float[Tensor, "layer example d_model"], y: Int[Tensor, " example"]) -> Leace:
    """LEACE's closed form, with the covariance shrunk as in Ledoit and Wolf (2004), since it may be singular.

    Args:
        x: the rows to fit to.
        y: labels 0, 1, ….

    Raises:
        NotFiniteError: values that are NaN or infinite.
    """
    if not bool(x.isfinite().all()):
        raise not_finite("the activations to fit LEACE to", x.dtype)
    mean = x.mean(1, keepdim=True)
    n, d = x.shape[1:]
    one_hot = torch.nn.functional.one_hot(y).to(x)
    # in the span of the rows: the covariance with the label lies in it, and outside it whitening only scales
    u, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    share = shrinkage(x)[:, None]
    variance = (1 - share) * s.square() / n + share * s.square().sum(-1, keepdim=True) / (n * d)
    variance = variance.clamp(min=torch.finfo(x.dtype).tiny)  # of activations that are all the same
    whitened = (s / variance.sqrt())[..., None] * (u.mT @ (one_hot - one_hot.mean(0)))
    # centred one-hot columns sum to zero: one direction fewer than classes
    basis = torch.linalg.svd(whitened, full_matrices=False)[0][..., : one_hot.shape[1] - 1].mT
    return Leace(mean, (basis / variance.sqrt()[:, None]) @ v, (basis * variance.sqrt()[:, None]) @ v)


def shrinkage(x: Float[Tensor, "layer example d_model"]) -> Float[Tensor, " layer"]:
    """Ledoit and Wolf's share of a multiple of the identity in the estimate of a covariance."""
    centred = x - x.mean(1, keepdim=True)
    n, d = x.shape[1:]
    gram = centred @ centred.mT if n <= d else centred.mT @ centred
    squares = gram.square().sum((1, 2)) / n**2
    trace = centred.square().sum((1, 2)) / n
    noise = (centred.square().sum(-1).square().sum(-1) / n - squares) / n
    spread = squares - trace.square() / d
    return (noise.clamp(max=spread) / spread).nan_to_num(1)


def probe_after_leace(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Any],
    groups: Sequence[Any],
    *,
    metric: str = "probe.leace",
    seeds: int = SEEDS,
    C: float = STRENGTH,
    **columns: Any,
) -> pd.DataFrame:
    """Accuracy of a probe after LEACE: the eraser is fitted to half of the train facts, the probe to the other half.

    Args:
        activations: what to erase from and read, usually the base's.
        labels: as for `probe_layers`.
        groups: the fact of each example.
        metric: name of the rows.
        seeds: how many splits; the test facts of each are those of `probe_layers`.
        C: inverse strength of the penalty.
        columns: further columns of every row.

    Returns:
        A tidy frame, a row for each seed and layer, with Wilson's interval; `chance` is the share of the commonest
        class.

    Raises:
        DataError: too few facts, or labels that do not fit.
    """
    activations, y, classes, groups = check_inputs(activations, labels, groups)
    shared = {"chance": float(y.bincount().max()) / len(y), "direction": "neither"}
    shared |= {
        "protocol": f"logistic, C = {C:g}, after LEACE on other facts, {TEST_SHARE:.0%} of facts held out",
        **columns,
    }
    x = activations.double().transpose(0, 1)
    y = y.to(x.device)
    rows = []
    for seed in range(seeds):
        train, test = split_by_group(groups, seed=seed)
        parts = split_by_group([groups[i] for i in train.tolist()], seed=seed, test_share=0.5)
        erasing, fitting = (train[part] for part in parts)
        mean, spread = scaler(x[:, erasing])
        eraser = fit_leace((x[:, erasing] - mean) / spread, y[erasing])
        fit, read = (eraser((x[:, part] - mean) / spread) for part in (fitting, test))
        weights = fit_probes(fit, y[fitting], C, classes=classes, standardise=False)
        rows += accuracy_rows(metric, weights.predict(read) == y[test], seed=seed, **shared)
    return frame(rows)


def count_directions(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Any],
    groups: Sequence[Any],
    *,
    metric: str = "probe.directions",
    seeds: int = 1,
    C: float = STRENGTH,
    most: int = MOST,
    **columns: Any,
) -> pd.DataFrame:
    """Directions to project out, probe by probe, until accuracy on held-out facts is not above the commonest class.

    Args:
        activations: what to read.
        labels: as for `probe_layers`.
        groups: the fact of each example.
        metric: name of the rows.
        seeds: how many splits.
        C: inverse strength of the penalty.
        most: rounds; a layer that still reads the label after these has as value what was projected out by then.
        columns: further columns of every row.

    Returns:
        A tidy frame, a row for each seed and layer. 0 means that the first probe finds nothing. A probe of K classes
        projects out K - 1 directions.

    Raises:
        DataError: too few facts, or labels that do not fit.
    """
    activations, y, classes, groups = check_inputs(activations, labels, groups)
    x = activations.float().transpose(0, 1)
    y, each = y.to(x.device), classes - 1
    protocol = f"logistic, C = {C:g}, INLP until Wilson's interval holds the majority, at most {most * each}"
    rows = []
    for seed in range(seeds):
        train, test = split_by_group(groups, seed=seed)
        mean, spread = scaler(x[:, train])
        z, majority = (x - mean) / spread, float(y[test].bincount().max()) / len(test)
        counts = torch.full((len(x),), most * each)
        left = torch.arange(len(x))
        for done in range(most):
            weights = fit_probes(z[left][:, train], y[train], C, classes=classes, standardise=False)
            right = (weights.predict(z[left][:, test]) == y[test]).sum(-1).tolist()
            above = torch.tensor([wilson(count, len(test))[0] > majority for count in right])
            counts[left[~above]] = done * each
            left = left[above]
            if not len(left):
                break
            # the rows of several classes sum to zero, so one direction fewer than classes
            basis = torch.linalg.svd(weights.coef[above].to(z), full_matrices=False)[2][:, :each]
            z[left] -= (z[left] @ basis.mT) @ basis
        shared = {"seed": seed, "n": len(test), "chance": 0.0, "direction": "down", "protocol": protocol, **columns}
        rows += [measurements(metric, count, layer=layer, **shared) for layer, count in enumerate(counts.tolist())]
    return frame(rows)

"""Layer probes: what a reader can still tell from the residual stream, layer by layer.

A probe that succeeds shows that the knowledge can be read; one that fails shows only that this probe cannot read it.
Each accuracy therefore stands beside its controls: the same probe on shuffled labels, which shows what capacity alone
achieves, and the commonest class. The length of an online code stands beside both: it shows how easily the knowledge
can be read.

Shapes: activations are (example, layer, d_model). Splits are by fact, never by row, and only train rows are used to
scale.

    table = probe_layers(x, labels, facts)                       # your own labels, of any kind
    table = probe_layers(x, labels, facts, fitted_to=base)       # does the base's probe still read the erased model?
    table = probe_layers(x, labels, facts, estimator=MLPProbe())
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from sklearn.base import ClassifierMixin, clone
from torch import Tensor

from elm_interp.errors import DataError
from elm_interp.probes.code_length import entropy, online_code_length
from elm_interp.probes.estimators import STRENGTH
from elm_interp.probes.inputs import as_activations, as_groups, as_labels, check_lengths
from elm_interp.probes.penalty import choose_strength
from elm_interp.probes.solver import ProbeWeights, fit_probes
from elm_interp.probes.splits import TEST_SHARE, shuffled_within, split_by_group
from elm_interp.results import bootstrap, frame, measurements, wilson

Split = tuple[Int[Tensor, " train"], Int[Tensor, " test"]]
SEEDS = 5
TOLERANCE = 1e-6
"""Finer than scikit-learn's default, so that predictions do not depend on the order of a sum."""


def probe_layers(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Any],
    groups: Sequence[Any] | None = None,
    *,
    metric: str = "probe",
    seeds: int = SEEDS,
    C: float | Sequence[float] = STRENGTH,
    test_share: float = TEST_SHARE,
    fitted_to: Float[Tensor, "example layer d_model"] | None = None,
    estimator: ClassifierMixin | None = None,
    code: bool = True,
    fits: dict[str, ProbeWeights] | None = None,
    direction: str = "down",
    **columns: Any,
) -> pd.DataFrame:
    """Probe accuracy on facts that the probe never saw, at every layer and for several splits.

    Args:
        activations: what to read.
        labels: one an example, of any kind and form that scikit-learn takes: see `elm_interp.probes.inputs`.
        groups: the fact of each example; a fact is on one side of a split only. None: every example is a fact of its
            own.
        metric: name of the rows; those beside them are named "{metric}.control" and so on, see below.
        seeds: how many splits.
        C: inverse strength of the penalty, on features standardised on the train rows. Of several, each layer takes the
            one with the best log-loss over inner folds of its train facts.
        test_share: share of the facts that is held out.
        fitted_to: other activations of the same examples to fit on, such as the base's. That is the base's probe, with
            its scaling, read on an erased model; beside a fresh probe it tells suppressed from re-encoded.
        estimator: a scikit-learn classifier to fit at each layer, instead of logistic probes of all layers at once.
        code: measure the length of an online code as well.
        fits: logistic probes of earlier calls. Calls that share this dict fit once to the same activations and labels.
        direction: which way is better for an eraser; "neither" if what is read need not go.
        columns: further columns of every row, such as `site`.

    Returns:
        A tidy frame, its metrics named after `metric`. For each seed and layer: the accuracy; that of ".control", whose
        labels are shuffled within the train rows and within the test rows; and their difference, ".selectivity". For
        each seed: ".majority", the accuracy of always saying the commonest train label. For each layer: ".code_length",
        bits per label of an online code (only for logistic probes that are fitted to what is read). `chance` is the
        share of the commonest class, and for the code the entropy of the labels. Intervals are Wilson's for accuracies,
        normal for selectivity, and a bootstrap over facts for the code.

    Raises:
        DataError: too few facts to split, a split that leaves one class, a missing label, labels that are no classes
            (continuous, one-hot), or numbers that do not match.
        NotFiniteError: activations that are NaN or infinite; names example and layer.
    """
    activations, y, classes, groups = check_inputs(activations, labels, groups)
    fitted_to = None if fitted_to is None else as_activations(fitted_to, "activations to fit on")
    if fitted_to is not None and fitted_to.shape != activations.shape:
        raise DataError(
            f"activations to fit on have shape {tuple(fitted_to.shape)}, those to read {tuple(activations.shape)}; "
            "expected the same examples, layers and width."
        )
    chance = float(y.bincount().max()) / len(y)
    kind = (
        "logistic, C " + (f"= {C:g}" if isinstance(C, int | float) else "by inner folds")
        if estimator is None
        else str(estimator)
    )
    columns = {"protocol": f"{kind}, {test_share:.0%} of facts held out", **columns}
    x = activations.float().transpose(0, 1)
    source = x if fitted_to is None else fitted_to.float().transpose(0, 1)
    splits = [split_by_group(groups, seed=seed, test_share=test_share) for seed in range(seeds)]
    tasks = _tasks(y, splits)
    if estimator is None:
        strengths = C if isinstance(C, int | float) else _chosen(source, y, splits, groups, C, classes)
        predicted = _logistic(source, x, tasks, splits, strengths, classes, fits)
    else:
        predicted = _each_layer(estimator, source, x, tasks, splits)
    rows, others = [], []
    for seed, (train, test) in enumerate(splits):
        where = {"seed": seed, **columns}
        probe, control = (predicted[:, seed] == tasks[seed])[..., test].unbind(1)
        pairs = zip(
            accuracy_rows(metric, probe, direction=direction, chance=chance, **where),
            accuracy_rows(f"{metric}.control", control, direction="neither", chance=chance, **where),
            strict=True,
        )
        rows += [row for pair in pairs for row in pair]
        others += _selectivity(f"{metric}.selectivity", probe, control, direction=direction, **where)
        common = int((y[test] == y[train].bincount(minlength=classes).argmax()).sum())
        shared = {"n": len(test), "ci": wilson(common, len(test)), "chance": chance, "direction": "neither", **where}
        others.append(measurements(f"{metric}.majority", common / len(test), **shared))
    if code and estimator is None and fitted_to is None:
        strength = C if isinstance(C, int | float) else STRENGTH
        code_direction = "up" if direction == "down" else "neither"
        others += _code_lengths(f"{metric}.code_length", code_direction, x, y, groups, classes, strength, columns)
    return frame(rows + others)


def check_inputs(
    activations: Float[Tensor, "example layer d_model"], labels: Sequence[Any], groups: Sequence[Any] | None
) -> tuple[Float[Tensor, "example layer d_model"], Int[Tensor, " example"], int, list[str]]:
    """What every probe is given, checked: activations, labels as 0, 1, …, how many classes, and a group for each.

    Raises:
        DataError: a missing label, labels that are no classes, or numbers of examples that do not match.
        NotFiniteError: activations that are NaN or infinite.
    """
    x = as_activations(activations)
    names = list(map(str, range(len(x)))) if groups is None else as_groups(groups)
    check_lengths(x, labels, names)
    return x, *as_labels(labels), names


def _tasks(y: Int[Tensor, " example"], splits: Sequence[Split]) -> Int[Tensor, "seed task example"]:
    """The labels of each split, and the same shuffled, for the control.

    Raises:
        DataError: a split leaves one class to learn from.
    """
    for seed, (train, _) in enumerate(splits):
        if len(torch.unique(y[train])) < 2:
            raise DataError(f"split {seed} leaves one class in its {len(train)} train examples; more facts are needed.")
    return torch.stack([torch.stack([y, shuffled_within(y, split, seed)]) for seed, split in enumerate(splits)])


def accuracy_rows(metric: str, right: Bool[Tensor, "layer test"], **columns: Any) -> list[dict[str, Any]]:
    """A row for each layer: the share of test examples classified correctly, with Wilson's interval."""
    n = right.shape[1]
    return [
        measurements(metric, count / n, layer=layer, n=n, ci=wilson(count, n), **columns)
        for layer, count in enumerate(right.sum(-1).tolist())
    ]


def _selectivity(
    metric: str, probe: Bool[Tensor, "layer test"], control: Bool[Tensor, "layer test"], **columns: Any
) -> list[dict[str, Any]]:
    rows = []
    for layer, gain in enumerate(probe.double() - control.double()):
        value, half = float(gain.mean()), 1.96 * float(gain.std(correction=0)) / len(gain) ** 0.5
        shared = {"n": len(gain), "chance": 0.0, **columns}
        rows.append(measurements(metric, value, layer=layer, ci=(value - half, value + half), **shared))
    return rows


def _chosen(
    source: Float[Tensor, "layer example d_model"],
    y: Int[Tensor, " example"],
    splits: Sequence[Split],
    groups: Sequence[Any],
    C: Sequence[float],
    classes: int,
) -> Float[Tensor, "layer problem"]:
    """The strength for each layer and split, chosen on the true labels; the control takes the same."""
    y = y.to(source.device)
    chosen = [
        choose_strength(source[:, train], y[train], [groups[i] for i in train.tolist()], C, seed=seed, classes=classes)
        for seed, (train, _) in enumerate(splits)
    ]
    return repeat(torch.stack(chosen), "seed layer -> layer (seed task)", task=2)


def _logistic(
    source: Float[Tensor, "layer example d_model"],
    x: Float[Tensor, "layer example d_model"],
    tasks: Int[Tensor, "seed task example"],
    splits: Sequence[Split],
    C: float | Float[Tensor, "layer problem"],
    classes: int,
    fits: dict[str, ProbeWeights] | None,
) -> Int[Tensor, "layer seed task example"]:
    """Predictions for all rows of logistic probes fitted to the train rows of each split."""
    labels = rearrange(tasks, "seed task example -> (seed task) example").to(x.device)
    rows = torch.zeros_like(labels, dtype=torch.bool)
    for seed, (train, _) in enumerate(splits):
        rows[2 * seed : 2 * seed + 2, train] = True
    fits = {} if fits is None else fits
    key = _fingerprint(source, labels, rows, torch.as_tensor(C))
    if key not in fits:
        fits[key] = fit_probes(source, labels, C, rows=rows, classes=classes, tolerance=TOLERANCE)
    predicted = fits[key].predict(x)
    return rearrange(predicted, "layer (seed task) example -> layer seed task example", task=2).to(tasks.device)


def _fingerprint(*tensors: Tensor) -> str:
    """What tells tensors from others: their shapes, types and numbers."""
    digest = sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _each_layer(
    estimator: ClassifierMixin,
    source: Float[Tensor, "layer example d_model"],
    x: Float[Tensor, "layer example d_model"],
    tasks: Int[Tensor, "seed task example"],
    splits: Sequence[Split],
) -> Int[Tensor, "layer seed task example"]:
    """Predictions for the test rows (-1 for the others) of an estimator fitted to the train rows."""
    predicted = torch.full((len(x), *tasks.shape), -1)
    for layer, (fit, read) in enumerate(zip(source.cpu().numpy(), x.cpu().numpy(), strict=True)):
        for seed, (train, test) in enumerate(splits):
            for task, y in enumerate(tasks[seed].numpy()):
                found = clone(estimator).fit(fit[train], y[train]).predict(read[test])
                predicted[layer, seed, task, test] = torch.from_numpy(found)
    return predicted


def _code_lengths(
    name: str,
    better: str,
    x: Float[Tensor, "layer example d_model"],
    y: Int[Tensor, " example"],
    groups: Sequence[Any],
    classes: int,
    C: float,
    columns: dict[str, Any],
) -> list[dict[str, Any]]:
    columns = {**columns, "protocol": f"logistic, C = {C:g}, online code over facts in a random order"}
    shared = {"n": len(y), "seed": 0, "chance": entropy(y), "direction": better}
    bits = online_code_length(x, y.to(x.device), groups, classes=classes, C=C).cpu().numpy()
    rows = []
    for layer, b in enumerate(bits):
        # to 1e-4 bits: further digits depend on the number of threads
        value, low, high = (round(float(number), 4) for number in (b.mean(), *bootstrap(b)))
        rows.append(measurements(name, value, layer=layer, ci=(low, high), **shared, **columns))
    return rows

"""Probes of all layers, checkpoints and folds: the batched solver against a loop over scikit-learn, in one run.

The activations are synthetic: 1,000 texts with 4 classes, at d = 4,096 (fewer examples than dimensions) and d = 576
(more), one layer at a time to save memory. Their spectrum is like that of a residual stream: a few dozen strong
directions and a long tail (component k has variance 1 / (k + 2)). The classes lie along some of the strong directions
and fade over the checkpoints. Both sides standardise each fold on its own train rows and score it on its test rows,
within the measured time.

`speedup` is scikit-learn's seconds per fit over ours. The loop is timed on a random sample of its fits, each right
after ours has fitted the same layer. `accuracy_difference` (percentage points) and `objective_difference` (% of theirs)
are ours minus theirs, as means over that sample.

    python benchmarks/probe.py [--json]
    python benchmarks/probe.py --layers 2 --checkpoints 3 --sample 8        # a try
"""

import argparse
import json
import random
import time
from statistics import mean
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from elm_interp.probes.estimators import STRENGTH
from elm_interp.probes.solver import ProbeWeights, fit_probes

COMPONENTS = 512
TOLERANCE = 1e-3
"""About what scikit-learn misses by default."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 576])
    parser.add_argument("--sample", type=int, default=60, help="fits of the scikit-learn loop that are timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "C": STRENGTH, **vars(args)}
    found.pop("json")
    differences = []
    for width in args.widths:
        measured = compare(width, args)
        found[f"speedup_{width}"] = round(measured["theirs_seconds_a_fit"] / measured["ours_seconds_a_fit"], 2)
        found[f"width_{width}"] = measured
        differences.append(measured)
    for name in ("accuracy_difference", "objective_difference"):
        found[name] = max((measured[name] for measured in differences), key=abs)
    print(json.dumps(found) if args.json else "\n".join(f"{key:22s} {value}" for key, value in found.items()))


def compare(width: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fit everything with ours and a sample with theirs: seconds, accuracies and objectives."""
    rows = torch.arange(args.examples) % args.folds != torch.arange(args.folds)[:, None]
    fits = args.layers * args.checkpoints * args.folds
    chosen = random.Random(0).sample(range(fits), min(args.sample, fits))
    ours_seconds, theirs_seconds = 0.0, []
    ours_right, pairs = [], []
    for layer in range(-1, args.layers):  # -1 is a warm-up
        x, y = activations(max(layer, 0), width, args)
        if layer < 0:
            x = x[:1]
        began = time.perf_counter()
        labels = y.expand(args.folds, -1)
        weights = fit_probes(x, labels, STRENGTH, rows=rows, classes=args.classes, tolerance=TOLERANCE)
        right = ((weights.predict(x) == y) & ~rows).sum(-1) / (~rows).sum(-1)
        seconds = time.perf_counter() - began
        here = [i % (args.checkpoints * args.folds) for i in chosen if i // (args.checkpoints * args.folds) == layer]
        if layer < 0:
            scikit_learn(x[0], y, rows[0])
            continue
        ours_seconds += seconds
        ours_right.append(float(right.mean()))
        for checkpoint, fold in (divmod(i, args.folds) for i in here):
            began = time.perf_counter()
            model, score = scikit_learn(x[checkpoint], y, rows[fold])
            theirs_seconds.append(time.perf_counter() - began)
            one = ProbeWeights(weights.coef[checkpoint, fold][None], weights.intercept[checkpoint, fold][None])
            pairs.append(
                {"accuracy": (float(right[checkpoint, fold]), score)}
                | {"objective": objectives(one, model, x[checkpoint, rows[fold]], y[rows[fold]])}
            )
    return {
        "fits": fits,
        "ours_seconds": round(ours_seconds, 3),
        "ours_seconds_a_fit": round(ours_seconds / fits, 5),
        "theirs_sample": len(theirs_seconds),
        "theirs_sample_seconds": round(sum(theirs_seconds), 3),
        "theirs_seconds_a_fit": round(mean(theirs_seconds), 5),
        "ours_accuracy_of_all": round(mean(ours_right), 4),
        "ours_accuracy": round(mean(pair["accuracy"][0] for pair in pairs), 4),
        "theirs_accuracy": round(mean(pair["accuracy"][1] for pair in pairs), 4),
        "accuracy_difference": round(100 * mean(a - b for a, b in (pair["accuracy"] for pair in pairs)), 4),
        "objective_difference": round(100 * mean(a / b - 1 for a, b in (pair["objective"] for pair in pairs)), 5),
    }


def activations(layer: int, width: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """One layer of all checkpoints, (checkpoint, example, d_model), and the labels, the same for all layers."""
    texts = torch.Generator().manual_seed(0)
    of_class = torch.randn(args.examples, args.classes, generator=texts)
    y = (of_class + 0.5 * torch.randn(args.examples, args.classes, generator=texts)).argmax(1)
    generator = torch.Generator().manual_seed(1000 * width + layer)
    basis = torch.randn(COMPONENTS, width, generator=generator)
    size = (torch.arange(COMPONENTS) + 2.0).rsqrt()
    tail = 0.5 * torch.randn(args.examples, width, generator=generator)
    said = torch.randn(args.examples, COMPONENTS, generator=generator)
    x = torch.empty(args.checkpoints, args.examples, width)
    for checkpoint in range(args.checkpoints):
        drift = torch.randn(args.examples, COMPONENTS, generator=generator)
        hidden = 0.95 * said + 0.3 * drift
        # the classes are clearest in the middle layers and fade over checkpoints
        read = (1 - abs(2 * layer / max(args.layers - 1, 1) - 1) / 2) * (1 - checkpoint / (2 * args.checkpoints))
        hidden[:, 4 : 4 + args.classes] = read * of_class + (1 - read) * hidden[:, 4 : 4 + args.classes]
        torch.addmm(tail, hidden * size, basis, out=x[checkpoint])
    return x, y


def scikit_learn(x: Tensor, y: Tensor, rows: Tensor) -> tuple[tuple[StandardScaler, LogisticRegression], float]:
    """One fit of the loop: scale on the train rows, fit, score on the test rows; in float32 like ours."""
    train, test = x[rows].numpy(), x[~rows].numpy()
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(scaler.transform(train), y[rows].numpy())
    return (scaler, model), model.score(scaler.transform(test), y[~rows].numpy())


def objectives(
    ours: ProbeWeights, theirs: tuple[StandardScaler, LogisticRegression], x: Tensor, y: Tensor
) -> tuple[float, float]:
    """The objective that both minimise, at the weights of each, on features scaled in float64."""
    scaler, model = theirs
    spread, centre = torch.from_numpy(scaler.scale_), torch.from_numpy(scaler.mean_)
    z = ((x.double() - centre) / spread)[None]
    coef = ours.coef.double()
    of_ours = ProbeWeights(coef * spread, ours.intercept.double() + coef @ centre)
    of_theirs = ProbeWeights(
        torch.from_numpy(model.coef_).double()[None], torch.from_numpy(model.intercept_).double()[None]
    )
    return objective(of_ours, z, y), objective(of_theirs, z, y)


def objective(weights: ProbeWeights, z: Tensor, y: Tensor) -> float:
    """C · Σ loss + ½ |w|², for weights in the units of z."""
    right = weights.log_probabilities(z)[0].gather(-1, y[:, None])
    return float(0.5 * weights.coef.square().sum() - STRENGTH * right.sum())


if __name__ == "__main__":
    main()

"""Layer probes: what a linear reader can still tell from the residual stream, layer by layer.

A probe that succeeds shows that the knowledge is there to be read; one that fails shows only that this probe cannot read it.
Each accuracy therefore stands beside its control, the same probe on shuffled labels, which says what capacity alone achieves.

Shapes: activations are (example, layer, d_model). Splits are by fact, never by row, and the scaler sees train rows alone.

    rows = probe_layers(x, labels, facts)                       # one row a layer and seed, and one for its control
    table = probes_from_store(store, "step-000060")             # every task that the store holds, as a tidy frame
    LogisticProbe(C=0.01).fit(x[:, 7], labels).score(...)       # one probe, as a scikit-learn estimator
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations import ActivationStore, checkpoint_name, collect_texts, fingerprint
from elm_interp.errors import DataError, unknown
from elm_interp.internals.datasets import concept_datasets
from elm_interp.internals.logistic import fit_probes
from elm_interp.metrics import Rows, Subject, metric
from elm_interp.results import frame, measurements, wilson

PROBE_TASKS = ("truth", "association", "choice")
STRENGTH = 0.01
"""C of the probes. The penalty is a normal prior of variance C on every weight, so on d standardised features logits vary by
about sqrt(C · d) before any example is seen: 2.4 at d = 576, unsure but not flat. C = 1 would allow 24, which separates any
train set with fewer rows than dimensions and leaves the accuracy to noise. It lies on the plateau of the default model's base:
for `association`, 0.003 to 0.03 give the same accuracy within 0.01; 100 times more or less gives 0.03 less."""
SEEDS = 5
TEST_SHARE = 0.3


class LogisticProbe(ClassifierMixin, BaseEstimator):
    """One linear probe as a scikit-learn classifier: standardise, then L2-regularised logistic regression.

    Args:
        C: inverse strength of the penalty.
        scale: standardise the features on the rows that `fit` is given.
    """

    def __init__(self, C: float = STRENGTH, scale: bool = True) -> None:
        self.C = C
        self.scale = scale

    def fit(self, X: Any, y: Any) -> "LogisticProbe":
        """Fit to features (example, d_model) and labels of any kind."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"the labels have one class, {self.classes_[0]!r}; a probe needs at least two.")
        x = torch.tensor(X, dtype=torch.float64)[None]
        self.mean_, self.scale_ = scaler(x) if self.scale else (torch.zeros(1), torch.ones(1))
        targets = torch.from_numpy(labels)[None]
        self.weights_ = fit_probes((x - self.mean_) / self.scale_, targets, self.C, classes=len(self.classes_))
        self.coef_ = (self.weights_.coef[0] / self.scale_.reshape(-1)).numpy()
        self.intercept_ = (
            self.weights_.intercept[0].numpy() - self.coef_ @ self.mean_.expand(1, 1, x.shape[-1])[0, 0].numpy()
        )
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (example, class), or (example,) of the second class where there are two."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (example, class)."""
        scores = torch.from_numpy(np.asarray(self.decision_function(X), dtype=float))
        if scores.ndim == 1:
            return torch.stack([(-scores).sigmoid(), scores.sigmoid()], 1).numpy()
        return scores.softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]


def probe_layers(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[int],
    groups: Sequence[Any],
    *,
    metric: str = "probe",
    seeds: int = SEEDS,
    C: float = STRENGTH,
    test_share: float = TEST_SHARE,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Probe accuracy on facts that the probe never saw, at every layer and for several splits.

    Args:
        activations: what to read.
        labels: classes 0, 1, ….
        groups: the fact of each example; a fact is on one side of a split only.
        metric: name of the rows; those of the control are named "{metric}.control".
        seeds: how many splits.
        C: inverse strength of the penalty, on features standardised on the train rows.
        test_share: share of the facts that is held out.
        columns: further columns of every row, such as `site`.

    Returns:
        Rows, two for each seed and layer: the probe's accuracy, and its control's, whose labels are shuffled within the
        train rows and within the test rows. `chance` is the share of the commonest class; intervals are Wilson's.

    Raises:
        DataError: too few facts to split, or a split that leaves one class.
    """
    y = torch.tensor(np.asarray(labels, dtype=np.int64))
    classes = max(int(y.max()) + 1, 2)
    chance = float(y.bincount().max()) / len(y)
    columns = {"protocol": f"logistic, C = {C:g}, {test_share:.0%} of facts held out", **columns}
    x = activations.float().transpose(0, 1)
    rows = []
    for seed in range(seeds):
        train, test = split_by_group(groups, seed=seed, test_share=test_share)
        both = torch.stack([y, _shuffled_within(y, (train, test), seed)])
        if int((both[0, train].bincount(minlength=classes) > 0).sum()) < 2:
            raise DataError(f"split {seed} leaves one class in its {len(train)} train examples; more facts are needed.")
        mean, spread = scaler(x[:, train])
        weights = fit_probes((x[:, train] - mean) / spread, both[:, train].expand(len(x), -1, -1), C, classes=classes)
        right = weights.predict((x[:, test] - mean) / spread) == both[:, test]
        for layer, counts in enumerate(right.sum(-1).tolist()):
            for kind, count, direction in (("", counts[0], "down"), (".control", counts[1], "neither")):
                shared = {
                    "layer": layer,
                    "seed": seed,
                    "n": len(test),
                    "ci": wilson(count, len(test)),
                    "chance": chance,
                }
                rows.append(measurements(metric + kind, count / len(test), **shared, direction=direction, **columns))
    return rows


def split_by_group(
    groups: Sequence[Any], *, seed: int, test_share: float = TEST_SHARE
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Row indices of a train and a test part that share no group; the same for the same groups and seed."""
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    held = round(test_share * len(names))
    if not 0 < held < len(names):
        raise DataError(
            f"{len(names)} facts cannot be split with {test_share:.0%} held out; at least one is needed on each side."
        )
    in_test = np.isin(member, np.random.default_rng(seed).permutation(len(names))[:held])
    return torch.from_numpy(np.flatnonzero(~in_test)), torch.from_numpy(np.flatnonzero(in_test))


def scaler(
    x: Float[Tensor, "batch example d_model"],
) -> tuple[Float[Tensor, "batch 1 d_model"], Float[Tensor, "batch 1 d_model"]]:
    """Mean and standard deviation of each feature; 1 for a feature that does not vary."""
    mean = x.mean(1, keepdim=True)
    spread = x.std(1, correction=0, keepdim=True)
    # a constant leaves rounding errors of its mean, which must not be blown up to a feature
    constant = spread <= 10 * torch.finfo(x.dtype).eps * mean.abs()
    return mean, torch.where(constant, 1, spread)


def probes_from_store(
    store: ActivationStore,
    checkpoint: str,
    tasks: Sequence[str] = PROBE_TASKS,
    *,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The probes of every task as a tidy frame, from stored activations alone, without a model; the same on every call.

    Args:
        store: activations, from `collect` of `concept_datasets`.
        checkpoint: its name in the store.
        tasks: which; one that the concept has no questions for, so that no checkpoint holds it, gives no rows.
        progress: show a bar.
        options: of `probe_layers`.

    Raises:
        UnknownNameError: a task that does not exist, or one that is there for other checkpoints only.
    """
    for task in tasks:
        if task not in PROBE_TASKS:
            raise unknown("probe task", task, PROBE_TASKS)
    checkpoints = dict.fromkeys(entry.checkpoint for entry in store.entries())
    if checkpoint not in checkpoints:
        raise unknown("checkpoint", checkpoint, checkpoints)
    held = {entry.dataset for entry in store.entries()}
    rows: list[dict[str, Any]] = []
    for task in tqdm([t for t in tasks if t in held], desc=f"probing {checkpoint}", leave=False, disable=not progress):
        entry, examples = store.entry(task, checkpoint), store.examples(task)
        where = {"site": entry.site, "position": entry.positions, **options}
        x = store.tensor(task, checkpoint)
        rows += probe_layers(x, examples["label"], examples["fact"], metric=f"probe.{task}", **where)
    return frame(rows)


@metric("probe.truth", better="down", chance=0.5)
def truth(subject: Subject) -> Rows:
    """Share of unseen facts whose right and wrong answers a linear probe tells apart, by layer."""
    return _probe(subject, "truth")


@metric("probe.association", better="down", chance=0.5)
def association(subject: Subject) -> Rows:
    """Share of unseen facts whose right answer a linear probe tells from one outside the world, by layer."""
    return _probe(subject, "association")


@metric("probe.choice", better="down", chance=0.25)
def choice(subject: Subject) -> Rows:
    """Share of unseen questions for which a linear probe reads the right option's letter, by layer."""
    return _probe(subject, "choice")


def _probe(subject: Subject, task: str) -> Rows:
    dataset = concept_datasets(subject.concept, [task]).get(task)
    if dataset is None:
        return []
    checkpoint = checkpoint_name(None if subject.is_base else subject.step)
    named = subject.is_base or subject.step is not None
    if subject.store is not None and named:
        # what is stored under this name may be of other texts or weights
        made_from = fingerprint(subject.lm, dataset, subject.adapter)
        if subject.store.has(task, checkpoint, made_from):
            return probes_from_store(subject.store, checkpoint, [task])

    def read() -> Tensor:
        with subject.on() as lm:
            return collect_texts(lm, dataset.texts, positions=dataset.positions)

    x = subject.memo(("probe", task), read)
    labels, facts = dataset.examples["label"], dataset.examples["fact"]
    return probe_layers(x, labels, facts, metric=f"probe.{task}", site="resid_post", position=str(dataset.positions))


def _shuffled_within(y: Int[Tensor, " example"], parts: Sequence[Tensor], seed: int) -> Int[Tensor, " example"]:
    generator = torch.Generator().manual_seed(seed)
    shuffled = y.clone()
    for part in parts:
        shuffled[part] = y[part[torch.randperm(len(part), generator=generator)]]
    return shuffled

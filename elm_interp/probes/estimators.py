"""Probes as scikit-learn classifiers: logistic, ridge, difference of means, and a small network.

The linear ones standardise on the rows that `fit` is given and give `coef_` in the units of the activations: a
direction of the residual stream, to steer along, to project out, or to compare between layers. The network shows what a
reader with one hidden layer finds beyond them. It has the capacity to memorise, so look at its control first.

Shapes: X is (example, d_model), labels of any kind; `coef_` is (1, d_model) for two classes, else (class, d_model).

    probe = MeanDifferenceProbe().fit(x[:, 7], labels)
    table = probe_layers(x, labels, facts, estimator=MLPProbe())
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from elm_interp.probes.inputs import plain
from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import scaler

STRENGTH = 0.01
"""C of the probes. The penalty is a normal prior of variance C on every weight, so with d standardised
features the prior standard deviation of a logit is about sqrt(C · d): 2.4 at d = 576. C = 1 would allow 24, which
separates any train set with fewer rows than dimensions and leaves the accuracy to noise. On the default model's base,
0.003 to 0.03 give the same accuracy for `association` within 0.01; 100 times more or less gives 0.03 less."""


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Shared by the linear probes: checks, scaling, and decisions by `coef_` and `intercept_` in the units of X."""

    scale: bool

    @abstractmethod
    def _solve(
        self, x: Float[np.ndarray, "example d_model"], y: Int[np.ndarray, " example"]
    ) -> tuple[Float[np.ndarray, "output d_model"], Float[np.ndarray, " output"]]:
        """Weights and intercepts on scaled features, for labels 0, 1, …."""

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit to features (example, d_model), arrays or tensors of any dtype, and labels of any kind."""
        X, y = validate_data(self, plain(X), plain(y), dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"the labels have one class, {self.classes_[0]!r}; a probe needs at least two.")
        x = np.array(X, dtype=np.float64)
        mean, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
        if self.scale:
            mean, spread = (part[0, 0].numpy() for part in scaler(torch.from_numpy(x)[None]))
        coef, intercept = self._solve((x - mean) / spread, labels)
        self.coef_ = coef / spread
        self.intercept_ = intercept - self.coef_ @ mean
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (example, class), or (example,) of the second class where there are two."""
        check_is_fitted(self)
        X = validate_data(self, plain(X), dtype=[np.float64, np.float32], reset=False)
        scores: np.ndarray = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The label with the highest score, of each row."""
        scores = self.decision_function(X)
        labels: np.ndarray = self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]
        return labels


class LogisticProbe(LinearProbe):
    """L2-regularised logistic regression, by the solver that fits all layers at once.

    Args:
        C: inverse strength of the penalty.
        scale: standardise the features on the rows that `fit` is given.
    """

    def __init__(self, C: float = STRENGTH, scale: bool = True) -> None:
        self.C = C
        self.scale = scale

    def _solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, labels = torch.from_numpy(x)[None], torch.from_numpy(y)
        weights = fit_probes(features, labels, self.C, classes=len(self.classes_), standardise=False)
        return weights.coef[0].numpy(), weights.intercept[0].numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (example, class)."""
        scores = torch.from_numpy(np.asarray(self.decision_function(X), dtype=float))
        if scores.ndim == 1:
            return torch.stack([(-scores).sigmoid(), scores.sigmoid()], 1).numpy()
        return scores.softmax(1).numpy()


class RidgeProbe(LinearProbe):
    """scikit-learn's `RidgeClassifier`: least squares on labels of -1 and 1.

    Args:
        alpha: strength of the penalty.
        scale: standardise the features on the rows that `fit` is given.
    """

    def __init__(self, alpha: float = 1 / STRENGTH, scale: bool = True) -> None:
        self.alpha = alpha
        self.scale = scale

    def _solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ridge = RidgeClassifier(alpha=self.alpha).fit(x, y)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)


class MeanDifferenceProbe(LinearProbe):
    """The nearest class mean; with two classes, the line between the means, cut in the middle.

    It has nothing to tune and cannot memorise, and interventions along its direction have the largest effect. Without
    `scale`, `coef_` is the plain difference of means.

    Args:
        scale: standardise the features on the rows that `fit` is given, so that large dimensions do not decide alone.
    """

    def __init__(self, scale: bool = True) -> None:
        self.scale = scale

    def _solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = np.stack([x[y == label].mean(0) for label in range(len(self.classes_))])
        # |x - m|² without |x|², which all classes share
        offset = -0.5 * (means**2).sum(1)
        if len(means) == 2:
            return means[1:] - means[:1], offset[1:] - offset[:1]
        return means, offset


class MLPProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn's `MLPClassifier` with one hidden layer, on standardised features.

    Args:
        hidden: units of the hidden layer.
        alpha: strength of the penalty on all weights, 1 / C of a logistic probe.
        seed: of the first weights.
    """

    def __init__(self, hidden: int = 32, alpha: float = 10.0, seed: int = 0) -> None:
        self.hidden = hidden
        self.alpha = alpha
        self.seed = seed

    def fit(self, X: Any, y: Any) -> "MLPProbe":
        """Fit to features (example, d_model), arrays or tensors of any dtype, and labels of any kind."""
        X, y = validate_data(self, plain(X), plain(y), dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.scaler_ = StandardScaler().fit(X)
        # a finer tolerance takes 30 times as long for the same accuracy
        network = MLPClassifier(
            (self.hidden,), alpha=self.alpha, solver="lbfgs", tol=0.01, max_iter=1000, random_state=self.seed
        )
        self.network_ = network.fit(self.scaler_.transform(X), y)
        self.classes_ = network.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (example, class)."""
        check_is_fitted(self)
        X = validate_data(self, plain(X), dtype=[np.float64, np.float32], reset=False)
        chances: np.ndarray = self.network_.predict_proba(self.scaler_.transform(X))
        return chances

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row."""
        chances = self.predict_proba(X)
        labels: np.ndarray = self.classes_[chances.argmax(1)]
        return labels

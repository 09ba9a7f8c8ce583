import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from elm_interp.probes import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe


def problem(classes, n=80, d=20):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator) + torch.randn(classes, d, generator=generator)[y]
    return (3 * x + 5).double().numpy(), np.array(["a", "b", "c"])[y.numpy()]


@parametrize_with_checks([LogisticProbe(), RidgeProbe(), MeanDifferenceProbe(), MLPProbe(hidden=8)])
def test_is_a_scikit_learn_classifier(estimator, check):
    check(estimator)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_a_scaler_and_a_logistic_regression(classes):
    x, y = problem(classes)
    z = StandardScaler().fit_transform(x)
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(z, y).predict_proba(z)
    assert np.abs(LogisticProbe(C=0.1).fit(x, y).predict_proba(x) - theirs).max() < 1e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_difference_of_means_is_a_scaler_and_the_nearest_centroid(classes):
    x, y = problem(classes)
    other = x + np.random.default_rng(0).normal(size=x.shape)
    theirs = make_pipeline(StandardScaler(), NearestCentroid()).fit(x, y).predict(other)
    assert (MeanDifferenceProbe().fit(x, y).predict(other) == theirs).all()


def test_without_scale_the_direction_is_the_difference_of_means():
    x, y = problem(2)
    assert np.allclose(MeanDifferenceProbe(scale=False).fit(x, y).coef_[0], x[y == "b"].mean(0) - x[y == "a"].mean(0))


def test_a_network_reads_what_no_line_can():
    x = np.random.default_rng(0).normal(size=(400, 4))
    y = x[:, 0] * x[:, 1] > 0
    assert MLPProbe(alpha=0.1).fit(x[:300], y[:300]).score(x[300:], y[300:]) > 0.9
    assert RidgeProbe().fit(x[:300], y[:300]).score(x[300:], y[300:]) < 0.65

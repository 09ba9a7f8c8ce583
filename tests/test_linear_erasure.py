import math

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression

from elm_interp.probes import count_directions, fit_leace, probe_after_leace, probe_layers, probe_sparse
from elm_interp.probes.linear_erasure import shrinkage


def planted(classes=2, *, n=120, d=40, directions=1, strength=3.0):
    """A layer that says the label along some dimensions, and one that says nothing."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(n, 2, d, generator=generator)
    x[:, 1, :directions] += strength * (y[:, None] - (classes - 1) / 2)
    return x, y, [f"fact {i // classes}" for i in range(n)]


def mean_by_layer(rows):
    return rows.groupby("layer")["value"].mean()


@pytest.mark.parametrize(("n", "d"), [(200, 10), (40, 100)])
@pytest.mark.parametrize("classes", [2, 4])
def test_after_leace_no_linear_probe_finds_the_label_in_the_rows_it_was_fitted_to(n, d, classes):
    x, y, _ = planted(classes, n=n, d=d)
    x = x.double().transpose(0, 1)
    erased = fit_leace(x, y)(x)
    means = torch.stack([erased[:, y == k].mean(1) for k in range(classes)])
    assert (means - means[:1]).abs().max() < 1e-10
    probe = LogisticRegression(C=100).fit(erased[1].numpy(), y.numpy())
    assert abs(probe.coef_).max() < 1e-4


def test_leace_changes_as_many_directions_as_it_must_and_leaves_the_mean():
    x, y, _ = planted(3)
    x = x.double().transpose(0, 1)
    erased = fit_leace(x, y)(x)
    assert torch.linalg.matrix_rank(erased - x, rtol=1e-8).tolist() == [2, 2]
    assert torch.allclose(erased.mean(1), x.mean(1))


def test_leace_moves_less_than_projecting_out_in_the_sense_of_the_covariance():
    x, y, _ = planted(2, n=2000, d=10)
    x = (x.double() @ torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).transpose(
        0, 1
    )
    x = x - x.mean(1, keepdim=True)
    way = torch.nn.functional.normalize(x[:, y == 1].mean(1) - x[:, y == 0].mean(1), dim=-1)[:, None]
    whiten = torch.linalg.inv(x.mT @ x / 2000)
    ours, theirs = (((moved @ whiten) * moved).sum((1, 2)) for moved in (fit_leace(x, y)(x) - x, (x @ way.mT) @ way))
    assert (ours < theirs).all()


@pytest.mark.parametrize("n", [15, 60])
def test_the_shrinkage_is_scikit_learns(n):
    x = torch.randn(2, n, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 31)
    assert torch.allclose(shrinkage(x), torch.tensor([ledoit_wolf_shrinkage(part.numpy()) for part in x]).double())


def test_a_linear_eraser_takes_what_a_probe_reads_on_facts_that_it_never_saw():
    x, y, facts = planted(n=400)
    assert mean_by_layer(probe_layers(x, y, facts).query("metric == 'probe'"))[1] > 0.9
    assert mean_by_layer(probe_after_leace(x, y, facts))[1] < 0.62


def test_the_count_of_directions_is_none_where_there_is_nothing_and_one_for_a_switch():
    x, y, facts = planted(n=400, strength=4)
    assert mean_by_layer(count_directions(x, y, facts)).tolist() == [0, 1]
    x, y, facts = planted(4, n=400, strength=4)
    assert mean_by_layer(count_directions(x, y, facts)).tolist() == [0, 3]


def test_a_count_that_is_given_up_is_the_most():
    x, y, facts = planted(n=160, d=100, directions=30, strength=1)
    # probes without a penalty learn by heart, so that each finds a part alone
    assert mean_by_layer(count_directions(x, y, facts, C=100, most=1))[1] == 1
    assert mean_by_layer(count_directions(x, y, facts, C=100))[1] > 1


def test_sparse_probes_find_the_dimension_that_tells():
    x, y, facts = planted(n=400, directions=1, strength=4)
    table = probe_sparse(x, y, facts, counts=(1, 8, 64))
    assert set(table["metric"]) == {"probe.sparse.k1", "probe.sparse.k8"}
    shares = table[table["layer"] == 1].groupby("metric")["value"].mean()
    assert shares["probe.sparse.k1"] > 0.95
    assert math.isclose(table["chance"].iloc[0], 0.5)

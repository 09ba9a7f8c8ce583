import numpy as np
import pytest
import torch
from disturbed import random_adapter
from scipy.linalg import subspace_angles

from elm_interp.errors import DataError
from elm_interp.internals import (
    cka,
    cosine,
    difference,
    effective_rank,
    outlier_dimensions,
    pca_shift,
    separation,
    subspace_angle,
)
from elm_interp.metrics import Subject, measure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_model_is_like_itself():
    x = normal(30, 2, 20)
    assert difference(x, x).abs().max() == 0
    assert torch.allclose(cosine(x, x), torch.ones(30, 2))
    assert torch.allclose(cka(x, x), torch.ones(2).double())
    assert pca_shift(x, x).abs().max() == 0
    assert subspace_angle(x, x).max() < 1e-2


def test_cka_sees_neither_rotation_nor_scale_nor_shift_and_unrelated_sets_are_near_zero():
    x = normal(40, 2, 200)
    rotation = torch.linalg.qr(normal(200, 200, seed=1))[0]
    assert torch.allclose(cka(3 * x @ rotation + 5, x), torch.ones(2).double(), atol=1e-4)
    # the biased estimate is above 0.8 here
    assert cka(normal(40, 2, 200, seed=2), x).abs().max() < 0.2


def test_cka_is_the_published_estimate():
    a, b = (normal(9, 1, 4, seed=seed).double()[:, 0] for seed in (0, 1))
    products = [(part - part.mean(0)) @ (part - part.mean(0)).T for part in (a, b)]

    def hsic(p, q):
        p, q = (np.array(m) * (1 - np.eye(9)) for m in (p, q))
        one = np.ones(9)
        whole = np.trace(p @ q) + one @ p @ one * (one @ q @ one) / (8 * 7) - 2 / 7 * one @ p @ q @ one
        return whole / (9 * 6)

    ours, theirs = products
    expected = hsic(ours, theirs) / np.sqrt(hsic(ours, ours) * hsic(theirs, theirs))
    assert cka(a[:, None], b[:, None]).item() == pytest.approx(expected)


def test_angles_are_scipys():
    x, y = normal(50, 1, 20), normal(50, 1, 20, seed=1)
    first, second = (np.linalg.svd((p - p.mean(0))[:, 0].numpy())[2][:3].T for p in (x, y))
    expected = np.rad2deg(subspace_angles(first, second)).mean()
    assert subspace_angle(x, y, components=3).item() == pytest.approx(expected, abs=1e-3)


def test_the_shift_is_counted_in_deviations_along_the_first_component():
    base = normal(200, 1, 10)
    base[:, 0, 0] *= 5
    x = base.clone()
    x[:, 0, 0] += 10
    assert pca_shift(x, base).item() == pytest.approx(2, rel=0.15)
    assert difference(x, base).min() > 0


def test_effective_rank_is_the_number_of_equal_directions():
    x = torch.cat([torch.eye(6), -torch.eye(6)])[:, None] @ torch.linalg.qr(normal(20, 6))[0].T
    assert effective_rank(x).item() == pytest.approx(6, rel=1e-4)
    assert effective_rank(7 * x).item() == pytest.approx(6, rel=1e-4)


def test_separation_is_one_for_clusters_apart_and_a_half_for_one_cluster():
    x = normal(400, 1, 10)
    assert separation(x[:200] + 3, x[200:]).item() > 0.99
    assert abs(separation(x[:200], x[200:]).item() - 0.5) < 0.1


def test_a_large_dimension_is_an_outlier_and_scale_does_not_matter():
    x = normal(30, 2, 20)
    x[:, 1, 7] += 100
    found = outlier_dimensions(x)
    assert found.nonzero().tolist() == [[1, 7]]
    assert torch.equal(outlier_dimensions(9 * x), found)


def test_sets_that_do_not_pair_are_refused():
    with pytest.raises(DataError, match=r"\(30, 2, 20\) and \(29, 2, 20\)"):
        cosine(normal(30, 2, 20), normal(29, 2, 20))
    with pytest.raises(DataError, match="same 4 or more"):
        cka(normal(3, 2, 20), normal(3, 2, 20))


def test_below_the_adapter_nothing_moved_and_the_base_has_nothing_to_compare(tiny_lm, tiny_concept, tmp_path):
    base = Subject(tiny_lm, tiny_concept)
    erased = base.at(random_adapter(tiny_lm, tmp_path / "adapter", seed=1), method="elm", step=1)  # on layers 1 and 2
    table = measure(erased, "geometry.*")
    at = table.set_index(["metric", "layer"])["value"]
    assert at["geometry.forget.difference", 0] == pytest.approx(0, abs=1e-5)
    assert at["geometry.forget.difference", 2] > 0.01
    assert at["geometry.retain.cka", 0] == pytest.approx(1, abs=1e-4)
    marked = table[table["metric"].str.contains("cka|shift|angle|rank|separation")]
    assert marked["protocol"].eq("descriptive").all()
    assert len(marked) == 9 * 4
    assert not measure(base, "geometry.*")["metric"].str.contains("cosine|cka").any()

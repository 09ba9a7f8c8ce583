"""The cache of prepared samples: found again where they would be the same, made anew where not."""

from dataclasses import dataclass

import pytest

from elm_interp.erase.elm import ELM
from elm_interp.erase.npo import NPO
from elm_interp.erase.repnoise import RepNoise
from elm_interp.erase.rmu import RMU
from elm_interp.erase.whp import WHP
from elm_interp.training import Objective
from elm_interp.training.target_cache import prepared

METHODS = {
    "elm": ELM.from_settings(layers=(1,), rank=2, fluency_samples=3, fluency_tokens=4, match_weight=1),
    "rmu": RMU.from_settings(layer=2, layers=(1, 2), max_tokens=24),
    "npo": NPO.from_settings(rank=2, max_tokens=20),
    "repnoise": RepNoise.from_settings(rank=2, max_tokens=20),
    "whp": WHP.from_settings(rank=2, labels="soft", top_k=50, reinforce_batch=2, reinforce_epochs=1, max_tokens=20),
}


def made(monkeypatch, lm, objective, concept):
    """The samples, and whether `prepare` was run for them."""
    calls = []
    original = type(objective).prepare

    def counted(*args, **options):
        calls.append(1)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(objective), "prepare", counted)
        samples, _ = prepared(lm, objective, concept, model_hash="x", seed=0)
    return samples, bool(calls)


@pytest.mark.parametrize("name", ["elm", "npo", "rmu", "whp"])
def test_samples_of_every_declared_kind_come_back_as_they_were(monkeypatch, tiny_lm, tiny_concept, name):
    first, ran = made(monkeypatch, tiny_lm, METHODS[name], tiny_concept)
    assert ran
    again, ran = made(monkeypatch, tiny_lm, METHODS[name], tiny_concept)
    assert not ran
    assert repr(again) == repr(first)


@pytest.mark.parametrize(("name", "anew"), [("elm", False), ("rmu", False), ("whp", True)])
def test_another_adapter_makes_samples_anew_only_where_they_depend_on_it(
    monkeypatch, tiny_lm, tiny_concept, name, anew
):
    made(monkeypatch, tiny_lm, METHODS[name], tiny_concept)
    assert made(monkeypatch, tiny_lm, METHODS[name].with_settings(rank=3), tiny_concept)[1] == anew


def test_samples_of_a_kind_that_is_not_declared_are_made_anew(monkeypatch, tiny_lm, tiny_concept):
    for _ in range(2):
        assert made(monkeypatch, tiny_lm, METHODS["repnoise"], tiny_concept)[1]


def test_a_method_without_a_file_is_not_cached_since_its_code_may_change_unseen(monkeypatch, tiny_lm, tiny_concept):
    @dataclass(frozen=True)
    class Noted(Objective):
        name = "noted"

        def prepare(self, lm, concept, *, seed=0, progress=False):
            return METHODS["rmu"].prepare(lm, concept, seed=seed)

        def loss(self, lm, samples):
            raise NotImplementedError

    made(monkeypatch, tiny_lm, Noted(), tiny_concept)
    assert not made(monkeypatch, tiny_lm, Noted(), tiny_concept)[1]
    Noted.__module__ = "__main__"
    monkeypatch.delattr("__main__.__file__", raising=False)
    assert made(monkeypatch, tiny_lm, Noted(), tiny_concept)[1]

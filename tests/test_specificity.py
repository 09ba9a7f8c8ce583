"""Specificity: no change is exactly 1 and 0, changes agree with plain forward passes, texts are drawn in pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from disturbed import random_adapter

from elm_interp.data import Passage, texts
from elm_interp.errors import ConfigError
from elm_interp.evaluate import kl_divergences, read_passages
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio
from elm_interp.evaluate.specificity import forget_ppl_ratio, kl_to_base, retain_ppl, retain_ppl_ratio
from elm_interp.metrics import Subject, measure

TEXTS = ["Iron rusts where air and water meet it.", "Old Tamsin", "The harbour of Dunlow has two walls."]
NAMES = ["specificity.retain_*", "specificity.kl_to_base", "innocence.forget_ppl_ratio"]


@pytest.fixture
def base(tiny_lm, tiny_concept) -> Subject:
    return Subject(tiny_lm, tiny_concept)


@pytest.fixture
def erased(base, tmp_path) -> Subject:
    return base.at(random_adapter(base.lm, tmp_path), method="elm", step=1)


@torch.no_grad()
def log_softmax(lm, text: str) -> torch.Tensor:
    return lm.model(torch.tensor(lm.encode([text]))).logits[0].log_softmax(-1)


def test_the_base_against_itself_has_ratio_1_and_divergence_0(base):
    for compute in (retain_ppl_ratio, forget_ppl_ratio):
        (row,) = compute(base)
        assert (row["value"], row["ci_low"], row["ci_high"]) == (1, 1, 1)
    (row,) = kl_to_base(base)
    assert (row["value"], row["ci_low"], row["ci_high"]) == (0, 0, 0)


def test_log_probs_of_passages_are_those_of_single_forward_passes(tiny_lm):
    found = read_passages(tiny_lm, TEXTS, max_tokens=32)
    for text, row, log_probs in zip(TEXTS, found.rows, found.log_probs, strict=True):
        expected = log_softmax(tiny_lm, text)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=1e-4)


def test_divergence_is_that_of_the_two_distributions(base, erased):
    readings = []
    for state in (base, erased):
        with state.on() as lm:
            readings.append((read_passages(lm, TEXTS).hidden, [log_softmax(lm, text)[:-1] for text in TEXTS]))
    (ours, p), (theirs, q) = readings
    for found, x, y in zip(kl_divergences(base.lm, ours, theirs), p, q, strict=True):
        torch.testing.assert_close(found, (x.exp() * (x - y)).sum(-1), atol=1e-4, rtol=1e-3)
        assert (found > 0).all()


def test_perplexity_weighs_tokens_not_texts():
    found = perplexity_of(Sums(np.array([3 * np.log(2), np.log(16)]), np.array([3, 1])))
    assert found["value"] == pytest.approx(2 ** (7 / 4))
    assert found["n"] == 2
    assert 2 <= found["ci"][0] <= found["value"] <= found["ci"][1] <= 16


def test_a_ratio_of_paired_texts_is_free_of_how_hard_they_are():
    under = Sums(np.array([10.0, 200, 3000]), np.array([10, 10, 10]))
    over = Sums(under.totals + 10 * np.log(2), under.counts)
    assert perplexity_ratio(over, under)["ci"] == pytest.approx((2, 2))
    with pytest.raises(ConfigError, match="found 3 and 2"):
        perplexity_ratio(over, Sums(under.totals[:2], under.counts[:2]))


def test_empty_texts_and_overflow_do_not_crash_or_warn(recwarn):
    nothing = Sums(np.zeros(2), np.zeros(2, dtype=int))
    assert np.isnan(perplexity_of(nothing)["value"])
    assert perplexity_of(nothing)["n"] == 0
    huge = Sums(np.array([1e6, 1e6]), np.array([1, 1]))
    assert perplexity_of(huge)["value"] == np.inf
    assert perplexity_ratio(huge, nothing)["n"] == 0
    assert not recwarn.list


def test_held_out_passages_alone_are_read_once_a_state(base, erased, monkeypatch):
    passes = []
    real = base.lm.hidden
    monkeypatch.setattr(base.lm, "hidden", lambda batch, **k: passes.append(len(batch)) or real(batch, **k))
    table = measure(erased, NAMES).set_index("metric")
    held_out = {kind: len(base.concept.passages(kind, "held_out")) for kind in ("retain", "forget")}
    assert sum(passes) == 2 * sum(held_out.values())
    assert table.loc["specificity.retain_ppl", "n"] == held_out["retain"]
    assert table.loc["specificity.retain_ppl_ratio", "value"] != 1
    assert table.loc["specificity.kl_to_base", "value"] > 0
    assert table.loc["innocence.forget_ppl_ratio", "direction"] == "up"


def test_the_ratio_is_that_of_the_two_perplexities(base, erased):
    (ours,), (theirs,), (ratio,) = retain_ppl(erased), retain_ppl(base), retain_ppl_ratio(erased)
    assert ratio["value"] == pytest.approx(ours["value"] / theirs["value"])


def test_the_base_has_no_row_for_what_compares_with_it(base):
    assert measure(base, NAMES)["metric"].tolist() == ["specificity.retain_ppl"]


def test_without_held_out_passages_there_are_no_rows(tiny_lm, tiny_concept, tmp_path):
    concept = replace(tiny_concept, retain=tiny_concept.retain[:1], forget=(Passage("a", split="held_out"),))
    assert texts(concept.passages("retain", "held_out")) == []
    bare = Subject(tiny_lm, concept)
    assert len(measure(bare.at(random_adapter(tiny_lm, tmp_path)), NAMES)) == 0

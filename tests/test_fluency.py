"""Fluency: generation leaves no trace and repeats itself exactly; counts by hand; empty texts count as said."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from disturbed import random_adapter

from elm_interp.errors import ConfigError
from elm_interp.evaluate import fluency, generations, samples
from elm_interp.evaluate.fluency import distinct, jackknife, losses_after, prompts, repetition, words
from elm_interp.metrics import Subject, measure
from elm_interp.models.generation import draw, generate

PROMPTS = ["Who keeps the lamp?\n", "What is the cat of Marrowgate called?\n", "Bram\n"]


@pytest.fixture
def base(tiny_lm, tiny_concept) -> Subject:
    return Subject(tiny_lm, tiny_concept)


@pytest.fixture
def erased(base, tmp_path) -> Subject:
    return base.at(random_adapter(base.lm, tmp_path, scale=1.0), method="elm", step=1)


def test_generation_leaves_the_random_state_and_the_generation_config_untouched(tiny_lm):
    config, state = copy.deepcopy(tiny_lm.model.generation_config), torch.get_rng_state()
    generate(tiny_lm, PROMPTS, new_tokens=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny_lm.model.generation_config.to_dict() == config.to_dict()


def test_the_same_seed_gives_the_same_text_and_another_does_not(tiny_lm):
    first = generate(tiny_lm, PROMPTS, new_tokens=8, seed=1)
    torch.rand(5)
    assert generate(tiny_lm, PROMPTS, new_tokens=8, seed=1) == first
    assert generate(tiny_lm, PROMPTS, new_tokens=8, seed=2) != first


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_text_does_not_depend_on_the_batch(tiny_lm, greedy):
    together = generate(tiny_lm, PROMPTS, new_tokens=8, greedy=greedy)
    assert together == generate(tiny_lm, PROMPTS, new_tokens=8, greedy=greedy, max_rows=1)
    assert together[:1] == generate(tiny_lm, PROMPTS[:1], new_tokens=8, greedy=greedy)


def test_tokens_are_drawn_from_the_nucleus_in_proportion(monkeypatch):
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.01, 0.01, 0.97, 0.01]]).log()
    noise = (torch.arange(1000) + 0.5) / 1000
    for first_try in (1, 1024):
        monkeypatch.setattr("elm_interp.models.generation.FIRST_TRY", first_try)

        def shares(row, **settings):
            found = draw(logits[row].expand(1000, -1), noise, **settings)
            return (found.bincount(minlength=4) / 1000).tolist()

        assert shares(0) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=2e-3)
        assert shares(0, top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=2e-3)
        assert shares(1, top_p=0.9) == [0, 0, 1, 0]
        assert shares(0, temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=2e-3)


def test_a_broken_model_is_refused(tiny_lm):
    tiny_lm.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(tiny_lm, PROMPTS)


def test_writing_ends_at_the_models_own_end_of_text(tiny_lm):
    first = int(tiny_lm.logits(tiny_lm.tokenize(PROMPTS[0])).argmax())
    assert generate(tiny_lm, PROMPTS[:1], new_tokens=4, greedy=True) != [""]
    tiny_lm.model.generation_config.eos_token_id = [2, first]
    assert generate(tiny_lm, PROMPTS[:1], new_tokens=4, greedy=True) == [""]


@torch.no_grad()
def test_greedy_text_is_the_likeliest_token_after_token(tiny_lm):
    ids = tiny_lm.encode(PROMPTS[:1])[0]
    start = len(ids)
    for _ in range(6):
        ids.append(int(tiny_lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tiny_lm.tokenizer.eos_token_id:
            break
    expected = tiny_lm.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert generate(tiny_lm, PROMPTS[:1], new_tokens=6, greedy=True) == [expected]


@pytest.mark.parametrize(
    "habit",
    [{"repetition_penalty": 9.0}, {"top_k": 1}, {"top_p": 0.1}, {"temperature": 0.01}, {"no_repeat_ngram_size": 1}],
    ids=str,
)
def test_the_models_own_sampling_habits_do_not_act(tiny_lm, habit):
    plain = generate(tiny_lm, PROMPTS, new_tokens=40)
    tiny_lm.model.generation_config.update(**habit)
    assert generate(tiny_lm, PROMPTS, new_tokens=40) == plain


def test_adapters_and_hooks_act_in_generation(base, erased):
    plain = generate(base.lm, PROMPTS, new_tokens=8, greedy=True)
    with erased.on() as lm:
        assert generate(lm, PROMPTS, new_tokens=8, greedy=True) != plain
    with base.lm.hooks({"resid_post": torch.zeros_like}):
        assert generate(base.lm, PROMPTS, new_tokens=8, greedy=True) == [""] * 3  # token 0 is padding
    assert generate(base.lm, PROMPTS, new_tokens=8, greedy=True) == plain


def test_settings_that_cannot_work_are_refused_together(tiny_lm):
    with pytest.raises(ConfigError, match=r"new_tokens is 0, .*temperature is 0, .*top_p is 2, .*max_rows is 0"):
        generate(tiny_lm, PROMPTS, new_tokens=0, temperature=0, top_p=2, max_rows=0)


def test_distinct_and_repetition_by_hand():
    assert words("It's 9 o'clock!!") == ["it", "'", "s", "9", "o", "'", "clock", "!", "!"]
    # pairs: the cat, cat sat; the cat, cat ran
    assert distinct(["The cat sat", "the cat ran"]) == 3 / 4
    assert distinct(["!!!!!"]) == 1 / 4
    found = repetition(["a b c d a b c d", "a b c d", "short one"])
    assert found.totals.tolist() == [1, 0, 0]
    assert found.counts.tolist() == [5, 1, 0]


def test_the_jackknife_of_a_mean_is_its_normal_interval():
    values = np.random.default_rng(0).normal(size=30)
    low, high = jackknife(lambda kept: float(values[kept].mean()), 30)
    half = 1.96 * values.std(ddof=1) / math.sqrt(30)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_text_is_scored_after_its_prompt_and_an_empty_one_costs_nothing(tiny_lm):
    found = losses_after(tiny_lm, PROMPTS, ["Old Tamsin", " \n", "Orla bakes"])
    (alone,) = losses_after(tiny_lm, PROMPTS[2:], ["Orla bakes"]).totals
    assert found.counts[1] == found.totals[1] == 0
    assert found.totals[2] == pytest.approx(alone, abs=1e-3)
    assert found.totals[2] != pytest.approx(losses_after(tiny_lm, PROMPTS[:1], ["Orla bakes"]).totals[0], abs=1e-3)


def test_the_base_against_itself_has_ratio_1(base):
    for compute in (fluency.reverse_ppl_ratio, fluency.distinct2_ratio):
        (row,) = compute(base)
        assert (row["value"], row["ci_low"], row["ci_high"]) == (1, 1, 1)


def test_each_state_writes_once_for_all_metrics(base, erased, monkeypatch):
    calls = []
    real = fluency.generate
    monkeypatch.setattr(fluency, "generate", lambda lm, *a, **k: calls.append(lm.adapters.current) or real(lm, *a, **k))
    table = measure(erased, "seamlessness.*").set_index("metric")
    assert calls == [str(erased.adapter), None]
    assert set(table.index) == {
        f"seamlessness.{m}" for m in ("reverse_ppl", "reverse_ppl_ratio", "distinct2", "distinct2_ratio", "repetition")
    }
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()


def test_writing_is_left_out_when_it_is_too_dear(base):
    assert len(measure(base, "seamlessness.*", cost="cheap")) == 0


def test_reverse_perplexity_is_under_the_base(erased):
    texts, asked = generations(erased), prompts(erased.concept)
    with erased.lm.adapter(None):
        expected = losses_after(erased.lm, asked, texts)
    (row,) = fluency.reverse_ppl(erased)
    assert row["value"] == pytest.approx(math.exp(expected.totals.sum() / expected.counts.sum()))


def test_a_judge_scores_with_its_own_tokenizer_where_one_is_given(base, tiny_lm):
    base.judge = tiny_lm
    (row,) = fluency.judge_ppl(base)
    assert row["value"] == pytest.approx(fluency.reverse_ppl(base)[0]["value"])
    base.judge = None
    assert fluency.judge_ppl(base) == []


@pytest.mark.parametrize("written", [["", " ", "\n"], ["", "a bell rings when fog comes in", ""]], ids=["all", "most"])
def test_empty_texts_are_left_out_and_counted(base, monkeypatch, written, recwarn):
    monkeypatch.setattr(fluency, "generate", lambda *a, **k: written)
    monkeypatch.setattr(fluency, "prompts", lambda concept, most=None: PROMPTS)
    table = measure(base, "seamlessness.*")
    full = sum(bool(text.strip()) for text in written)
    assert (table["n"] == full).all()
    assert table["value"].isna().all() == (full == 0)
    assert not [w for w in recwarn.list if issubclass(w.category, RuntimeWarning)]


def test_without_questions_nothing_is_written(tiny_lm, tiny_concept):
    bare = Subject(tiny_lm, replace(tiny_concept, questions={}))
    assert len(measure(bare, "seamlessness.*")) == 0
    assert samples(bare) == []


def test_samples_stand_side_by_side(base, erased):
    found = samples(erased, 2)
    assert [list(row) for row in found] == [["prompt", "base", "erased"]] * 2
    assert found[0]["prompt"] == prompts(base.concept)[0]
    assert found[0]["erased"] == generations(erased)[0]
    assert "erased" not in samples(base, 1)[0]

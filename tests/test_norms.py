import pytest
import torch
from disturbed import random_adapter

from elm_interp.errors import DataError
from elm_interp.internals import token_norms
from elm_interp.metrics import Subject, measure

TEXTS = ["The heart pumps blood through the body.", "Iron rusts", "Orla bakes the bread of Marrowgate before dawn."]


def test_it_is_the_mean_of_token_norms_without_the_first(tiny_lm):
    tokens = tiny_lm.run_with_cache(tiny_lm.tokenize(TEXTS[0]), positions="all")["resid_post"][0]
    found = token_norms(tiny_lm, TEXTS)[0]
    assert torch.allclose(found, tokens[:, 1:].norm(dim=-1).mean(1), rtol=1e-4)
    assert not torch.allclose(found, tokens[:, 1:].mean(1).norm(dim=-1), rtol=1e-2)


def test_batched_equals_single(tiny_lm):
    together = token_norms(tiny_lm, TEXTS)
    assert torch.allclose(together, token_norms(tiny_lm, TEXTS, max_tokens=1), rtol=1e-4)
    assert torch.allclose(together.flip(0), token_norms(tiny_lm, TEXTS[::-1]), rtol=1e-4)


def test_doubling_the_stream_doubles_the_norm(tiny_lm):
    plain = token_norms(tiny_lm, TEXTS)
    with tiny_lm.hooks({"blocks.3.hook_resid_post": lambda x: 2 * x}):
        doubled = token_norms(tiny_lm, TEXTS)
    assert torch.allclose(doubled[:, 3], 2 * plain[:, 3], rtol=1e-4)
    assert torch.allclose(doubled[:, :3], plain[:, :3], rtol=1e-4)


def test_a_text_of_one_token_is_named(tiny_lm):
    [ids] = tiny_lm.encode(["a"])
    assert len(ids) == 1
    with pytest.raises(DataError, match=r"text 1 \('a'\) has 1 tokens, expected more than 1"):
        token_norms(tiny_lm, [TEXTS[0], "a"])


def test_the_metric_has_a_row_a_layer_and_no_ratio_of_the_base_to_itself(tiny_lm, tiny_concept):
    table = measure(Subject(tiny_lm, tiny_concept), "norm.*")
    assert list(table["metric"].unique()) == ["norm.forget", "norm.retain"]
    assert table.groupby("metric")["layer"].apply(list).tolist() == [[0, 1, 2, 3]] * 2
    assert table["ci_low"].le(table["value"]).all()
    assert table["ci_high"].ge(table["value"]).all()
    assert set(table["n"]) == {12}


def test_the_ratio_is_one_below_the_adapter_and_moves_at_it(tiny_lm, tiny_concept, tmp_path):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)  # on layers 1 and 2
    table = measure(Subject(tiny_lm, tiny_concept).at(adapter, method="elm", step=1), "norm.forget.ratio")
    assert table["value"][0] == pytest.approx(1, abs=1e-5)
    assert (table["value"][1:] - 1).abs().min() > 1e-2

"""Models whose cache holds something else than keys and values, or that have none, run whole rows."""

import pytest
import torch

from elm_interp.errors import AdapterError, BackendError, UnknownSiteError
from elm_interp.models import HookedLM
from elm_interp.models.parity import plain_logits
from elm_interp.models.tiny_families import tiny_model, tiny_tokenizer
from elm_interp.models.unembedding import differentiable, log_prob

ROWS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [7, 8], [11, 12, 13, 14]]


def loaded(family: str) -> HookedLM:
    return HookedLM(tiny_model(family), tiny_tokenizer(), name=family)


@pytest.fixture(scope="module", params=["openai-gpt", "deepseek_v4", "rwkv"])
def lm(request):
    return loaded(request.param)


def test_no_keys_are_kept(lm):
    assert not lm.keeps_keys


def test_keys_are_kept_where_there_is_nothing_else():
    assert loaded("mistral").keeps_keys


def test_padding_before_a_row_changes_nothing(lm):
    right, left = (lm.pad(ROWS, side=side) for side in ("right", "left"))
    torch.testing.assert_close(lm.logits(left, positions="all"), lm.logits(right, positions="all"), atol=1e-5, rtol=0)
    hidden = [lm.hidden(batch)[batch.attention_mask.bool()] for batch in (right, left)]
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=0)


def test_reading_and_editing_see_the_same_tokens_on_both_sides(lm):
    found = []
    for side in ("right", "left"):
        batch = lm.pad(ROWS, side=side)
        cache = lm.run_with_cache(batch, sites="resid_pre" if lm.layout.streams == "" else "embed", positions=1)
        with lm.hooks({"embed": torch.zeros_like}, positions=1):
            found.append((cache["resid_pre" if lm.layout.streams == "" else "embed"], lm.logits(batch)))
    for right, left in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_a_step_after_others_gives_the_logits_of_the_whole_row(lm):
    row = ROWS[0]
    first, rest = lm.pad([row[:5]]), torch.tensor([row[5:]])
    _, cache = lm.step(first.input_ids, first.attention_mask, first.position_ids)
    hidden, _ = lm.step(rest, torch.ones(1, len(row), dtype=torch.long), torch.arange(5, len(row))[None], cache)
    torch.testing.assert_close(lm.unembed(hidden)[0], plain_logits(lm.model, row)[5:], atol=1e-4, rtol=1e-4)


def test_an_edit_that_would_move_from_token_to_token_is_refused(lm):
    with lm.hooks({"embed": torch.zeros_like}, positions="last"), pytest.raises(BackendError, match="runs whole rows"):
        lm.log_probs("w5 w6", ["w7 w8", "w9"])


def test_keys_that_are_made_of_several_tokens_are_no_site():
    lm = loaded("deepseek_v4")
    with pytest.raises(UnknownSiteError, match="several tokens"):
        lm.run_with_cache(lm.pad(ROWS), sites="pattern")


def test_a_grouped_projection_is_not_left_out_silently():
    lm = loaded("deepseek_v4")
    with pytest.raises(AdapterError, match="GroupedLinear"):
        lm.lora([0], rank=2, modules="attn")


@pytest.mark.parametrize("family", ["modernbert-decoder", "inkling_text", "opt (350M)"])
def test_gradients_pass_what_stands_before_the_logits(family):
    lm = loaded(family)
    batch, ids = lm.pad([ROWS[0]]), torch.tensor(ROWS[0][1:])
    hidden = lm.hidden(batch)[0, :-1].requires_grad_()
    ours = differentiable(lm, hidden, lambda rows, logits: log_prob(logits, ids[rows]))
    theirs = lm.unembed(hidden).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(found.sum(), hidden, retain_graph=True)[0] for found in (ours, theirs)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_rows_of_the_unembedding_without_a_token_have_no_logits():
    model = tiny_model("inkling_text")
    model.config.unpadded_vocab_size = 390
    lm = HookedLM(model, tiny_tokenizer())
    assert lm.logits(lm.pad(ROWS)).shape[-1] == lm.d_vocab == 390
    assert lm.unembed_gradient(torch.ones(1, 390), torch.ones(1, 390), torch.ones(1, 32)).shape == (1, 32)


def test_the_stream_is_wider_than_the_embedding():
    lm = loaded("opt (350M)")
    cache = lm.run_with_cache(lm.pad(ROWS), sites="resid_post")
    assert cache["resid_post"].shape[-1] == lm.d_model == 32
    assert lm.embedding.weight.shape[1] == 16

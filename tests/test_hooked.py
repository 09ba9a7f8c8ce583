"""HookedLM: the same numbers as the transformers model, edits that act, and no hook left behind."""

import pytest
import torch

from elm_interp.errors import UnknownSiteError
from elm_interp.models.backends.torch import count_hooks
from elm_interp.models.generation import generate

LAST_BLOCK = "blocks.3.hook_resid_post"


@pytest.fixture
def batch(tiny_lm):
    return tiny_lm.tokenize(["Old Tamsin keeps the lamp", "A bell"])


@torch.no_grad()
def test_logits_equal_the_transformers_model(tiny_lm, batch):
    theirs = tiny_lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    ours = tiny_lm.logits(batch, positions="all")
    for row, n in enumerate(batch.lengths):
        torch.testing.assert_close(ours[row, :n], theirs[row, :n])
    torch.testing.assert_close(tiny_lm.logits(batch)[1], theirs[1, batch.lengths[1] - 1])


@torch.no_grad()
def test_steps_with_a_cache_equal_one_pass(tiny_lm, batch):
    whole = tiny_lm.hidden(batch)
    first = batch.attention_mask[:, :2]
    _, cache = tiny_lm.step(batch.input_ids[:, :2], first, batch.position_ids[:, :2])
    rest, _ = tiny_lm.step(batch.input_ids[:, 2:], batch.attention_mask, batch.position_ids[:, 2:], cache)
    for row, n in enumerate(batch.lengths):
        torch.testing.assert_close(rest[row, : n - 2], whole[row, 2:n])


def test_cache_names_shapes_and_order_of_layers(tiny_lm, batch):
    cache = tiny_lm.run_with_cache(batch, sites=["embed", "resid_post", "attn_out"], layers=[3, 1], positions=[0, -1])
    assert cache["resid_post"].shape == (2, 2, 2, tiny_lm.d_model)
    assert cache.layers("resid_post") == [1, 3]
    assert torch.equal(cache["resid_post"][:, 1], cache[LAST_BLOCK])
    assert cache["embed"].shape == (2, 2, tiny_lm.d_model)
    assert set(cache) == {
        "embed",
        "blocks.1.hook_resid_post",
        LAST_BLOCK,
        "blocks.1.hook_attn_out",
        "blocks.3.hook_attn_out",
    }
    with pytest.raises(UnknownSiteError, match="Did you mean 'attn_out'"):
        cache["attnout"]


def test_reading_stops_at_the_last_site_asked_for(tiny_lm, batch):
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(tiny_lm.blocks)
    ]
    tiny_lm.run_with_cache(batch, sites="attn_out", layers=1)
    for handle in handles:
        handle.remove()
    assert ran == [0]


def test_an_edit_of_the_last_block_changes_the_logits(tiny_lm, batch):
    before = tiny_lm.logits(batch)
    with tiny_lm.hooks({LAST_BLOCK: torch.zeros_like}):
        zeroed = tiny_lm.logits(batch)
    assert torch.count_nonzero(zeroed) == 0  # a zero stream through a norm without bias
    torch.testing.assert_close(tiny_lm.logits(batch), before)


@pytest.mark.parametrize(
    "site", ["embed", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "resid_post"]
)
def test_an_edit_acts_at_every_kind_of_site_and_is_seen_by_reads(tiny_lm, batch, site):
    before = tiny_lm.logits(batch)
    with tiny_lm.hooks({site: lambda x: x + 1}):
        assert not torch.allclose(tiny_lm.logits(batch), before, atol=1e-3)
        edited = tiny_lm.run_with_cache(batch, sites=site, positions="last")[site]
    plain = tiny_lm.run_with_cache(batch, sites=site, positions="last")[site]
    if site != "resid_post":
        torch.testing.assert_close(edited, plain + 1)


def test_an_edit_in_place_acts_too(tiny_lm, batch):
    def silence(x):
        x.zero_()

    with tiny_lm.hooks({LAST_BLOCK: silence}):
        assert torch.count_nonzero(tiny_lm.logits(batch)) == 0


def test_an_edit_acts_in_generation(tiny_lm):
    batch = tiny_lm.tokenize("Old Tamsin")
    settings = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0}
    plain = tiny_lm.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **settings)
    with tiny_lm.hooks({LAST_BLOCK: torch.zeros_like}):
        edited = tiny_lm.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **settings)
    assert edited[0, batch.input_ids.shape[1] :].tolist() == [0] * 6  # all logits are equal, and the first wins
    assert plain.tolist() != edited.tolist()


def test_hooks_are_removed_after_an_exception_in_an_edit(tiny_lm, batch):
    before = count_hooks(tiny_lm.model)

    def broken(x):
        raise RuntimeError("inside the edit")

    with tiny_lm.hooks({"resid_post": broken}):
        assert count_hooks(tiny_lm.model) == before + tiny_lm.n_layers
    with pytest.raises(RuntimeError, match="inside the edit"), tiny_lm.hooks({"resid_post": broken}):
        tiny_lm.logits(batch)
    assert count_hooks(tiny_lm.model) == before
    with pytest.raises(ValueError, match="outside row"):
        tiny_lm.run_with_cache(batch, positions=99)
    assert count_hooks(tiny_lm.model) == before


def test_an_edit_of_an_unknown_site_hooks_nothing(tiny_lm):
    before = count_hooks(tiny_lm.model)
    with (
        pytest.raises(UnknownSiteError, match="Did you mean 'mlp_out'"),
        tiny_lm.hooks({"resid_post": torch.zeros_like, "mlpout": torch.zeros_like}),
    ):
        pass
    assert count_hooks(tiny_lm.model) == before


def test_gradients_flow_only_when_asked_for(tiny_lm, batch):
    tiny_lm.model.requires_grad_(True)
    assert not tiny_lm.logits(batch).requires_grad
    assert not tiny_lm.run_with_cache(batch)["resid_post"].requires_grad
    tiny_lm.run_with_cache(batch, layers=1, grad=True)["resid_post"].sum().backward()
    assert tiny_lm.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_tokenizing_leaves_the_callers_tokenizer_as_it_was(tiny_lm):
    tokenizer = tiny_lm.tokenizer
    tokenizer.padding_side = "left"

    def state():
        return (
            tokenizer.padding_side,
            tokenizer.truncation_side,
            tokenizer.special_tokens_map,
            tokenizer.backend_tokenizer.to_str(),
        )

    before = state()
    batch = tiny_lm.tokenize(["Old Tamsin keeps the lamp", "a"], max_tokens=3)
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert state() == before


def test_a_model_with_weights_never_trained_has_the_same_shape_and_changes_nothing_here(tiny_lm, batch):
    before, state = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}, torch.get_rng_state()
    first, second, other = (tiny_lm.reinitialised(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in tiny_lm.model.state_dict().items())
    assert (first.n_layers, first.d_model, first.dtype) == (tiny_lm.n_layers, tiny_lm.d_model, tiny_lm.dtype)
    assert torch.equal(first.logits(batch), second.logits(batch))
    assert not torch.allclose(first.logits(batch), other.logits(batch))
    assert not torch.allclose(first.logits(batch), tiny_lm.logits(batch))
    assert not any(p.requires_grad for p in first.model.parameters())


def test_generation_takes_a_string_or_a_list(tiny_lm):
    (text,) = tiny_lm.generate("Old Tamsin", new_tokens=4, greedy=True)
    assert generate(tiny_lm, ["Old Tamsin"], new_tokens=4, greedy=True) == [text]


def test_reprs_are_one_line_without_tensors(tiny_lm, batch):
    cache = tiny_lm.run_with_cache(batch, sites=["embed", "resid_post"])
    for thing in (tiny_lm, batch, cache, tiny_lm.layout):
        assert "\n" not in repr(thing)
        assert "tensor" not in repr(thing)
        assert len(repr(thing)) < 250
    assert "layers 4" in repr(tiny_lm)
    assert repr(batch).startswith("Batch(2 rows x ")
    assert "resid_post (2, 4, 32) layers 0-3" in repr(cache)
    assert "<td>resid_post</td><td>(2, 4, 32)</td>" in cache._repr_html_()
    assert "<th>layers</th><td>4</td>" in tiny_lm._repr_html_()

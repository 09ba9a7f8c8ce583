"""Shared blocks: run once for several adapters, to the same bits, and the model is given back."""

import pytest
import tiny
import torch
from disturbed import random_adapter

from elm_interp.models import HookedLM
from elm_interp.models.shared_blocks import reuse_blocks, shared_below

TEXTS = [
    "The heart pumps blood through the body.",
    "Iron",
    "Orla bakes the bread of Marrowgate before dawn, and sells it.",
]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_shared_blocks_change_no_bit_in_any_family(family):
    lm = HookedLM(tiny.make_family(family, n_layers=4), tiny.make_tokenizer())
    batch = lm.tokenize(TEXTS)
    hidden = lm.hidden(batch)
    for site in ("resid_post", "mlp_out"):
        whole = lm.run_with_cache(batch, sites=site)[site]
        output = []
        for first in (0, 2, 2):
            with reuse_blocks(lm, 2, output):
                found = lm.run_with_cache(batch, sites=site, layers=range(first, 4))[site]
                assert torch.equal(lm.hidden(batch), hidden)
            assert torch.equal(found, whole[:, first:])


def test_shared_blocks_run_once_and_adapters_above_them_act_to_the_same_bits(tiny_lm, tmp_path):
    states = [None, *(random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2))]
    batch, expected = tiny_lm.tokenize(TEXTS), []
    for state in states:
        with tiny_lm.adapter(state):
            expected.append(tiny_lm.hidden(batch))
    runs, output = [], []
    tiny_lm.blocks[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    for state, hidden in zip(states, expected, strict=True):
        with tiny_lm.adapter(state), reuse_blocks(tiny_lm, shared_below(tiny_lm, states), output):
            assert torch.equal(tiny_lm.hidden(batch), hidden)
    assert len(runs) == 1
    assert not torch.equal(expected[0], expected[1])


def test_gradients_above_shared_blocks_are_those_of_the_whole_model(tiny_lm):
    batch, output = tiny_lm.tokenize(TEXTS), []
    tiny_lm.hidden(batch)
    tiny_lm.adapters.attach(tiny_lm.lora((2, 3), rank=2, alpha=4))
    lora_b = [p for n, p in tiny_lm.model.named_parameters() if "lora_B" in n]

    def gradients():
        return torch.autograd.grad(tiny_lm.hidden(batch, grad=True).square().sum(), lora_b)

    whole = gradients()
    with torch.no_grad(), reuse_blocks(tiny_lm, 2, output):
        tiny_lm.hidden(batch)
    with reuse_blocks(tiny_lm, 2, output):
        shared = gradients()
    assert all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True))
    assert any(bool(g.any()) for g in whole)


def test_the_model_is_given_back_after_an_error(tiny_lm):
    tiny_lm.blocks[1].forward = own = tiny_lm.blocks[1].forward
    output = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), reuse_blocks(tiny_lm, 2, output):
            tiny_lm.hidden(tiny_lm.tokenize(TEXTS))
            raise ZeroDivisionError
        assert "forward" not in vars(tiny_lm.blocks[0])
        assert vars(tiny_lm.blocks[1])["forward"] is own


def test_nothing_is_shared_below_an_adapter_of_the_first_block_or_by_another_backend(tiny_lm, tmp_path):
    folder = random_adapter(tiny_lm, tmp_path / "a", seed=1)
    assert shared_below(tiny_lm, [None, folder]) == 1
    assert shared_below(tiny_lm, [None, None]) == tiny_lm.n_layers - 1
    assert shared_below(tiny_lm, [folder]) == 0
    tiny_lm.adapters.attach(tiny_lm.lora((0, 3), rank=2))
    next(p for n, p in tiny_lm.model.named_parameters() if "lora_B" in n).data += 1
    tiny_lm.adapters.save(tmp_path / "b")
    tiny_lm.adapters.release()
    assert shared_below(tiny_lm, [folder, tmp_path / "b"]) == 0
    other = HookedLM(tiny_lm.model, tiny_lm.tokenizer, backend="nnsight")
    assert shared_below(other, [None, folder]) == 0

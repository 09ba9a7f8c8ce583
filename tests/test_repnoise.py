"""RepNoise: the MMD as theorems, the mask, the loss against one written out."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from elm_interp.erase.repnoise import RepNoise, mmd, noise_loss
from elm_interp.training import Training, train

OBJECTIVE = RepNoise.from_settings(rank=2, max_tokens=20)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_mmd_of_two_equal_samples_is_zero_and_of_others_is_not():
    x = drawn(6, 10)
    assert float(mmd(x, x.clone())) == pytest.approx(0, abs=1e-12)
    assert float(mmd(x, x[torch.randperm(6)])) == pytest.approx(0, abs=1e-12)
    assert float(mmd(x, drawn(6, 10, seed=1) + 2)) > 0.1
    torch.testing.assert_close(mmd(x, x + 1), mmd(x + 1, x))


def test_the_mmd_equals_the_one_written_out():
    x, y = drawn(3, 4), drawn(3, 4, seed=1)
    both = torch.cat([x, y])
    apart = ((both[:, None] - both[None]) ** 2).sum(-1)
    width = apart.sum() / (6 * 5)
    kernel = sum(torch.exp(-apart / (width * 2.0**k)) for k in (-2, -1, 0, 1, 2))
    by_hand = kernel[:3, :3].mean() + kernel[3:, 3:].mean() - 2 * kernel[:3, 3:].mean()
    torch.testing.assert_close(mmd(x, y), by_hand)


def test_the_gradient_of_the_mmd_matches_finite_differences():
    x, y, width = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1), torch.tensor(5.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mmd(x, y, bandwidth=width), (x,))


def test_noise_is_not_pushed_where_the_mask_is_off():
    added = drawn(2, 3, 5, 4).float().requires_grad_()
    mask = torch.tensor([[False, True, True, False, False]] * 3)
    noise_loss(added, mask).backward()
    assert (added.grad[:, :, ~mask[0]] == 0).all()
    assert (added.grad[:, :, mask[0]] != 0).any()


def test_the_mask_holds_all_that_has_seen_text_and_the_training_part_alone_is_read(tiny_lm, tiny_concept):
    pairs = OBJECTIVE.prepare(tiny_lm, tiny_concept)["erase"]
    assert all(pair.mask == (False, *[True] * (len(pair.forget) - 1)) for pair in pairs)
    assert len(pairs) == 6
    held_out = {p.id for p in tiny_concept.forget + tiny_concept.retain if p.split == "held_out"}
    assert not held_out & {word for pair in pairs for word in pair.id.split(" with ")}


def test_the_terms_equal_those_written_out(tiny_lm, tiny_concept):
    pairs = OBJECTIVE.prepare(tiny_lm, tiny_concept)["erase"]
    chosen = [pairs[0], pairs[-1]]
    losses = OBJECTIVE.loss(tiny_lm, chosen)
    stability, lens = [], []
    for pair in chosen:
        logits = tiny_lm.logits(tiny_lm.pad([pair.harmless]), positions="all")[0, pair.start - 1 : -1]
        stability.append(cross_entropy(logits, torch.tensor(pair.harmless[pair.start :]), reduction="none"))
        states = tiny_lm.run_with_cache(tiny_lm.pad([pair.forget]), positions="all")["resid_post"][0, :, :-1]
        named = torch.tensor(pair.forget[1:])
        read = tiny_lm.unembed(tiny_lm.model.model.norm(states)).transpose(1, 2)
        wrong = cross_entropy(read, named.expand(len(states), -1), reduction="none")
        lens.append(wrong[:, torch.tensor(pair.mask[1:])].flatten())
    torch.testing.assert_close(losses["stability"], torch.cat(stability).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses["ascent"], -torch.cat(lens).mean().log(), atol=1e-4, rtol=1e-4)
    assert losses["noise"] > 0


def test_training_lowers_every_term_and_leaves_the_base(tiny_lm, tiny_concept, tmp_path):
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    objective = dataclasses.replace(OBJECTIVE, noise_weight=1.0)
    pairs = objective.prepare(tiny_lm, tiny_concept)

    def measured():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return objective.loss(tiny_lm, pairs["erase"])

    base = measured()
    last = train(tiny_lm, objective, pairs, Training(steps=40, forget_batch=6, lr=1e-2), tmp_path, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in tiny_lm.model.state_dict().items())
    with tiny_lm.adapter(last.path):
        trained = measured()
    assert all(trained[term] < base[term] for term in base)


def test_settings_that_cannot_work_are_all_named():
    bad = RepNoise.from_settings(noise_weight=-1, layers=(7,), rank=0)
    assert len(bad.problems(4)) == 3


def test_the_paper_preset_is_the_paper_s():
    repnoise, training = RepNoise.preset("paper"), RepNoise.training_preset("paper")
    assert (repnoise.ascent_weight, repnoise.noise_weight, repnoise.max_tokens) == (1, 0.001, 256)
    assert (repnoise.adapter.layers, repnoise.adapter.rank) == (None, None)
    assert (training.lr, training.forget_batch, training.weight_decay, training.schedule) == (2e-5, 8, 0, "cosine")
    assert training.steps * training.forget_batch == 10_000
    assert training.warmup == training.steps / 10

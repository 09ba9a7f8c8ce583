"""NPO and gradient difference: losses against ones written out; the gradient of NPO is that of a slowing ascent."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from elm_interp.erase.gradient_difference import GradientDifference
from elm_interp.erase.npo import NPO
from elm_interp.training import Training, train
from elm_interp.training.gradients import Passes
from elm_interp.training.likelihood import passages_as_texts, text_log_probs, with_frozen
from elm_interp.training.master_weights import Masters


@pytest.fixture
def trained(tiny_lm, tiny_concept, tmp_path):
    """The tiny model with an adapter that raises the likelihood of forget passages, switched on."""
    npo = NPO.from_settings(rank=2, max_tokens=20)
    samples = npo.prepare(tiny_lm, tiny_concept)
    last = train(
        tiny_lm, npo, samples, Training(steps=8, forget_batch=4, retain_batch=2, lr=1e-2), tmp_path, progress=False
    )
    with tiny_lm.adapter(last.path):
        yield tiny_lm


def by_hand(lm, text):
    """Log-probability of a text, token by token."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    return sum(float(logits[t, text.ids[t + 1]]) for t in range(text.start, len(text.ids) - 1))


def gradient(lm, loss):
    weights = [p for p in lm.model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def test_batched_log_probabilities_equal_single_ones_and_those_by_hand(tiny_lm, tiny_concept):
    texts = with_frozen(tiny_lm, passages_as_texts(tiny_lm, tiny_concept.passages("forget"), "erase", max_tokens=20))
    for text in texts[:4]:
        assert text.frozen == pytest.approx(by_hand(tiny_lm, text), abs=1e-4)
        with torch.no_grad():
            assert float(text_log_probs(tiny_lm, [text])) == pytest.approx(text.frozen, abs=1e-4)


def test_at_the_start_the_gradient_of_npo_is_that_of_ascent(tiny_lm, tiny_concept):
    npo = NPO.from_settings(rank=2, max_tokens=20, beta=0.3)
    erase = npo.prepare(tiny_lm, tiny_concept)["erase"][:4]
    tiny_lm.adapters.attach(npo.adapter.config(tiny_lm))
    loss = npo.loss(tiny_lm, erase)["erase"]
    assert float(loss.detach()) == pytest.approx(2 / 0.3 * math.log(2), rel=1e-4)
    ascent = gradient(tiny_lm, text_log_probs(tiny_lm, erase).mean())
    torch.testing.assert_close(gradient(tiny_lm, npo.loss(tiny_lm, erase)["erase"]), ascent, rtol=1e-3, atol=1e-5)


def test_a_passage_that_has_become_unlikely_weighs_little_and_one_that_has_not_weighs_up_to_two(tiny_lm, tiny_concept):
    npo = NPO.from_settings(rank=2, max_tokens=20)
    text = npo.prepare(tiny_lm, tiny_concept)["erase"][0]
    tiny_lm.adapters.attach(npo.adapter.config(tiny_lm))
    ascent = gradient(tiny_lm, text_log_probs(tiny_lm, [text])[0]).norm()
    for moved in (-300.0, -20.0, 0.0, 20.0, 300.0):  # how far the model's log-probability lies from the frozen one's
        sample = replace(text, frozen=text.frozen - moved)
        weight = gradient(tiny_lm, npo.loss(tiny_lm, [sample])["erase"]).norm() / ascent
        assert float(weight) == pytest.approx(2 / (1 + math.exp(-npo.beta * moved)), rel=1e-3, abs=1e-4)


def test_the_losses_equal_those_written_out(trained, tiny_concept):
    npo = NPO.from_settings(rank=2, max_tokens=20, beta=0.2)
    samples = npo.prepare(trained, tiny_concept)
    erase, retain = samples["erase"][:3], samples["retain"][:3]
    with torch.no_grad():
        losses = npo.loss(trained, [*erase, *retain])
        difference = GradientDifference().loss(trained, [*erase, *retain])
    ratios = [by_hand(trained, text) - text.frozen for text in erase]
    assert max(map(abs, ratios)) > 0.01
    expected = sum(2 / 0.2 * math.log1p(math.exp(0.2 * ratio)) for ratio in ratios) / 3
    assert float(losses["erase"]) == pytest.approx(expected, rel=1e-4)
    entropy = {
        name: -sum(by_hand(trained, t) for t in part) / sum(t.positions for t in part)
        for name, part in (("erase", erase), ("retain", retain))
    }
    assert float(losses["retain"]) == pytest.approx(entropy["retain"], rel=1e-4)
    assert float(difference["erase"]) == pytest.approx(-entropy["erase"], rel=1e-4)
    assert float(difference["retain"]) == pytest.approx(entropy["retain"], rel=1e-4)


def test_a_passage_at_its_bound_is_not_driven_on(tiny_lm, tiny_concept):
    bounded = GradientDifference.from_settings(rank=2, max_tokens=20, bound=0.5)
    erase = bounded.prepare(tiny_lm, tiny_concept)["erase"][:4]
    tiny_lm.adapters.attach(bounded.adapter.config(tiny_lm))
    loss = bounded.loss(tiny_lm, erase)["erase"]
    assert float(loss.detach()) == -0.5
    assert float(gradient(tiny_lm, loss).abs().max()) == 0


@pytest.mark.parametrize("method", [NPO, GradientDifference])
def test_passes_of_single_passages_give_the_gradient_of_the_whole_batch(tiny_lm, tiny_concept, method):
    objective = method.from_settings(rank=2, max_tokens=200)
    samples = objective.prepare(tiny_lm, tiny_concept)
    batch = sorted([*samples["erase"][:4], *samples["retain"][:4]], key=len)
    assert len({len(text) for text in batch}) > 4
    masters = Masters(tiny_lm.adapters.attach(objective.adapter.config(tiny_lm)))
    for i, weight in enumerate(masters.weights):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(i))
    found = []
    for n in (1, 4):
        terms, _ = Passes(tiny_lm, objective, Accelerator(cpu=True), pytest.fail, n).gradients(batch, 1, masters)
        found.append((terms, torch.cat([w.grad.flatten() for w in masters.weights])))
        masters.drop_gradients()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", [NPO, GradientDifference])
def test_training_lowers_the_likelihood_of_forget_passages_alone(tiny_lm, tiny_concept, tmp_path, method):
    objective = method.from_settings(rank=4, max_tokens=20)
    samples = objective.prepare(tiny_lm, tiny_concept)

    def entropy(term):
        texts = samples[term]
        with torch.no_grad():
            return -float(text_log_probs(tiny_lm, texts).sum()) / sum(t.positions for t in texts)

    before = {term: entropy(term) for term in samples}
    training = Training(steps=30, forget_batch=4, retain_batch=4, lr=1e-2)
    last = train(tiny_lm, objective, samples, training, tmp_path, progress=False)
    with tiny_lm.adapter(last.path):
        assert entropy("erase") > before["erase"] + 0.5
        assert entropy("retain") < before["retain"]


def test_settings_that_cannot_work_are_all_named():
    assert len(NPO.from_settings(beta=0, retain_weight=-1, layers=(7,)).problems(4)) == 3
    assert len(GradientDifference.from_settings(bound=-1, max_tokens=1).problems(4)) == 2


def test_the_paper_presets_are_those_of_tofu():
    for method, epochs in ((NPO, 10), (GradientDifference, 5)):
        training = method.training_preset("paper")
        assert (training.lr, training.forget_batch, training.weight_decay) == (1e-5, 32, 0.01)
        assert training.steps == 400 * epochs // 32  # 400 questions of forget10
        assert method.preset("paper").adapter.rank is None

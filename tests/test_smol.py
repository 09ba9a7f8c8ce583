"""The real small model: what the tiny random one cannot show."""

from dataclasses import replace

import pytest
import torch

import elm_interp as ei
from elm_interp.erase.elm import ELM
from elm_interp.evaluate import accuracy, score_choices


@pytest.fixture(scope="module")
def concept():
    return ei.load_concept("harry-potter")


def test_the_default_model_knows_the_concept(smol, concept):
    scored = score_choices(smol, concept.ask("forget", "train")[:60])
    assert accuracy(scored, "pmi", "two")["value"] > 0.7


def test_a_few_steps_lower_the_erase_loss_and_leave_the_base_bit_identical(smol, concept, tmp_path):
    fluency = {"fluency_weight": 1.0, "fluency_samples": 2, "fluency_tokens": 4, "fluency_batch": 1}
    objective = replace(ELM.preset("smollm2-135m"), **fluency)
    samples = objective.prepare(smol, concept.sample(4))
    batch = smol.tokenize("Harry Potter and his friends")
    before, untrained = smol.logits(batch), _loss(smol, objective, samples["erase"])
    training = ei.Training(steps=6, forget_batch=4, retain_batch=2, warmup=1, save_every=6)
    last = ei.train(smol, objective, samples, training, tmp_path, progress=False)
    assert torch.equal(smol.logits(batch), before)
    with smol.adapter(last.path):
        assert not torch.equal(smol.logits(batch), before)
        assert _loss(smol, objective, samples["erase"]) < 0.9 * untrained


def _loss(lm, objective, samples):
    with torch.no_grad():
        return float(objective.loss(lm, samples)["erase"])

"""RMU on a tiny random model: what moves, where to, and that training whole weights through a LoRA is exact."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from elm_interp.erase.rmu import RMU, Steered, direction
from elm_interp.errors import UnknownNameError
from elm_interp.training import Adapter, Training, train

OBJECTIVE = RMU.from_settings(layer=2, layers=(1, 2), steering=4.0, retain_weight=1.0, max_tokens=24)
TRAINING = Training(steps=150, forget_batch=4, retain_batch=2, lr=2e-2, save_every=75)


def test_training_drives_the_hidden_state_to_its_vector_and_moves_only_its_layers(tiny_lm, tiny_concept, tmp_path):
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    samples = OBJECTIVE.prepare(tiny_lm, tiny_concept)
    last = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path, progress=False)
    after = tiny_lm.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert {
        key.rpartition(".lora")[0].rpartition("layers.")[2]
        for key in load_file(last.path / "adapter_model.safetensors")
    } == {
        "1.mlp.down_proj",
        "2.mlp.down_proj",
    }
    batch = tiny_lm.tokenize([p.text for p in tiny_concept.passages("forget")], max_tokens=24)
    vector = 4.0 * direction(tiny_lm.d_model, tiny_concept.name, 0)
    states = {}
    for adapter in (None, last.path):
        with tiny_lm.adapter(adapter):
            states[adapter] = tiny_lm.run_with_cache(batch, positions="mean")["resid_post"]
    assert torch.equal(states[None][:, 0], states[last.path][:, 0])
    away = {adapter: (found[:, 2] - vector).norm(dim=-1).mean() for adapter, found in states.items()}
    assert away[last.path] < 0.25 * away[None]


def test_the_untouched_model_has_no_retain_loss(tiny_lm, tiny_concept):
    samples = OBJECTIVE.prepare(tiny_lm, tiny_concept)
    mixed = samples["erase"][:2] + samples["retain"]
    losses = OBJECTIVE.loss(tiny_lm, mixed)
    assert float(losses["retain"].detach()) == pytest.approx(0, abs=1e-10)
    by_hand = [
        ((tiny_lm.run_with_cache(tiny_lm.pad([s.ids]), layers=2, positions="all")["resid_post"][0, 0] - s.target) ** 2)
        for s in samples["erase"][:2]
    ]
    torch.testing.assert_close(losses["erase"], torch.cat(by_hand).mean())


def test_each_concept_and_seed_has_a_direction_of_its_own():
    assert float(direction(64, "bio", 0).norm()) == pytest.approx(1)
    assert torch.equal(direction(64, "bio", 0), direction(64, "bio", 0))
    for other in (direction(64, "cyber", 0), direction(64, "bio", 1)):
        assert not torch.allclose(direction(64, "bio", 0), other)


def test_samples_of_two_concepts_keep_their_own_coefficient(tiny_lm, tiny_concept):
    other = dataclasses.replace(tiny_concept, name="other")
    first = OBJECTIVE.prepare(tiny_lm, tiny_concept)["erase"][0]
    second = dataclasses.replace(OBJECTIVE, steering=9.0).prepare(tiny_lm, other)["erase"][0]
    assert [float(s.target.norm()) for s in (first, second)] == pytest.approx([4, 9])
    alone = [OBJECTIVE.loss(tiny_lm, [s])["erase"] for s in (first, second)]
    lengths = torch.tensor([len(first), len(second)])
    together = OBJECTIVE.loss(tiny_lm, [first, second])["erase"]
    torch.testing.assert_close(together, (torch.stack(alone) * lengths).sum() / lengths.sum())


def test_whole_weights_train_as_the_weights_themselves_would(tiny_lm):
    """One layer's down projection, three AdamW steps: the LoRA of full rank against the plain parameter."""
    rows = tiny_lm.encode(["Ships fear the Comb.", "The grey cat sleeps."])
    samples = [Steered("erase", "x", tuple(row), torch.ones(1, tiny_lm.d_model)) for row in rows]
    objective = OBJECTIVE.with_settings(layers=(2,))
    plain = copy.deepcopy(tiny_lm)
    weight = plain.blocks[2].mlp.down_proj.weight.requires_grad_()

    def steps(lm, parameters):
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            objective.loss(lm, samples)["erase"].backward()
            optimizer.step()

    steps(plain, [weight])
    (trained,) = parameters = tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    assert trained.shape == weight.shape
    steps(tiny_lm, parameters)
    torch.testing.assert_close(objective.loss(tiny_lm, samples)["erase"], objective.loss(plain, samples)["erase"])
    torch.testing.assert_close(
        tiny_lm.blocks[2].mlp.down_proj.base_layer.weight + trained, weight, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"layer": 9}, "layer is 9"),
        ({"layers": None}, "no block above layer 2"),
        ({"layers": (2, 3)}, "no block above layer 2"),
        ({"steering": float("nan")}, "steering"),
        ({"rank": 0}, "rank"),
        ({"modules": "head"}, "modules"),
    ],
)
def test_settings_that_cannot_work_are_named(change, word):
    assert any(word in problem for problem in OBJECTIVE.with_settings(**change).problems(4))


def test_the_paper_preset_is_the_authors():
    rmu, training = RMU.preset("paper"), RMU.training_preset("paper")
    assert (rmu.layer, rmu.adapter) == (7, Adapter((5, 6, 7), None, modules="mlp-out"))
    assert (rmu.steering, rmu.retain_weight, rmu.max_tokens) == (6.5, 1200, 512)
    assert (training.lr, training.forget_batch, training.retain_batch, training.steps) == (5e-5, 4, 4, 150)
    with pytest.raises(UnknownNameError, match="Did you mean 'paper'"):
        RMU.training_preset("papper")

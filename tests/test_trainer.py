"""The training loop and its checkpoints: exact on resume, nothing lost."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from elm_interp.erase.checkpoints import checkpoints, set_damaged_aside
from elm_interp.erase.elm import ELM
from elm_interp.erase.trainer import NotFiniteError, Training, draw, train
from elm_interp.models import load_model

OBJECTIVE = ELM(
    eta=5, layers=(1, 2), rank=2, alpha=8, dropout=0.1, fluency_samples=4, fluency_tokens=5, answers_weight=1
)
TRAINING = Training(
    steps=8, forget_batch=2, retain_batch=2, fluency_batch=1, answers_batch=2, lr=1e-2, warmup=2, save_every=2
)


@pytest.fixture
def samples(tiny_lm, tiny_concept):
    return OBJECTIVE.prepare(tiny_lm, tiny_concept)


def weights(checkpoint):
    return load_file(checkpoint.path / "adapter_model.safetensors")


def equal(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Crash(Exception):
    pass


class Crashing(ELM):
    """Behaves like the power failing at a step."""

    def loss(self, lm, batch):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if self.__dict__["calls"] > 11:  # two calls a step, one for texts and one for answers
            raise Crash
        return super().loss(lm, batch)


def test_training_lowers_the_erase_loss_and_touches_only_its_layers(tiny_lm, samples, tmp_path):
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    state = torch.get_rng_state()
    last = train(
        tiny_lm,
        OBJECTIVE,
        samples,
        Training(steps=40, answers_batch=0, lr=1e-2, save_every=40),
        tmp_path,
        progress=False,
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["erase"] for line in lines[-10:]) < 0.9 * sum(line["erase"] for line in lines[:10])
    assert {"erase", "retain", "fluency", "grad_norm", "tokens", "seconds"} <= lines[0].keys()
    assert all(".1." in key or ".2." in key for key in weights(last))
    assert torch.equal(state, torch.get_rng_state())
    after = tiny_lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert tiny_lm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_equals_unbroken(tiny_model_folder, tiny_concept, tmp_path, dtype):
    lm = load_model(tiny_model_folder, dtype=dtype, device="cpu")
    samples = OBJECTIVE.prepare(lm, tiny_concept)
    unbroken = train(lm, OBJECTIVE, samples, TRAINING, tmp_path / "a", seed=4, progress=False)
    broken = Crashing(**{f: getattr(OBJECTIVE, f) for f in OBJECTIVE.__dataclass_fields__})
    with pytest.raises(Crash):
        train(lm, broken, samples, TRAINING, tmp_path / "b", seed=4, progress=False)
    assert [c.step for c in checkpoints(tmp_path / "b" / "checkpoints")] == [2, 4]
    fresh = load_model(tiny_model_folder, dtype=dtype, device="cpu")
    resumed = train(fresh, OBJECTIVE, samples, TRAINING, tmp_path / "b", seed=4, progress=False)
    assert equal(unbroken, resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))


def test_steps_too_small_for_bfloat16_add_up(tiny_model_folder, tiny_concept, tmp_path):
    lm = load_model(tiny_model_folder, dtype="bfloat16", device="cpu")
    objective = replace(OBJECTIVE, dropout=0.0)
    samples = objective.prepare(lm, tiny_concept)
    # at the size of A's entries, bfloat16 rounds away a step of 1e-5
    training = replace(TRAINING, steps=60, lr=1e-5, warmup=0, save_every=1, schedule="constant")
    last = train(lm, objective, samples, training, tmp_path, progress=False)
    first, last = weights(checkpoints(tmp_path / "checkpoints")[0]), weights(last)
    moved = [float((last[k] != first[k]).float().mean()) for k in last if "lora_A" in k]
    assert min(moved) > 0.05


def test_another_seed_gives_another_adapter(tiny_lm, samples, tmp_path):
    a = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "a", seed=1, progress=False)
    b = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "b", seed=2, progress=False)
    assert not equal(a, b)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "state.safetensors", "meta.json", "COMPLETE", "adapter_config.json"]
)
def test_a_damaged_checkpoint_is_set_aside_by_name(tiny_lm, samples, tmp_path, name):
    train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path, progress=False)
    root = tmp_path / "checkpoints"
    victim = root / "checkpoint-000008" / name
    if name == "COMPLETE":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    untouched = weights(checkpoints(root)[0])
    assert [c.step for c in checkpoints(root)] == [2, 4, 6]
    (problem,) = set_damaged_aside(root)
    assert "checkpoint-000008" in problem
    assert (root / "damaged-checkpoint-000008").is_dir()
    assert all(torch.equal(v, untouched[k]) for k, v in weights(checkpoints(root)[0]).items())


def test_a_loss_that_is_not_finite_stops_before_the_step(tiny_lm, samples, tmp_path):
    class Exploding(ELM):
        def loss(self, lm, batch):
            terms = super().loss(lm, batch)
            if len(checkpoints(tmp_path / "checkpoints")) == 1:
                terms["retain"] = terms["retain"] * math.nan
            return terms

    objective = Exploding(**{f: getattr(OBJECTIVE, f) for f in OBJECTIVE.__dataclass_fields__})
    with pytest.raises(NotFiniteError, match=r"retain is nan at step 3, on samples r-"):
        train(tiny_lm, objective, samples, TRAINING, tmp_path, progress=False)
    assert [c.step for c in checkpoints(tmp_path / "checkpoints")] == [2]


def test_every_sample_is_seen_once_a_turn(samples):
    pool = samples["erase"]
    seen = [s.id for step in range(1, len(pool) + 1) for s in draw(pool, 2, step, seed=0)]
    assert sorted(seen[: len(pool)]) == sorted(seen[len(pool) :]) == sorted(s.id for s in pool)
    assert seen[: len(pool)] != seen[len(pool) :]


def test_the_learning_rate_rises_then_falls():
    rates = [TRAINING.lr_at(step) for step in range(1, 9)]
    assert rates[0] == pytest.approx(0.5e-2)
    assert max(rates) == rates[1] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)


def test_problems_are_all_named():
    assert len(Training(steps=0, lr=-1, save_every=0).problems()) == 3

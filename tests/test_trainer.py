"""The training loop and its checkpoints: exact on resume, nothing lost."""

import json
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from elm_interp import results
from elm_interp.erase.elm import ELM
from elm_interp.errors import ConfigError
from elm_interp.models import load_model
from elm_interp.training import Objective, Training, UnmovedError, gradients, train
from elm_interp.training.checkpoints import list_checkpoints
from elm_interp.training.gradients import NotFiniteError, Passes
from elm_interp.training.master_weights import Masters
from elm_interp.training.sampling import draw

OBJECTIVE = ELM.from_settings(
    eta=5, layers=(1, 2), rank=2, alpha=8, dropout=0.1, match_weight=0.1,
    fluency_samples=4, fluency_tokens=5, fluency_batch=1,
)  # fmt: skip
TRAINING = Training(steps=8, forget_batch=2, retain_batch=2, lr=1e-2, warmup=2, save_every=2)


@pytest.fixture
def samples(tiny_lm, tiny_concept):
    return OBJECTIVE.prepare(tiny_lm, tiny_concept)


def weights(checkpoint):
    return load_file(checkpoint.path / "adapter_model.safetensors")


def test_training_starts_from_the_bare_base(tiny_lm, samples, tmp_path):
    last = train(tiny_lm, OBJECTIVE, samples, replace(TRAINING, steps=1), tmp_path / "x", progress=False)
    with tiny_lm.adapter(last.path), pytest.raises(ConfigError, match="is on; train outside"):
        train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "y", progress=False)
    assert not (tmp_path / "y").exists()


def test_a_pool_that_is_asked_for_and_empty_is_named_before_the_first_step(tiny_lm, samples, tmp_path):
    with pytest.raises(ConfigError, match=r'method elm asks for 1 samples of pool "fluency" a step, but it is empty'):
        train(tiny_lm, OBJECTIVE, {**samples, "fluency": []}, TRAINING, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
    unasked = {pool: found for pool, found in samples.items() if pool != "fluency"}
    training = replace(TRAINING, steps=1)
    train(tiny_lm, replace(OBJECTIVE, fluency_batch=0), unasked, training, tmp_path / "y", progress=False)


def test_a_method_of_ones_own_trains_with_pools_and_terms_that_the_trainer_never_heard_of(tiny_lm, samples, tmp_path):
    """Two pools, one term without a weight of its own; the log and the checkpoint are as for every method."""

    @dataclass(frozen=True)
    class Mine(Objective):
        name = "mine"

        def pools(self, training):
            return {"first": 1, "second": 2}

        def prepare(self, lm, concept, *, seed=0, progress=False):
            raise NotImplementedError

        def loss(self, lm, batch):
            ids = lm.pad([s.ids for s in batch])
            return {"surprise": lm.logits(ids, positions="all", grad=True).float().square().mean()}

    mine = Mine.from_settings(layers=[1, 2], rank=2)
    assert not mine.problems(4)
    pools = {"first": samples["erase"], "second": samples["retain"]}
    last = train(tiny_lm, mine, pools, TRAINING, tmp_path, progress=False)
    assert last.step == 8
    assert {"surprise", "grad_norm"} <= log(tmp_path)[0].keys()
    assert {line["samples"] for line in log(tmp_path)} == {3}


def equal(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Crash(Exception):
    pass


class Crashing(ELM):
    """Behaves like the power failing at a step."""

    def loss(self, lm, batch):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if self.__dict__["calls"] > 5:
            raise Crash
        return super().loss(lm, batch)


def test_training_lowers_the_erase_loss_and_touches_only_its_layers(tiny_lm, samples, tmp_path):
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    state = torch.get_rng_state()
    objective = replace(OBJECTIVE, fluency_batch=2)
    training = Training(steps=40, lr=1e-2, save_every=40)
    last = train(tiny_lm, objective, samples, training, tmp_path, progress=False)
    lines = log(tmp_path)
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
    broken = copied(Crashing)
    with pytest.raises(Crash):
        train(lm, broken, samples, TRAINING, tmp_path / "b", seed=4, progress=False)
    assert [c.step for c in list_checkpoints(tmp_path / "b" / "checkpoints")] == [2, 4]
    fresh = load_model(tiny_model_folder, dtype=dtype, device="cpu")
    resumed = train(fresh, OBJECTIVE, samples, TRAINING, tmp_path / "b", seed=4, progress=False)
    assert equal(unbroken, resumed)
    assert [line["step"] for line in log(tmp_path / "b")] == list(range(1, 9))


def test_steps_too_small_for_bfloat16_add_up(tiny_model_folder, tiny_concept, tmp_path):
    lm = load_model(tiny_model_folder, dtype="bfloat16", device="cpu")
    objective = OBJECTIVE.with_settings(dropout=0.0)
    samples = objective.prepare(lm, tiny_concept)
    # at the size of A's entries, bfloat16 rounds away a step of 1e-5
    training = replace(TRAINING, steps=60, lr=1e-5, warmup=0, save_every=1, schedule="constant")
    last = train(lm, objective, samples, training, tmp_path, progress=False)
    first, last = weights(list_checkpoints(tmp_path / "checkpoints")[0]), weights(last)
    moved = [float((last[k] != first[k]).float().mean()) for k in last if "lora_A" in k]
    assert min(moved) > 0.05


def test_another_seed_gives_another_adapter(tiny_lm, samples, tmp_path):
    a = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "a", seed=1, progress=False)
    b = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "b", seed=2, progress=False)
    assert not equal(a, b)


FILES = ("adapter_config.json", "adapter_model.safetensors", "state.safetensors", "meta.json", "COMPLETE")


def test_whichever_file_of_the_newest_checkpoint_is_truncated_resume_falls_back(tiny_lm, samples, tmp_path):
    unbroken = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "x", progress=False)
    expected, root = weights(unbroken), tmp_path / "x" / "checkpoints"
    assert {path.name for path in unbroken.path.iterdir()} == set(FILES)
    older = {p: p.read_bytes() for p in root.glob("*/*") if p.parent != unbroken.path}
    for name in FILES:
        victim = unbroken.path / name
        victim.write_bytes(victim.read_bytes()[:-7])
        assert [c.step for c in list_checkpoints(root)] == [2, 4, 6]
        resumed = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "x", progress=False)
        assert all(torch.equal(v, expected[k]) for k, v in weights(resumed).items())
        assert all(path.read_bytes() == content for path, content in older.items())
        warning = [line["warning"] for line in log(tmp_path / "x") if "warning" in line][-1]
        assert "checkpoint-000008" in warning
        assert name in warning
        assert "set aside as damaged-checkpoint-000008" in warning


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def copied(kind, objective=OBJECTIVE):
    return kind(**{f.name: getattr(objective, f.name) for f in fields(objective)})


class Exploding(ELM):
    """Gives a retain loss that is not a number at some steps, counted by its calls with texts."""

    at = (3,)

    def loss(self, lm, batch):
        terms = super().loss(lm, batch)
        if "retain" in terms:
            self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
            if self.__dict__["calls"] in self.at:
                terms["retain"] = terms["retain"] * math.nan
        return terms


def test_a_step_with_a_loss_that_is_not_finite_is_left_out_and_logged(tiny_lm, samples, tmp_path):
    last = train(tiny_lm, copied(Exploding), samples, TRAINING, tmp_path, progress=False)
    lines = log(tmp_path)
    assert [line["step"] for line in lines if "seconds" in line] == [1, 2, 4, 5, 6, 7, 8]
    (warning,) = [line["warning"] for line in lines if "warning" in line]
    assert "the retain is nan at step 3, on samples r-" in warning
    assert all(v.isfinite().all() for v in weights(last).values())
    assert last.meta["skipped"] == 1


def test_too_many_such_steps_end_the_training_and_keep_the_last_good_checkpoint(tiny_lm, samples, tmp_path):
    hopeless = copied(Exploding)
    hopeless.__dict__["at"] = range(3, 99)
    with pytest.raises(NotFiniteError, match=r"retain is nan at step 6, on samples r-"):
        train(tiny_lm, hopeless, samples, TRAINING, tmp_path, progress=False)
    assert [c.step for c in list_checkpoints(tmp_path / "checkpoints")] == [2, 4]
    second, fourth = list_checkpoints(tmp_path / "checkpoints")
    assert equal(second, fourth)


def close(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-4, rtol=1e-3) for k in a)


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_accumulated_passes_give_the_gradient_of_the_whole_batch(tiny_lm, samples, accumulate):
    objective = OBJECTIVE.with_settings(dropout=0.0, retain_weight=0.7)
    batch = [s for term, size in (("erase", 5), ("retain", 4), ("fluency", 4)) for s in samples[term][:size]]
    masters = Masters(tiny_lm.adapters.attach(objective.adapter.config(tiny_lm)))
    for i, weight in enumerate(masters.weights):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(i))
    found = {}
    for n in (1, accumulate):
        terms, _ = Passes(tiny_lm, objective, Accelerator(cpu=True), pytest.fail, n).gradients(batch, 1, masters)
        found[n] = (terms, [w.grad for w in masters.weights])
        masters.drop_gradients()
    assert found[1][0] == pytest.approx(found[accumulate][0], rel=1e-5)
    for a, b in zip(found[1][1], found[accumulate][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_passes_of_alike_samples_give_the_gradient_of_the_whole_batch(tiny_lm, samples, monkeypatch):
    objective = OBJECTIVE.with_settings(dropout=0.0, retain_weight=0.7)
    batch = [s for term, size in (("erase", 5), ("retain", 4), ("fluency", 4)) for s in samples[term][:size]]
    masters = Masters(tiny_lm.adapters.attach(objective.adapter.config(tiny_lm)))
    for i, weight in enumerate(masters.weights):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(i))
    found, read = {}, []
    monkeypatch.setattr(
        ELM, "loss", lambda self, lm, part, _loss=ELM.loss: read.append(len(part)) or _loss(self, lm, part)
    )
    for fewest in (10_000, 0):
        monkeypatch.setattr(gradients, "FEWEST_TOKENS", fewest)
        terms, _ = Passes(tiny_lm, objective, Accelerator(cpu=True), pytest.fail).gradients(batch, 1, masters)
        found[fewest] = (terms, [w.grad for w in masters.weights], list(read))
        masters.drop_gradients()
        read.clear()
    assert found[10_000][2] == [13]
    assert len(found[0][2]) > 1
    assert found[10_000][0] == pytest.approx(found[0][0], rel=1e-5)
    for a, b in zip(found[10_000][1], found[0][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_norm_of_each_term_is_that_of_its_own_weighted_gradient(tiny_lm, samples, accumulate):
    objective = OBJECTIVE.with_settings(dropout=0.0, retain_weight=0.7)
    batch = [s for term, size in (("erase", 5), ("retain", 4), ("fluency", 3)) for s in samples[term][:size]]
    masters = Masters(tiny_lm.adapters.attach(objective.adapter.config(tiny_lm)))
    for i, weight in enumerate(masters.weights):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(i))
    by_hand = {}
    for term in ("erase", "retain", "fluency"):
        masters.drop_gradients()
        (objective.weights()[term] * objective.loss(tiny_lm, [s for s in batch if s.term == term])[term]).backward()
        by_hand[term] = float(torch.cat([w.grad.flatten() for w in masters.weights]).norm())
    found = {}
    for alone in (False, True):
        masters.drop_gradients()
        passes = Passes(tiny_lm, objective, Accelerator(cpu=True), pytest.fail, accumulate)
        terms, norms = passes.gradients(batch, 1, masters, term_norms=alone)
        found[alone] = (terms, [w.grad for w in masters.weights])
    assert norms == pytest.approx(by_hand, rel=1e-4)
    assert len({round(norm, 3) for norm in norms.values()}) == 3
    assert found[True][0] == found[False][0]
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))


def test_gradient_norms_of_the_terms_are_logged_now_and_then_and_change_nothing(tiny_lm, samples, tmp_path):
    rarely, always = replace(TRAINING, norms_every=3), replace(TRAINING, norms_every=1)
    a = train(tiny_lm, OBJECTIVE, samples, rarely, tmp_path / "a", progress=False)
    b = train(tiny_lm, OBJECTIVE, samples, always, tmp_path / "b", progress=False)
    assert equal(a, b)
    found = {line["step"]: line["grad_norms"] for line in log(tmp_path / "a") if "grad_norms" in line}
    assert list(found) == [1, 4, 7]
    assert found[4].keys() == {"erase", "retain", "fluency"}
    assert min(found[4].values()) > 0
    assert found[4] == log(tmp_path / "b")[3]["grad_norms"]


class Hungry(ELM):
    """Runs out of memory when more than two texts come at once."""

    def loss(self, lm, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return super().loss(lm, batch)


def test_out_of_memory_splits_the_step_says_so_and_trains_the_same_adapter(tiny_lm, samples, tmp_path):
    plain = OBJECTIVE.with_settings(dropout=0.0)
    whole = train(tiny_lm, plain, samples, TRAINING, tmp_path / "a", progress=False)
    split = train(tiny_lm, copied(Hungry, plain), samples, TRAINING, tmp_path / "b", progress=False)
    assert close(whole, split)
    warnings = [line["warning"] for line in log(tmp_path / "b") if "warning" in line]
    assert [w.rpartition("split into")[2] for w in warnings] == [" 2 passes", " 4 passes"][: len(warnings)] != []
    assert split.meta["accumulate"] == 2 ** len(warnings)
    assert ["grad_norms" in line for line in log(tmp_path / "b") if "seconds" in line] == [False] * 8


def test_one_sample_that_does_not_fit_is_said_in_words(tiny_lm, samples, tmp_path):
    class Starved(ELM):
        def loss(self, lm, batch):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    with pytest.raises(torch.OutOfMemoryError, match="one sample a pass"):
        train(tiny_lm, copied(Starved), samples, TRAINING, tmp_path, progress=False)
    assert tiny_lm.adapters.current is None


def test_what_moved_is_written_and_a_layer_that_did_not_is_named(tiny_lm, samples, tmp_path):
    train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "a", progress=False)
    table = results.read(tmp_path / "a" / "results" / "moved.parquet")
    assert set(table["layer"]) == {1, 2}
    assert (table["value"] > 0).all()
    assert "mlp.up_proj.lora_B" in set(table["site"])

    class Deaf(ELM):
        """No gradient comes to block 1."""

        def loss(self, lm, batch):
            for name, p in lm.model.named_parameters():
                p.requires_grad_(p.requires_grad and ".1." not in name)
            return super().loss(lm, batch)

    with pytest.raises(UnmovedError, match=r"layer 1 of \[1, 2\]"):
        train(tiny_lm, copied(Deaf), samples, replace(TRAINING, weight_decay=0.1), tmp_path / "b", progress=False)


def test_evaluation_is_logged_and_changes_nothing(tiny_lm, samples, tmp_path):
    def look(lm):
        batch = lm.tokenize(["Old Tamsin keeps the lamp"])
        assert torch.equal(lm.logits(batch), lm.logits(batch)), "dropout acts"
        with lm.adapter(None):
            return {"noise": float(torch.rand(()))}

    plain = train(tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "a", progress=False)
    watched = train(
        tiny_lm, OBJECTIVE, samples, TRAINING, tmp_path / "b", evaluate=look, evaluate_every=3, progress=False
    )
    assert equal(plain, watched)
    assert [line["step"] for line in log(tmp_path / "b") if "evaluation" in line] == [3, 6, 8]


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


def test_a_linear_schedule_falls_to_zero_after_the_last_step():
    training = Training(steps=12, warmup=2, lr=1.0, schedule="linear")
    assert [training.lr_at(step) for step in (1, 2, 3, 7, 12)] == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.1])


def test_problems_are_all_named():
    assert len(Training(steps=0, lr=-1, save_every=0).problems()) == 3
    assert len(Training(steps=2.5, checkpoints=1.5, weight_decay=float("nan")).problems()) == 3
    (problem,) = Training(save_every=5, checkpoint_spacing="log").problems()
    assert "save_every" in problem
    assert "checkpoint_spacing" in problem


def test_ten_checkpoints_are_saved_unless_their_number_or_distance_is_given():
    assert Training(steps=25).saves() == [2, 5, 8, 10, 12, 15, 18, 20, 22, 25]
    assert Training(steps=25, save_every=10).saves() == [10, 20, 25]
    for spacing in ("linear", "log"):
        assert Training(steps=25, checkpoints=1, checkpoint_spacing=spacing).saves() == [25]
        assert Training(steps=25, checkpoints=3, checkpoint_spacing=spacing).saves()[-1] == 25

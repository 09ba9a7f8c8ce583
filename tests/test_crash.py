"""A process that dies at any moment: whatever was half done, the adapter is the same in the end."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from elm_interp.erase.checkpoints import checkpoints
from elm_interp.erase.elm import ELM
from elm_interp.erase.trainer import Training, train
from elm_interp.models import load_model

OBJECTIVE = ELM(eta=5, layers=(1, 2), rank=2, alpha=8, dropout=0.1, fluency_weight=0, answers_weight=1)
# the server imports this file once; its children start in a tenth of a second
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["test_crash"])


def work(model, concept, folder, steps):
    """Train in a process of its own, going on from what is in the folder."""
    torch.set_num_threads(1)
    lm = load_model(model, dtype="float32", device="cpu")
    # long checkpoints and short steps, so that many deaths fall into the writing of a checkpoint
    training = Training(steps=steps, forget_batch=3, retain_batch=2, answers_batch=1, lr=1e-2, warmup=2, save_every=1)
    train(lm, OBJECTIVE, OBJECTIVE.prepare(lm, concept), training, folder, seed=3, progress=False)


def start(*arguments):
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def finish(processes):
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def adapter(folder):
    return load_file(checkpoints(folder / "checkpoints")[-1].path / "adapter_model.safetensors")


@pytest.mark.parametrize("deaths", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_gives_the_unbroken_adapter(
    tiny_model_folder, tiny_concept, tmp_path, deaths
):
    steps = 2 * deaths + 2
    finish([start(tiny_model_folder, tiny_concept, tmp_path / "a", steps)])
    rng = random.Random(deaths)
    root = tmp_path / "b" / "checkpoints"
    for _ in range(deaths):
        before = len(list(root.glob("checkpoint-*")))
        process = start(tiny_model_folder, tiny_concept, tmp_path / "b", steps)
        # at least one step further each time, and then at any moment
        while process.is_alive() and len(list(root.glob("checkpoint-*"))) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        assert process.is_alive(), "the run ended before its death"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    finish([start(tiny_model_folder, tiny_concept, tmp_path / "b", steps)])
    unbroken, found = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    assert unbroken.keys() == found.keys()
    assert all(torch.equal(unbroken[key], found[key]) for key in unbroken)
    assert [c.step for c in checkpoints(root)] == list(range(1, steps + 1))

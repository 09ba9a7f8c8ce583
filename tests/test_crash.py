"""Processes that die and processes that share the work: whatever happens, the adapter is the same."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

from elm_interp.cli import main
from elm_interp.erase.elm import ELM
from elm_interp.models import load_model
from elm_interp.runs.run import Run
from elm_interp.training import Training, train
from elm_interp.training.checkpoints import list_checkpoints

OBJECTIVE = ELM.from_settings(eta=5, layers=(1, 2), rank=2, alpha=8, dropout=0.1, fluency_weight=0)
# the server imports elm_interp once, so its children start in a tenth of a second; it does not know this folder
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "elm_interp.cli", "elm_interp.erase.elm", "elm_interp.runs.stages"])


def work(model, concept, folder, steps, dropout=0.1, environment=None):
    """Train in a process of its own, going on from what is in the folder."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    lm = load_model(model, dtype="float32", device="cpu")
    objective = OBJECTIVE.with_settings(dropout=dropout)
    # long checkpoints and short steps, so that many deaths fall into the writing of a checkpoint
    training = Training(steps=steps, forget_batch=3, retain_batch=2, lr=1e-2, warmup=2, save_every=1)
    train(lm, objective, objective.prepare(lm, concept), training, folder, seed=3, progress=False)


def start(*arguments):
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def finish(processes):
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def adapter(folder):
    return load_file(list_checkpoints(folder / "checkpoints")[-1].path / "adapter_model.safetensors")


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
    assert [c.step for c in list_checkpoints(root)] == list(range(1, steps + 1))


def launched(**more):
    """The environment that `accelerate launch` gives to each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", **more}
    return [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)]


@pytest.mark.parametrize("more", [{}, {"ACCELERATE_USE_FSDP": "true"}], ids=["shared work", "shared memory"])
def test_two_processes_train_the_adapter_of_one(tiny_model_folder, tiny_concept, tmp_path, more):
    dropout = 0.1 if more else 0.0  # where each works on its own samples, it draws its own dropout
    finish([start(tiny_model_folder, tiny_concept, tmp_path / "one", 6, dropout)])
    finish([start(tiny_model_folder, tiny_concept, tmp_path / "two", 6, dropout, rank) for rank in launched(**more)])
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-4, rtol=1e-3)
    logs = [
        list(map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())) for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 6
    assert logs[0][0]["grad_norms"] == pytest.approx(logs[1][0]["grad_norms"], rel=1e-3, abs=1e-4)


def command(environment, words):
    os.environ.update(environment)
    torch.set_num_threads(1)
    main(words)


def test_the_command_in_two_processes_makes_one_run(tiny_model_folder, tiny_concept_folder, tmp_path):
    words = f"erase --out {tmp_path / 'x'} --model {tiny_model_folder} --concept {tiny_concept_folder} --dtype float32"
    words += " --device cpu --layers 1 2 --rank 2 --steps 2 --save-every 1 --fluency-weight 0"
    processes = [PROCESSES.Process(target=command, args=(rank, words.split())) for rank in launched()]
    for process in processes:
        process.start()
    finish(processes)
    run = Run.open(tmp_path / "x")
    assert run.finished
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 2

"""What an erasure will take, measured on a few passages and steps before it starts.

estimate_run(RunConfig.preset("paper"))      # {"steps": 750, "tokens": 610000, "minutes": 41.0, ...}
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from elm_interp.data import Concept, texts
from elm_interp.models import load_model
from elm_interp.runs.config import RunConfig
from elm_interp.training import train
from elm_interp.training.log import read_log
from elm_interp.training.memory import peak_gb
from elm_interp.training.objective import Example
from elm_interp.training.sampling import of_each

PROBED = 8
"""Passages and questions of each kind that are tried."""
STEPS = 3
"""Training steps that are tried; the first is slower and does not count."""


def estimate_run(config: RunConfig) -> dict[str, float]:
    """Measure steps, tokens, minutes and memory of a run; loads the model, keeps nothing on disk.

    Returns:
        steps; tokens that training reads; prepare_minutes for the targets, train_minutes, and minutes for both; peak_gb
        of this process so far.

    Raises:
        ConfigError: settings that cannot work, all listed.
    """
    concept = config.check()
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    few = concept.sample(PROBED)

    def targets(part: Concept) -> Mapping[str, Sequence[Example]]:
        return config.objective.prepare(lm, part, seed=config.seed, progress=False)

    of_each(concept.sample(1), targets)  # a process's first passes are slower
    began = time.perf_counter()
    samples = of_each(few, targets)
    prepare = (time.perf_counter() - began) * _size(concept) / _size(few)
    tried = replace(config.training, steps=STEPS, warmup=0, checkpoints=1)
    with tempfile.TemporaryDirectory() as folder:
        train(lm, config.objective, samples, tried, Path(folder), seed=config.seed, progress=False)
        steps = [line for line in read_log(Path(folder) / "metrics.jsonl") if "seconds" in line]
    training = fmean(line["seconds"] for line in steps[1:]) * config.training.steps
    return {
        "steps": config.training.steps,
        "tokens": round(fmean(line["tokens"] for line in steps) * config.training.steps),
        "prepare_minutes": prepare / 60,
        "train_minutes": training / 60,
        "minutes": (prepare + training) / 60,
        "peak_gb": peak_gb(),
    }


def _size(concept: Concept) -> int:
    """Characters that targets are made of."""
    passages = concept.passages("forget") + concept.passages("retain")
    asked = [q for which in ("forget", "neighbours", "general") for q in concept.ask(which, "train")]
    return sum(map(len, texts(passages))) + sum(len(q.question) + sum(map(len, q.choices)) for q in asked)

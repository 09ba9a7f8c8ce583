"""What a run will take, measured on a run in miniature before it starts.

estimate_run(RunConfig.preset("paper"))         # {"steps": 2250, "tokens": ..., "minutes": ..., ...}
estimate_stages(RunConfig.preset())             # stage -> Cost(seconds, peak_gb)
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from elm_interp.data import Concept, Mixture, texts
from elm_interp.data.concept import spread
from elm_interp.data.records import SPLITS
from elm_interp.models import HookedLM, load_model
from elm_interp.organisms.golds import judge_of
from elm_interp.runs.config import RunConfig
from elm_interp.runs.quick import ITEMS, quick
from elm_interp.runs.run import Run
from elm_interp.runs.stages import STAGES
from elm_interp.training import train
from elm_interp.training.log import read_log
from elm_interp.training.memory import peak_gb
from elm_interp.training.objective import Example
from elm_interp.training.sampling import drawable, of_each

PROBED = 8
"""Passages and questions of each kind that are tried."""
STEPS = 3
"""Training steps that are tried; the first is slower and does not count."""
SHARE = 8
"""One question, passage and text in so many is measured."""


class Cost(NamedTuple):
    """What a stage takes."""

    seconds: float
    peak_gb: float
    """Memory of the process up to the end of the stage."""


def estimate_run(config: RunConfig) -> dict[str, float]:
    """Measure steps, tokens, minutes and memory of an erasure; loads the model, keeps nothing on disk.

    Returns:
        steps; tokens that training reads; prepare_minutes for the targets, train_minutes, and minutes for both; peak_gb
        of this process so far.

    Raises:
        ConfigError: settings that cannot work, all listed.
    """
    concept = config.check()
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    with tempfile.TemporaryDirectory() as folder:
        return _erasure(config, concept, lm, Path(folder), 1)


def estimate_stages(config: RunConfig, *, progress: bool = False) -> dict[str, Cost]:
    """Measure seconds and memory of every stage of a run, on a run in miniature; keeps nothing on disk.

    Args:
        config: the settings.
        progress: show bars.

    Raises:
        ConfigError: settings that cannot work, all listed.
    """
    concept = config.check()
    measured = concept if config.thorough else quick(concept)
    began = time.perf_counter()
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    load = time.perf_counter() - began
    checkpoints = len(config.training.saves())
    with tempfile.TemporaryDirectory() as folder:
        tried = min(checkpoints, STEPS - 1)
        erasure = _erasure(config, concept, lm, Path(folder), tried)
        began = time.perf_counter()
        for part in concept.parts if isinstance(concept, Mixture) else [concept]:
            config.objective.ask_target(lm, part)
        asking = time.perf_counter() - began
        found = {"erase": Cost(load + asking + 60 * erasure["minutes"], peak_gb())}
        mini = Run(folder, config, lm=lm, concept=_miniature(measured))
        mini.write_config()
        whole = Run(folder, config, lm=lm, concept=concept)
        mini.subject(0).texts //= SHARE
        gold = mini.gold()  # loaded before the clock starts
        whole.gold()
        beside = 2 + (gold is not None)  # the base, random weights and gold
        states = (checkpoints + beside) / (tried + beside)
        asked = [min(ITEMS, len(of.ask("forget"))) for of in (measured, mini.concept)]
        followed = (checkpoints - 1) * (1 if config.thorough else asked[0] / max(1, asked[1]))
        once = {"evaluate": _seconds_to_load_judge(config)}
        factors = {
            "evaluate": (mini, float(SHARE)),
            "collect": (whole, states),
            "probe": (whole, states),
            "norms": (mini, float(SHARE)),
            "progress": (mini, SHARE * followed if config.thorough else followed),
            "report": (mini, 1.0),
        }
        for name, (run, factor) in factors.items():
            began = time.perf_counter()
            STAGES[name](run, progress=progress)
            took = time.perf_counter() - began
            fixed = min(once.get(name, 0.0), took)
            found[name] = Cost(fixed + factor * (took - fixed), peak_gb())
    return found


def _seconds_to_load_judge(config: RunConfig) -> float:
    """Seconds to load the model that judges generated texts; 0 without one."""
    if (judge := judge_of(config.model)) is None:
        return 0.0
    began = time.perf_counter()
    load_model(judge, dtype=config.dtype, device=config.device)
    return time.perf_counter() - began


def _erasure(config: RunConfig, concept: Concept, lm: HookedLM, folder: Path, checkpoints: int) -> dict[str, float]:
    """As `estimate_run`; leaves so many checkpoints in the folder."""
    concept = drawable(concept, config.training, config.seed)
    few = concept.sample(PROBED)
    larger = _size(concept) / _size(few)
    objective = config.objective.in_miniature(1 / larger)

    def targets(part: Concept) -> Mapping[str, Sequence[Example]]:
        return objective.prepare(lm, part, seed=config.seed, progress=False)

    of_each(concept.sample(1), targets)  # a process's first passes are slower
    began = time.perf_counter()
    samples = of_each(few, targets)
    prepare = (time.perf_counter() - began) * larger
    tried = replace(
        config.training, steps=STEPS, warmup=0, checkpoints=checkpoints, save_every=None, checkpoint_spacing="linear"
    )
    train(lm, objective, samples, tried, folder, seed=config.seed, progress=False)
    steps = [line for line in read_log(folder / "metrics.jsonl") if "seconds" in line]
    training = fmean(line["seconds"] for line in steps[1:]) * config.training.steps
    return {
        "steps": config.training.steps,
        "tokens": round(fmean(line["tokens"] for line in steps) * config.training.steps),
        "prepare_minutes": prepare / 60,
        "train_minutes": training / 60,
        "minutes": (prepare + training) / 60,
        "peak_gb": peak_gb(),
    }


def _miniature(concept: Concept) -> Concept:
    """The concept with one in `SHARE` of its questions and held-out passages, and few passages for training."""
    sets = {which: [concept.ask(which, split) for split in SPLITS] for which in concept.questions}
    questions = {
        which: [q for asked in of for q in spread(asked, -(-len(asked) // SHARE))] for which, of in sets.items()
    }
    most = max(len(concept.passages(kind, "held_out")) for kind in ("forget", "retain"))
    few = concept.measured_by(questions, max(1, most // SHARE))
    kept = {kind: (*few.passages(kind)[:PROBED], *few.passages(kind, "held_out")) for kind in ("forget", "retain")}
    return replace(few, forget=kept["forget"], retain=kept["retain"])


def _size(concept: Concept) -> int:
    """Characters that targets are made of."""
    return sum(map(len, texts(concept.passages("forget") + concept.passages("retain"))))

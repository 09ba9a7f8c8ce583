"""The stages of a run, each a function of a `Run`, each able to run alone on a finished folder.

run = Run.create("runs/demo", RunConfig())
for stage in STAGES.values():
    stage(run)

erase → evaluate → collect → probe → norms → progress → report
"""

import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from elm_interp import results
from elm_interp.activations.collect import collect as collect_activations
from elm_interp.activations.store import ActivationStore
from elm_interp.erase.prepared import prepared
from elm_interp.erase.trainer import train
from elm_interp.errors import ConfigError, RunFolderError
from elm_interp.evaluate import destroyed, samples, scorecard
from elm_interp.evaluate import summary as summarise
from elm_interp.internals import PROBE_TASKS, concept_datasets, probes_from_store, progression
from elm_interp.memory import peak_gb, trim
from elm_interp.metrics import measure
from elm_interp.models.loading import model_hash
from elm_interp.models.processes import several_processes
from elm_interp.report import write_report
from elm_interp.runs import Run

PROGRESSION_METRICS = (
    "innocence.two_choice_pmi",
    "innocence.two_choice_likelihood",
    "innocence.four_choice_pmi",
    "specificity.*",
    "seamlessness.*",
)
"""What is followed over the checkpoints, beside every layer's probes."""


def erase(run: Run, *, progress: bool = True) -> None:
    """Train the adapter, or go on from the newest whole checkpoint; does nothing where training is finished."""
    if run.finished:
        return
    run.write_manifest()
    config = run.config
    known = model_hash(config.model)
    targets, seconds = prepared(
        run.lm, config.objective, run.concept, model_hash=known, seed=config.seed, progress=progress
    )
    trim()
    train(run.lm, config.objective, targets, config.training, run.folder, seed=config.seed, progress=progress)
    run.record(prepare_seconds=seconds)


def evaluate(run: Run, *, progress: bool = True) -> None:
    """Score base and erased model: results/scorecard.parquet, and texts side by side in results/samples.json."""
    subject = run.subject()
    run.save_results("scorecard", scorecard(subject, progress=progress))
    run.save_json("samples", samples(subject, 8))


def collect(run: Run, *, progress: bool = True) -> None:
    """Read the activations that the probes need, of the base and every checkpoint, into activations/; again where they are damaged."""
    store = ActivationStore(run.folder / "activations", repair=True)
    states = {_name(0): None} | {_name(c.step): c.path for c in run.checkpoints()}
    collect_activations(run.lm, store, concept_datasets(run.concept, PROBE_TASKS), states, progress=progress)


def probe(run: Run, *, progress: bool = True) -> None:
    """Fit layer probes on the stored activations of every checkpoint: results/probes.parquet. Loads no model.

    Raises:
        RunFolderError: activations of a checkpoint were not collected.
    """
    store = _collected(run)
    tables = []
    for step in [0, *(c.step for c in run.checkpoints())]:
        rows = probes_from_store(store, _name(step), PROBE_TASKS, progress=progress)
        tables.append(rows.assign(model=run.config.model, method=run.method if step else "base", step=step))
    run.save_results("probes", results.stack(tables))


def norms(run: Run, *, progress: bool = True) -> None:
    """Activation norms by layer on forget and retain text, of base and erased model: results/norms.parquet."""
    erased = run.subject()
    tables = [measure(subject, "norm.*", progress=progress) for subject in (erased.base, erased)]
    run.save_results("norms", results.stack(tables))


def progress(run: Run, *, progress: bool = True) -> None:
    """Follow the behaviour metrics over every checkpoint: results/progression.parquet."""
    table = progression(run.subjects(), PROGRESSION_METRICS, cost="dear", progress=progress)
    # the base is step 0 of every curve
    run.save_results("progression", table.assign(step=table["step"].fillna(0)))


def report(run: Run, *, progress: bool = True) -> None:
    """Draw the figures and write report.html from what is in results/."""
    warning = None
    if (run.folder / "results" / "scorecard.parquet").is_file():
        warning = destroyed(run.results("scorecard"))
    write_report(run.folder, warning=warning)


STAGES: dict[str, Callable[..., None]] = {
    "erase": erase,
    "evaluate": evaluate,
    "collect": collect,
    "probe": probe,
    "norms": norms,
    "progress": progress,
    "report": report,
}
"""Every stage, in order."""


def run_stage(run: Run, name: str, *, progress: bool = True) -> None:
    """Run one stage and record its seconds and the process's peak memory.

    Raises:
        ConfigError: several processes, and a stage other than erase.
    """
    if several_processes() and name != "erase":
        raise ConfigError(
            f"{name} runs in one process; under accelerate launch, run erase alone and then: elm-interp run --out {run.folder} --resume"
        )
    began = time.perf_counter()
    STAGES[name](run, progress=progress)
    trim()
    if not (name == "erase" and f"{name}_seconds" in (run.load_json("timing") or {})):
        run.record(**{f"{name}_seconds": time.perf_counter() - began})
    run.record(peak_gb=max(peak_gb(), (run.load_json("timing") or {}).get("peak_gb", 0.0)))


def summary(run: Run) -> dict[str, dict[str, Any]]:
    """The score card with timings and memory, flat: metric -> {"base": {value, ci_low, ci_high, n}, "erased": {…}}.

    Raises:
        RunFolderError: the run was not evaluated yet.
    """
    found = summarise(run.results("scorecard"))
    timing = run.load_json("timing") or {}
    for name, value in timing.items():
        if name.endswith("_seconds"):
            found[f"timing.{name}"] = {"erased": _number(value)}
    stages = [timing[f"{name}_seconds"] for name in STAGES if f"{name}_seconds" in timing]
    if len(stages) == len(STAGES):
        found["timing.total_seconds"] = {"erased": _number(sum(stages))}
    log = run.folder / "metrics.jsonl"
    if log.is_file():
        steps = pd.read_json(log, lines=True).dropna(subset=["seconds"]) if log.stat().st_size else pd.DataFrame()
        if len(steps):
            found["timing.train_seconds"] = {"erased": _number(steps["seconds"].sum(), len(steps))}
            found["timing.train_tokens_per_second"] = {
                "erased": _number(steps["tokens"].sum() / steps["seconds"].sum(), len(steps))
            }
            sizes = run.config.training.batch_sizes()
            forget = len(steps) * (
                sizes["erase"] + (sizes["answers"] if run.config.objective.weights().get("answers") else 0)
            )
            spent = steps["seconds"].sum() + timing.get("prepare_seconds", 0.0)
            found["timing.seconds_per_forget_sample"] = {"erased": _number(spent / forget, forget)}
    if "peak_gb" in timing:
        found["memory.peak_gb"] = {"erased": _number(timing["peak_gb"])}
    return found


def _number(value: float, n: int = 1) -> dict[str, float | int | None]:
    return {"value": float(value), "ci_low": None, "ci_high": None, "n": n}


def _name(step: int) -> str:
    return f"step-{step:06d}" if step else "base"


def _collected(run: Run) -> ActivationStore:
    if not (run.folder / "activations" / "index.json").is_file():
        raise RunFolderError(f"{run.folder} has no activations; read them with: elm-interp collect {run.folder}")
    return run.store

"""The stages of a run, each a function of a `Run`, each able to run alone on a finished folder.

run = Run.create("runs/demo", RunConfig())
for stage in STAGES.values():
    stage(run)

erase → evaluate → collect → probe → norms → progress → report
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from elm_interp import results
from elm_interp.activations.collect import Dataset, checkpoint_name, collect_datasets
from elm_interp.activations.index import other_examples
from elm_interp.activations.store import ActivationStore
from elm_interp.errors import ConfigError, RunFolderError
from elm_interp.evaluate import card_metrics, destroyed, samples, score_card
from elm_interp.evaluate import summary as summarise
from elm_interp.metrics import measure
from elm_interp.models import load_model
from elm_interp.models.distributed import several_processes
from elm_interp.models.loading import model_hash
from elm_interp.plots.report import write_report
from elm_interp.probes import PROBE_TASKS, collect_baselines, concept_datasets, probes_from_store
from elm_interp.probes.datasets import LEAST_FACTS
from elm_interp.probes.tasks import with_baselines
from elm_interp.runs.progression import follow_metrics
from elm_interp.runs.run import Run
from elm_interp.training.memory import peak_gb, trim
from elm_interp.training.target_cache import prepared
from elm_interp.training.trainer import train


def erase(run: Run, *, progress: bool = True) -> None:
    """Train the adapter, or go on from the newest whole checkpoint; does nothing where training is finished."""
    if run.finished:
        return
    run.check_inputs()
    run.write_manifest()
    config = run.config
    known = model_hash(config.model)
    targets, seconds = prepared(
        run.lm, config.objective, run.concept, model_hash=known, seed=config.seed, progress=progress
    )
    trim()
    train(run.lm, config.objective, targets, config.training, run.folder, seed=config.seed, progress=progress)
    run.record(prepare_seconds=seconds)


def evaluate(run: Run, *, judge: str | None = None, progress: bool = True) -> None:
    """Score base and erased model: results/scorecard.parquet, and texts side by side in results/samples.json.

    Args:
        run: the run.
        judge: another model (an alias, a folder or a hub id) that scores the written texts as well.
        progress: show bars.
    """
    concept = run.concept
    for what, there in (
        ("forget passage", concept.passages("forget", "held_out")),
        ("retain passage", concept.passages("retain", "held_out")),
        ("question about it", concept.ask("forget")),
    ):
        if not there:
            warnings.warn(
                f'{concept.name} has no {what} with "split": "held_out": what is measured on them is left out.',
                stacklevel=2,
            )
    subject = run.subject()
    if judge is not None:
        scorer = load_model(judge, dtype=run.config.dtype, device=run.config.device)
        subject = replace(subject, base=replace(subject.base, judge=scorer), judge=scorer)
    run.save_results("scorecard", score_card(subject, progress=progress))
    run.save_json("samples", samples(subject, 8))


def collect(run: Run, *, progress: bool = True) -> None:
    """Read the activations that the probes need, of the base and every checkpoint, into activations/; again where they are damaged.

    Those of the probes' baselines are read as well, see `internals.collect_baselines`.
    """
    store = ActivationStore(run.folder / "activations", repair=True)
    states = {checkpoint_name(None): None} | {checkpoint_name(c.step): c.path for c in run.checkpoints()}
    datasets = concept_datasets(run.concept, PROBE_TASKS)
    for name in _outdated(store, datasets):
        store.drop(name)
    collect_datasets(run.lm, store, datasets, states, progress=progress)
    if datasets:
        collect_baselines(run.lm, store, datasets, progress=progress)


def probe(run: Run, *, progress: bool = True) -> None:
    """Fit layer probes on the stored activations of every checkpoint: results/probes.parquet. Loads no model.

    Raises:
        RunFolderError: activations of a checkpoint, or of what the concept asks now, were not collected.
    """
    datasets = concept_datasets(run.concept, PROBE_TASKS)
    if not datasets:
        warnings.warn(
            f"{run.concept.name} has fewer than {LEAST_FACTS} questions about it, and passages: no probe is fitted.",
            stacklevel=2,
        )
        run.save_results("probes", results.frame([]))
        return
    store = _collected(run)
    held = {entry.dataset for entry in store.entries()}
    if old := [*_outdated(store, datasets), *(name for name in datasets if name not in held)]:
        raise RunFolderError(
            f"{run.folder} has no activations of {', '.join(old)} as {run.concept.name} asks now; read them with: elm-interp collect {run.folder}"
        )
    tables = []
    for step in [0, *(c.step for c in run.checkpoints())]:
        rows = probes_from_store(store, checkpoint_name(step or None), PROBE_TASKS, progress=progress)
        tables.append(rows.assign(model=run.config.model, method=run.method if step else "base", step=step))
    run.save_results("probes", results.stack(tables))


def norms(run: Run, *, progress: bool = True) -> None:
    """Activation norms by layer on forget and retain text, of base and erased model: results/norms.parquet."""
    erased = run.subject()
    tables = [measure(subject, "norm.*", progress=progress) for subject in (erased.base, erased)]
    run.save_results("norms", results.stack(tables))


def progress(run: Run, *, progress: bool = True) -> None:
    """Follow the metrics of the score card over every checkpoint: results/progression.parquet."""
    table = follow_metrics(run.subjects(), card_metrics(), cost="dear", progress=progress)
    # the base is step 0 of every curve
    run.save_results("progression", table.assign(step=table["step"].fillna(0)))


def report(run: Run, *, progress: bool = True) -> None:
    """Draw the figures and write report.html from what is in results/."""
    try:
        why = destroyed(run.current("scorecard"))
        warning = f"Destroyed, not erased: {why}" if why else None
    except RunFolderError as error:  # missing, broken or old
        warning = str(error) if (run.folder / "results" / "scorecard.parquet").is_file() else None
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


def run_stage(run: Run, name: str, *, progress: bool = True, **options: Any) -> None:
    """Run one stage, with options of its own, and record its seconds and the process's peak memory.

    Raises:
        ConfigError: several processes, and a stage other than erase.
    """
    if several_processes() and name != "erase":
        raise ConfigError(
            f"{name} runs in one process; under accelerate launch, run erase alone and then: elm-interp run --out {run.folder} --resume"
        )
    began, finished = time.perf_counter(), run.finished
    STAGES[name](run, progress=progress, **options)
    trim()
    seconds = time.perf_counter() - began
    if name == "erase":  # may be done in several legs, or have nothing to do
        seconds = (run.load_json("timing") or {}).get("erase_seconds", 0.0) + (0.0 if finished else seconds)
    run.record(**{f"{name}_seconds": seconds})
    run.record(peak_gb=max(peak_gb(), (run.load_json("timing") or {}).get("peak_gb", 0.0)))


def summary(run: Run) -> dict[str, dict[str, Any]]:
    """The score card with timings and memory, flat: metric -> {"base": {value, ci_low, ci_high, n}, "erased": {…}}.

    Raises:
        RunFolderError: the run was not evaluated yet.
    """
    found = summarise(run.current("scorecard"))
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


def _outdated(store: ActivationStore, datasets: Mapping[str, Dataset]) -> list[str]:
    """Datasets of the store whose examples are not those of today."""
    held = {entry.dataset for entry in store.entries()}
    return [
        name
        for name, dataset in with_baselines(datasets).items()
        if name in held and other_examples(name, store.examples(name), dataset.stored_examples.reset_index(drop=True))
    ]


def _collected(run: Run) -> ActivationStore:
    if not (run.folder / "activations" / "index.json").is_file():
        raise RunFolderError(f"{run.folder} has no activations; read them with: elm-interp collect {run.folder}")
    return run.store

"""The stages of a run, each a function of a `Run`; each can run alone on a finished folder.

    run = Run.create("runs/demo", RunConfig())
    for name in STAGES:
        run_stage(run, name)

erase → evaluate → collect → probe → norms → progress → report
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from elm_interp import results
from elm_interp.activations import ActivationStore, Dataset, checkpoint_name, collect_datasets, within_context
from elm_interp.activations.index import other_examples
from elm_interp.data import Concept, Mixture
from elm_interp.data.leaks import concept_leaks
from elm_interp.errors import ConfigError, RunFolderError, check_known, raise_all
from elm_interp.evaluate import beyond_context, card_metrics, destroyed, free_answers, samples, score_card
from elm_interp.evaluate import summary as summarise
from elm_interp.evaluate.known import follows
from elm_interp.metrics import measure
from elm_interp.models import load_model
from elm_interp.models.adapters.files import is_whole_model
from elm_interp.models.distributed import first_process, several_processes
from elm_interp.organisms.golds import judge_of
from elm_interp.plots.report import write_report
from elm_interp.probes import collect_baselines, probes_from_store
from elm_interp.probes.datasets import LEAST_FACTS
from elm_interp.probes.solver import ProbeWeights
from elm_interp.probes.tasks import with_baselines
from elm_interp.runs.formats import retired
from elm_interp.runs.progression import follow_metrics
from elm_interp.runs.quick import ITEMS, probed
from elm_interp.runs.run import Run
from elm_interp.training import train
from elm_interp.training.log import read_log
from elm_interp.training.memory import peak_gb, trim
from elm_interp.training.sampling import drawable
from elm_interp.training.target_cache import prepared

GOLD = "gold"
"""Name in the store, and method in tables, of the model that never knew the concept."""


def erase(run: Run, *, progress: bool = True) -> None:
    """Train the adapter, or go on from the newest complete checkpoint; does nothing where training is finished."""
    if run.finished:
        return
    raise_all(list(filter(None, [retired(run.folder)])), RunFolderError, "this training cannot go on:")
    run.check_inputs()
    _note_leaks(run)
    config = run.config
    concept = drawable(run.concept, config.training, config.seed)
    parts = concept.parts if isinstance(concept, Mixture) else (concept,)
    run.write_manifest(tokens={part.name: config.objective.tokenised(run.lm, part, seed=config.seed) for part in parts})
    targets, seconds = prepared(
        run.lm, config.objective, concept, model_hash=run.model_hash(), seed=config.seed, progress=progress
    )
    trim()
    _ask_target(run, parts, progress)
    train(run.lm, config.objective, targets, config.training, run.folder, seed=config.seed, progress=progress)
    run.record(prepare_seconds=seconds)


def evaluate(run: Run, *, judge: str | None = None, progress: bool = True) -> None:
    """Score base and erased model: results/scorecard.parquet, and answers and texts in results/samples.json.

    Args:
        run: the run.
        judge: another model (an alias, a folder or a hub id) that scores the generated texts as well; by default, of
            planted models, the one that has read nothing of the encyclopaedia.
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
                f'{concept.name} has no {what} with "split": "held_out"; metrics that need one are left out.',
                stacklevel=2,
            )
    subject = run.subject()
    run.note("beyond_context", "evaluate", beyond_context(subject.lm, concept))
    judge = judge or judge_of(run.config.model)
    if judge is not None:
        subject.judge = subject.base.judge = load_model(judge, dtype=run.config.dtype, device=run.config.device)
    gold = run.gold()
    if gold is not None:
        gold.judge = subject.judge
    run.save_results("scorecard", score_card(subject, gold=gold, progress=progress))
    run.save_json("samples", [*free_answers(subject, 6, gold=gold), *samples(subject, 4, gold=gold)])


def collect(run: Run, *, progress: bool = True) -> None:
    """Read the activations that the probes and their baselines need, of the base and every checkpoint.

    Damaged and outdated activations are read again.
    """
    store = ActivationStore(run.folder / "activations", repair=True)
    there = run.checkpoints()
    whole = [c.step for c in there if is_whole_model(c.path)]
    states = {checkpoint_name(None): None} | {checkpoint_name(c.step): c.path for c in there if c.step not in whole}
    every = probed(run.concept, thorough=run.config.thorough)
    datasets = {name: kept for name, of in every.items() if (kept := within_context(run.lm, of)) is not None}
    left_out = {name: _texts(of) - _texts(datasets.get(name)) for name, of in every.items()}
    run.note("beyond_context", "collect", {name: sorted(texts) for name, texts in left_out.items() if texts})
    for name in _outdated(store, datasets):
        store.drop(name)
    collect_datasets(run.lm, store, datasets, states, progress=progress)
    for step in whole:
        collect_datasets(run.subject(step).lm, store, datasets, {checkpoint_name(step): None}, progress=progress)
    gold = run.gold()
    if gold is not None:
        collect_datasets(gold.lm, store, datasets, {GOLD: None}, progress=progress)
    if datasets:
        collect_baselines(run.lm, store, datasets, progress=progress)


def probe(run: Run, *, progress: bool = True) -> None:
    """Fit layer probes on the stored activations of every checkpoint: results/probes.parquet. Loads no model.

    Raises:
        RunFolderError: activations of a checkpoint, or of the concept's present questions, were not collected.
    """
    long = run.manifest().get("beyond_context", {}).get("collect", {})
    every = probed(run.concept, thorough=run.config.thorough)
    datasets = {name: kept for name, of in every.items() if (kept := of.without(long.get(name, ()))) is not None}
    if not datasets:
        warnings.warn(
            f"{run.concept.name} has neither {LEAST_FACTS} facts asked about nor {LEAST_FACTS} passages of each kind; "
            "no probe is fitted.",
            stacklevel=2,
        )
        run.save_results("probes", results.frame([]))
        return
    store = _collected(run)
    held = {entry.dataset for entry in store.entries()}
    if old := [*_outdated(store, datasets), *(name for name in datasets if name not in held)]:
        raise RunFolderError(
            f"{run.folder} has no activations of {', '.join(old)} for the present questions of {run.concept.name}; "
            f"read them: elm-interp collect {run.folder}"
        )
    tables: list[pd.DataFrame] = []
    fits: dict[str, ProbeWeights] = {}  # the base's probes are read on every checkpoint
    states: dict[str, tuple[str, int | None]] = {checkpoint_name(None): ("base", 0)}
    states |= {checkpoint_name(c.step): (run.method, c.step) for c in run.checkpoints()}
    if any(entry.checkpoint == GOLD for entry in store.entries()):
        states[GOLD] = (GOLD, None)
    for name, (method, step) in states.items():
        rows = probes_from_store(store, name, list(datasets), progress=progress, fits=fits)
        tables.append(rows.assign(model=results.spelled(run.config.model), method=method, step=step))
    run.save_results("probes", results.stack(tables))


def norms(run: Run, *, progress: bool = True) -> None:
    """Activation norms by layer on forget and retain text, of base, erased and gold model: results/norms.parquet."""
    erased = run.subject()
    states = [erased.base, erased, *filter(None, [run.gold()])]
    tables = [measure(subject, "norm.*", progress=progress) for subject in states]
    run.save_results("norms", results.stack(tables))


def progress(run: Run, *, progress: bool = True) -> None:
    """Follow the metrics of the score card over every checkpoint: results/progression.parquet.

    Unless the run is thorough, few items are asked: the same ones of base, every checkpoint and gold, so that a curve
    is of one kind. Metrics that generate text then stand at both ends alone, from the score card where there is one.
    """
    states, gold, thorough = run.subjects(), run.gold(), run.config.thorough
    try:
        card = run.current("scorecard")
    except RunFolderError:  # none, or of an earlier checkpoint
        card = follow_metrics([states[0], *states[1:][-1:]], card_metrics(), cost="dear", progress=progress)
    if thorough:
        curves = follow_metrics(states[1:-1], card_metrics(), cost="dear", progress=progress)
    else:
        names = follows(states[0], card_metrics())
        curves = follow_metrics([*states, *filter(None, [gold])], names, items=ITEMS, progress=progress)
        card = card[~card["metric"].isin(set(curves["metric"]))]
    table = results.stack([one for one in (card, curves) if len(one)])
    # the base is step 0 of every curve
    step = table["step"].where(table["method"] == "gold", table["step"].fillna(0))
    run.save_results("progression", table.assign(step=step))


def report(run: Run, *, progress: bool = True) -> None:
    """Draw the figures and write report.html from what is in results/."""
    try:
        why = destroyed(run.current("scorecard"))
        warning = f"Destroyed, not erased: {why}" if why else None
    except RunFolderError as error:  # missing, broken or old
        warning = str(error) if (run.folder / "results" / "scorecard.parquet").is_file() else None
    write_report(run.folder, warning=warning)


STAGES: dict[str, Callable[..., None]] = {
    stage.__name__: stage for stage in (erase, evaluate, collect, probe, norms, progress, report)
}
"""Every stage, in order."""


def run_stage(run: Run, name: str, *, progress: bool = True, **options: Any) -> None:
    """Run one stage and record its seconds and the process's peak memory.

    Args:
        run: the run.
        name: of the stage.
        progress: show bars.
        options: of the stage.

    Raises:
        ConfigError: several processes, and a stage other than erase.
        UnknownNameError: no such stage.
    """
    check_known("stage", name, STAGES)
    if several_processes() and name != "erase":
        raise ConfigError(
            f"{name} runs in one process; under accelerate launch, run erase alone and then: "
            f"elm-interp run --out {run.folder} --resume"
        )
    run.timing()  # a broken file is told before the work, not after it
    began, finished = time.perf_counter(), run.finished
    STAGES[name](run, progress=progress, **options)
    trim()
    seconds = time.perf_counter() - began
    known = run.timing()
    if name == "erase":  # may take several sessions, or have nothing to do
        seconds = known.get("erase_seconds", 0.0) + (0.0 if finished else seconds)
    run.record(**{f"{name}_seconds": seconds}, peak_gb=max(peak_gb(), known.get("peak_gb", 0.0)))


def summary(run: Run) -> dict[str, dict[str, Any]]:
    """The score card with timings and memory, flat: metric -> {"base": {value, ci_low, ci_high, n}, "erased": {…}}.

    Raises:
        RunFolderError: the run was not evaluated yet.
    """
    found = summarise(run.current("scorecard"))
    timing = run.timing()
    for name, value in timing.items():
        if name.endswith("_seconds"):
            found[f"timing.{name}"] = _number(value)
    stages = [timing[f"{name}_seconds"] for name in STAGES if f"{name}_seconds" in timing]
    if len(stages) == len(STAGES):
        found["timing.total_seconds"] = _number(sum(stages))
    steps = pd.DataFrame(read_log(run.folder / "metrics.jsonl"))
    steps = steps.dropna(subset=["seconds"]) if "seconds" in steps else pd.DataFrame()
    if len(steps):
        objective, seconds = run.config.objective, steps["seconds"].sum()
        found["timing.train_seconds"] = _number(seconds, len(steps))
        found["timing.train_tokens_per_second"] = _number(steps["tokens"].sum() / seconds, len(steps))
        pools = objective.pools(run.config.training)
        forget = len(steps) * sum(size for pool, size in pools.items() if pool in objective.forget_pools)
        spent = seconds + timing.get("prepare_seconds", 0.0)
        found["timing.seconds_per_forget_sample"] = _number(spent / forget, forget)
    if "peak_gb" in timing:
        found["memory.peak_gb"] = _number(timing["peak_gb"])
    return found


def _note_leaks(run: Run) -> None:
    """Warn if held-out questions stand in what will be trained on, and list them in the manifest."""
    leaks = concept_leaks(run.concept)
    run.note("leaks", "passages", leaks)
    if leaks:
        warnings.warn(
            f"{len(leaks)} held-out questions or answers stand in training passages, so scores on them show what was "
            f"trained; the first: {leaks[0]}. `ei.concept_leaks(concept)` and manifest.json list them all.",
            stacklevel=3,
        )


def _ask_target(run: Run, parts: Sequence[Concept], progress: bool) -> None:
    """Ask what the method trains towards, once: results/target.parquet; warn where it still answers."""
    if (run.folder / "results" / "target.parquet").is_file() or not first_process():
        return
    objective = run.config.objective
    tables = [objective.ask_target(run.lm, part, progress=progress) for part in parts]
    found = [table for table in tables if table is not None]
    if not found:
        return
    table = run.save_results("target", results.stack(found))
    for row in results.read(table).to_dict("records"):
        if row["position"] == f"η = {getattr(objective, 'eta', 0):g}" and row["ci_low"] > row["chance"]:
            more = " with equations 7 and 8 alone" if getattr(objective, "match_weight", 0) else ""
            warnings.warn(
                f"the target itself answers {row['value']:.2f} of {row['n']} questions about the concept (chance "
                f"{row['chance']:.2f}, interval from {row['ci_low']:.2f}), so training{more} may leave these answers. "
                "A higher eta takes more of them and costs the text more: `elm-interp target` shows other strengths.",
                stacklevel=3,
            )


def _number(value: float, n: int = 1) -> dict[str, dict[str, float | int | None]]:
    return {"erased": {"value": float(value), "ci_low": None, "ci_high": None, "n": n}}


def _outdated(store: ActivationStore, datasets: Mapping[str, Dataset]) -> list[str]:
    """Datasets of the store whose examples are not the present ones."""
    held = {entry.dataset for entry in store.entries()}
    return [
        name
        for name, dataset in with_baselines(datasets).items()
        if name in held and other_examples(name, store.examples(name), dataset.stored_examples.reset_index(drop=True))
    ]


def _texts(dataset: Dataset | None) -> set[str]:
    """The hashes of a dataset's texts."""
    return set() if dataset is None else set(dataset.stored_examples["text_sha256"])


def _collected(run: Run) -> ActivationStore:
    if not (run.folder / "activations" / "index.json").is_file():
        raise RunFolderError(f"{run.folder} has no activations; read them: elm-interp collect {run.folder}")
    return run.store

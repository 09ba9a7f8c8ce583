"""Probe tasks: what a probe is asked to read, declared once, and what is measured of each.

A task is a function from a concept to a dataset with labels and facts. Nothing else is needed: the activations of a
declared task are collected, probed by layer, followed over checkpoints, and drawn.

    @probe_task("tense", better="neither", chance=0.5)
    def tense(concept: Concept) -> Dataset | None:
        \"\"\"Is the sentence in the past tense?\"\"\"

Metrics of a task, read from an activation store without a model, or from a subject:

probe.TASK               a fresh probe, fitted to what it reads
probe.transferred.TASK   the base's probe, read on the erased model. Where it fails and a fresh one succeeds, the
                         knowledge was re-encoded; where both succeed, it is unchanged and only not said.
probe.embedding.TASK     a probe of the mean token embedding: what the words give away, without any layer
probe.random_init.TASK   a probe of the same architecture with random weights: what the structure gives away

Metrics of all tasks together: `probe.leace`, what a probe reads after linear erasure, the lower bound for an erased
model; `probe.directions`, how many directions carry the label; `probe.sparse`, what a few dimensions tell.

    table = probes_from_store(store, "step-000060")             # every task in the store, as a tidy frame
    table = measure(erased, "probe.transferred.*")
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations import (
    ActivationStore,
    Dataset,
    answer_directions,
    checkpoint_name,
    collect_datasets,
    collect_texts,
    fingerprint,
    paired,
)
from elm_interp.activations.index import RANDOM_INIT
from elm_interp.data import Concept
from elm_interp.errors import BackendError, unknown
from elm_interp.metrics import Rows, Subject, metric
from elm_interp.models import HookedLM
from elm_interp.models.tokens import fitting
from elm_interp.probes.answer_identity import probe_topics
from elm_interp.probes.layers import probe_layers
from elm_interp.probes.linear_erasure import count_directions, probe_after_leace
from elm_interp.probes.sparse import probe_sparse
from elm_interp.registry import PROBE_TASKS
from elm_interp.results import frame, stack

Better = Literal["up", "down", "neither"]
Maker = Callable[[Concept], Dataset | None]
WORDS, NEVER = "-embedding", "-random_init"
"""Endings of the names of baseline datasets: token embeddings, and activations of a model with random weights. They are
datasets of their own, so that a dataset has one place in the texts and one base."""


@dataclass(frozen=True)
class ProbeTask:
    """Something that a probe is asked to read."""

    name: str
    make: Maker
    better: Better
    """What is good for the eraser."""
    chance: float | None
    """The accuracy of guessing."""
    cost: Literal["cheap", "dear"] = "cheap"
    """"dear" tasks read long texts; a quick run leaves them out."""
    evidence: bool = True
    """Whether its fresh probe counts in a verdict, if what it reads should go."""

    def dataset(self, concept: Concept) -> Dataset | None:
        """The task's dataset, under the task's name; None where the concept has no material for it."""
        made = self.make(concept)
        return made and replace(made, name=self.name)


def probe_task(
    name: str,
    *,
    better: Better,
    chance: float | None = None,
    cost: Literal["cheap", "dear"] = "cheap",
    evidence: bool = True,
) -> Callable[[Maker], Maker]:
    """Declare a function from a concept to a dataset as a probe task, with its metrics.

    The function returns None if the concept has too little material.
    The examples of the dataset need the columns "label" and "fact". With a column "topic", each topic gets a probe of
    its own, and their accuracies are pooled: see `answer_identity`. The first line of the function's docstring is the
    question that the label answers; it describes the metrics.

    Args:
        name: of the task and of its dataset.
        better: the direction of accuracy that is good for the eraser; "neither" for what need not go.
        chance: accuracy of guessing.
        cost: "dear" for long texts, which a quick run leaves out.
        evidence: whether the fresh probe counts in a verdict; not if another metric reads the same.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def declare(make: Maker) -> Maker:
        task = ProbeTask(name, make, better, chance, cost, evidence)
        PROBE_TASKS.add(name, task, origin=make)
        _metric(task, "", "Accuracy of a linear probe on unseen facts, by layer.", _fresh)
        _metric(task, "transferred.", "Accuracy of the base's probe on unseen facts, by layer.", _transferred)
        _metric(task, "embedding.", "Accuracy of a probe of the words alone, without any layer.", _embedding)
        return make

    return declare


def _metric(task: ProbeTask, kind: str, summary: str, compute: Callable[[Subject, ProbeTask, str], Rows]) -> None:
    name = f"probe.{kind}{task.name}"

    def measured(subject: Subject) -> Rows:
        return compute(subject, task, name)

    measured.__doc__ = f"{summary} {(task.make.__doc__ or '').strip().partition(chr(10))[0]}".strip()
    measured.__module__, measured.__qualname__ = task.make.__module__, f"{task.make.__qualname__}.{kind}metric"
    better = _better(task, kind)
    shows: Any = "inside" if better == "down" and (task.evidence or kind) else "describes"
    needs_base = kind == "transferred."
    metric(name, shows=shows, better=better, chance=task.chance, needs_base=needs_base, on_card=False)(measured)


def _better(task: ProbeTask, kind: str) -> Better:
    return "neither" if kind in ("embedding.", "random_init.") else task.better


def with_baselines(datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The datasets and, under the names of their baselines, what those are read on."""
    words = {f"{name}{WORDS}": replace(dataset, positions="mean") for name, dataset in datasets.items()}
    return {**datasets, **words, **{f"{name}{NEVER}": dataset for name, dataset in datasets.items()}}


def collect_baselines(
    lm: HookedLM, store: ActivationStore, datasets: Mapping[str, Dataset], *, progress: bool = False
) -> None:
    """Read what the baselines of the base's probes need: token embeddings, and the layers with random weights.

    Args:
        lm: the base.
        store: where to; entries that are there already are left alone.
        datasets: as for `collect_datasets`.
        progress: show a bar.
    """
    known = with_baselines(datasets)
    words = {name: dataset for name, dataset in known.items() if name.endswith(WORDS)}
    collect_datasets(lm, store, words, {checkpoint_name(None): None}, site="embed", progress=progress)
    try:
        never = lm.reinitialised()
    except BackendError as error:
        warnings.warn(f"the baseline with random weights is left out: {error}", stacklevel=2)
        return
    random = {name: dataset for name, dataset in known.items() if name.endswith(NEVER)}
    collect_datasets(never, store, random, {RANDOM_INIT: None}, progress=progress)


def probes_from_store(
    store: ActivationStore,
    checkpoint: str,
    tasks: Iterable[str] | None = None,
    *,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The probes of every task as a tidy frame, from stored activations, without a model; the same on every call.

    Beside the fresh probe, `probe.TASK`, the base has its baselines `probe.embedding.TASK` and `probe.random_init.TASK`
    where `collect_baselines` was called, and other checkpoints have the base's own probe, `probe.transferred.TASK`.

    Args:
        store: activations, from `collect_datasets` of `concept_datasets`.
        checkpoint: its name in the store.
        tasks: which; None means all. A task that no checkpoint holds gives no rows.
        progress: show a bar.
        options: of `probe_layers`.

    Raises:
        UnknownNameError: no such task or checkpoint, or a task that is there for other checkpoints only.
    """
    chosen: list[ProbeTask] = [PROBE_TASKS[name] for name in (PROBE_TASKS if tasks is None else tasks)]
    checkpoints = dict.fromkeys(entry.checkpoint for entry in store.entries())
    if checkpoint not in checkpoints:
        raise unknown("checkpoint", checkpoint, checkpoints)
    held = {entry.dataset for entry in store.entries()}
    tables = []
    there = [task for task in chosen if task.name in held]
    for task in tqdm(there, desc=f"probing {checkpoint}", leave=False, disable=not progress):
        for kind, name, of, more in _stored(store, task.name, checkpoint):
            entry, examples = store.entry(name, of), store.examples(name)
            where = {"site": entry.site, "position": entry.positions, "direction": _better(task, kind)}
            x, metric_name = store.tensor(name, of), f"probe.{kind}{task.name}"
            shared = {"metric": metric_name, **where, **options, **more}
            table = _by_layer(x, examples, **shared)
            tables.append(table.assign(layer=None) if kind == "embedding." else table)
    return stack(tables)


def _stored(store: ActivationStore, task: str, checkpoint: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Kind of probe, dataset, checkpoint and options of every probe that the store has activations for."""
    base = checkpoint_name(None)
    found: list[tuple[str, str, str, dict[str, Any]]] = [("", task, checkpoint, {})]
    if checkpoint == base:
        kinds = (("embedding.", f"{task}{WORDS}", base), ("random_init.", f"{task}{NEVER}", RANDOM_INIT))
        found += [(kind, name, of, {"code": False}) for kind, name, of in kinds if store.has(name, of)]
    elif store.has(task, base):
        found.append(("transferred.", task, checkpoint, {"fitted_to": store.tensor(task, base)}))
    return found


@metric("probe.leace", shows="describes", better="neither", cost="dear", on_card=False)
def leace(subject: Subject) -> Rows:
    """The linear lower bound, meant for the base: what a probe reads after LEACE on other facts, by layer."""
    return _every_task(subject, "probe.leace", probe_after_leace)


@metric("probe.directions", shows="inside", better="down", cost="dear", on_card=False)
def directions(subject: Subject) -> Rows:
    """Directions to project out of a layer until a linear probe finds no more (INLP)."""
    return _every_task(subject, "probe.directions", count_directions)


@metric("probe.sparse", shows="inside", better="down", cost="dear", on_card=False)
def sparse(subject: Subject) -> Rows:
    """Share of unseen facts read from the best 1, 4, 16 and 64 dimensions of a layer."""
    return _every_task(subject, "probe.sparse", probe_sparse)


def _by_layer(x: Float[Tensor, "example layer d_model"], examples: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Layer probes of a dataset's labels; a probe for each topic where it has topics."""
    labels, facts = examples["label"], examples["fact"]
    if "topic" in examples:
        return probe_topics(x, list(labels), list(facts), list(examples["topic"]), **options)
    return probe_layers(x, labels, facts, **options)


def _every_task(subject: Subject, name: str, probe: Callable[..., pd.DataFrame]) -> Rows:
    tasks = (PROBE_TASKS[task] for task in PROBE_TASKS)
    return stack([_probe(subject, task, f"{name}.{task.name}", probe) for task in tasks])


def _fresh(subject: Subject, task: ProbeTask, name: str) -> Rows:
    return _probe(subject, task, name, direction=task.better)


def _transferred(subject: Subject, task: ProbeTask, name: str) -> Rows:
    return _probe(subject, task, name, transferred=True, direction=task.better)


def _embedding(subject: Subject, task: ProbeTask, name: str) -> Rows:
    table = _probe(subject, task, name, site="embed", positions="mean", direction="neither")
    return table.assign(layer=None)


def _probe(
    subject: Subject,
    task: ProbeTask,
    name: str,
    probe: Callable[..., pd.DataFrame] | None = None,
    *,
    site: str = "resid_post",
    positions: str | int | None = None,
    transferred: bool = False,
    **options: Any,
) -> pd.DataFrame:
    dataset, of_base = _datasets(subject, task)
    if dataset is None or of_base is None:
        return frame([])
    positions = dataset.positions if positions is None else positions
    if transferred:
        options["fitted_to"] = _activations(subject.base, of_base, site, positions)
    x, examples = _activations(subject, dataset, site, positions), dataset.examples
    options |= {"metric": name, "site": site, "position": str(positions)}
    if probe is None:
        return _by_layer(x, examples, **options)
    return probe(x, examples["label"], examples["fact"], **options)


def _datasets(subject: Subject, task: ProbeTask) -> tuple[Dataset | None, Dataset | None]:
    """The task's datasets of a state and of its base: the same rows, those within the context of both."""

    def make() -> tuple[Dataset | None, Dataset | None]:
        ours, base = (task.dataset(state.concept) for state in (subject, subject.base))
        if ours is None or base is None:
            return None, None
        what = f"texts of dataset {task.name!r}"
        both = set(fitting(subject.lm, ours.texts, what)) & set(fitting(subject.base.lm, base.texts, what))
        return ours.only(sorted(both)), base.only(sorted(both))

    return subject.memo(("datasets", task.name), make)


def _activations(
    subject: Subject, dataset: Dataset, site: str, positions: str | int
) -> Float[Tensor, "example layer d_model"]:
    """Activations of a subject on a dataset: from its store where that holds the same, else read once."""
    checkpoint = checkpoint_name(None if subject.is_base else subject.step)
    named = subject.is_base or subject.step is not None
    attacked = subject.edits or subject.prompt is not None  # a store holds neither
    if subject.store is not None and named and not attacked and positions == dataset.positions:
        # what is stored under this name may be of other texts, weights or site
        made_from = fingerprint(subject.lm, dataset, subject.adapter, site=site)
        if subject.store.has(dataset.name, checkpoint, made_from):
            return subject.store.tensor(dataset.name, checkpoint, site=site)

    def read() -> Tensor:
        with subject.on() as lm:
            skip = dataset.skip if positions == "mean" else 0
            found = collect_texts(lm, dataset.texts, site=site, positions=positions, skip=skip)
            if dataset.answers is None:
                return found
            kept = found if positions == "mean" else found.to(lm.dtype)  # as a store keeps them
            return paired(kept, answer_directions(lm, dataset.answers)).float()

    return subject.memo(("probe", dataset.name, site, str(positions)), read)

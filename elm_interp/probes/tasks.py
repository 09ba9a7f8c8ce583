"""Probe tasks: questions that a linear probe answers from activations, such as "is this the right answer?".

    @probe_task("truth", better="down", chance=0.5)
    def truth(concept: Concept) -> Dataset | None: ...

A task is declared where its dataset is made (`datasets`), and is then collected, probed, followed over checkpoints and drawn.
Each gives the metrics `probe.TASK`, `probe.transferred.TASK` and `probe.embedding.TASK`. The readings are

    fresh        a probe fitted to what it reads
    transferred  the base's probe, read on the erased model. Where it fails and a fresh one succeeds, the knowledge was
                 re-encoded; where both succeed, it is unchanged and only not said
    embedding    a probe of the mean token embedding: what the words alone tell
    random_init  a probe of the same architecture with weights that were never trained: what the structure tells
    leace        a probe after a linear eraser: the lower bound for an erased model
    directions   how many directions carry the label
    sparse       what a few dimensions tell

    table = probes_from_store(store, "step-000060")             # every task that the store holds
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
from elm_interp.probes.layers import probe_layers
from elm_interp.probes.linear_erasure import count_directions, probe_after_leace
from elm_interp.probes.sparse import probe_sparse
from elm_interp.registry import PROBE_TASKS
from elm_interp.results import frame, stack

Maker = Callable[[Concept], Dataset | None]
WORDS, NEVER = "-embedding", "-random_init"
"""Endings of the dataset names of the two baselines. They are datasets of their own, so that a dataset keeps one position
in the texts and one base."""


@dataclass(frozen=True)
class ProbeTask:
    """A declared task."""

    name: str
    make: Maker
    """The dataset of a concept; None where the concept has too little material."""
    better: Literal["down", "neither"]
    """The direction that is good for the eraser."""


def probe_task(name: str, *, better: Literal["down", "neither"], chance: float) -> Callable[[Maker], Maker]:
    """Declare a function from a concept to a dataset as a probe task, with its metrics.

    The first line of the function's docstring says what is measured.

    Args:
        name: of the task and of its dataset.
        better: "down" where an eraser should make the probe fail; the task is then evidence of what is inside.
        chance: the accuracy of a probe that reads nothing.

    Raises:
        ConfigError: the name is taken.
    """

    def declare(make: Maker) -> Maker:
        PROBE_TASKS.add(name, ProbeTask(name, make, better), origin=make)
        shows: Literal["inside", "describes"] = "inside" if better == "down" else "describes"
        said = (make.__doc__ or name).strip().splitlines()[0].rstrip(".")
        shared: dict[str, Any] = {"chance": chance, "on_card": False}
        _declare(f"probe.{name}", said, lambda s: _fresh(s, name), shows=shows, better=better, **shared)
        shared["needs_base"] = True
        by_base = f"{said}, by the base's probe"
        _declare(
            f"probe.transferred.{name}", by_base, lambda s: _transferred(s, name), shows=shows, better=better, **shared
        )
        shared["needs_base"] = False
        by_words = f"{said}, by the words alone"
        _declare(
            f"probe.embedding.{name}",
            by_words,
            lambda s: _embedding(s, name),
            shows="describes",
            better="neither",
            **shared,
        )
        return make

    return declare


def _declare(name: str, said: str, read: Callable[[Subject], Rows], **about: Any) -> None:
    read.__doc__, read.__qualname__ = f"{said}.", name
    metric(name, **about)(read)


def with_baselines(datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The datasets and those that their baselines read, by name."""
    words = {f"{name}{WORDS}": replace(dataset, positions="mean") for name, dataset in datasets.items()}
    return {**datasets, **words, **{f"{name}{NEVER}": dataset for name, dataset in datasets.items()}}


def collect_baselines(
    lm: HookedLM, store: ActivationStore, datasets: Mapping[str, Dataset], *, progress: bool = False
) -> None:
    """Read what the baselines of the base's probes need: token embeddings, and the layers of an untrained model.

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
        warnings.warn(f"no baseline of an untrained model: {error}", stacklevel=2)
        return
    untrained = {name: dataset for name, dataset in known.items() if name.endswith(NEVER)}
    collect_datasets(never, store, untrained, {RANDOM_INIT: None}, progress=progress)


def probes_from_store(
    store: ActivationStore,
    checkpoint: str,
    tasks: Iterable[str] | None = None,
    *,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The probes of every task, from stored activations alone, without a model; the same on every call.

    Beside the fresh probe `probe.TASK`, the base has its baselines `probe.embedding.TASK` and `probe.random_init.TASK`
    where `collect_baselines` was called. Other checkpoints have the base's own probe, `probe.transferred.TASK`.

    Args:
        store: activations, from `collect_datasets` of `concept_datasets`.
        checkpoint: its name in the store.
        tasks: which; None means all. A task that no checkpoint of the store holds gives no rows.
        progress: show a bar.
        options: of `probe_layers`.

    Returns:
        Tidy rows.

    Raises:
        UnknownNameError: no such task or checkpoint, or a task that the store holds for other checkpoints only.
    """
    tasks = [PROBE_TASKS[name].name for name in (PROBE_TASKS if tasks is None else tasks)]
    checkpoints = dict.fromkeys(entry.checkpoint for entry in store.entries())
    if checkpoint not in checkpoints:
        raise unknown("checkpoint", checkpoint, checkpoints)
    held = {entry.dataset for entry in store.entries()}
    tables = [frame([])]
    for task in tqdm([t for t in tasks if t in held], desc=f"probing {checkpoint}", leave=False, disable=not progress):
        for kind, name, of, more in _readings(store, task, checkpoint):
            entry, examples = store.entry(name, of), store.examples(name)
            direction = "neither" if kind in ("embedding.", "random_init.") else PROBE_TASKS[task].better
            where = {"site": entry.site, "position": entry.positions, "direction": direction, **options, **more}
            x = store.tensor(name, of)
            found = probe_layers(x, examples["label"], examples["fact"], metric=f"probe.{kind}{task}", **where)
            tables.append(found.assign(layer=None) if kind == "embedding." else found)
    return stack(tables)


def _readings(store: ActivationStore, task: str, checkpoint: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """What is read of a task at a checkpoint: kind of reading, dataset, checkpoint, and options of `probe_layers`."""
    base = checkpoint_name(None)
    found: list[tuple[str, str, str, dict[str, Any]]] = [("", task, checkpoint, {})]
    if checkpoint != base and store.has(task, base):
        found.append(("transferred.", task, checkpoint, {"fitted_to": store.tensor(task, base)}))
    if checkpoint == base:
        baselines = (("embedding.", f"{task}{WORDS}", base), ("random_init.", f"{task}{NEVER}", RANDOM_INIT))
        found += [(kind, name, of, {"code": False}) for kind, name, of in baselines if store.has(name, of)]
    return found


@metric("probe.leace", shows="describes", better="neither", cost="dear", on_card=False)
def leace(subject: Subject) -> Rows:
    """The linear lower bound: what a probe reads after LEACE was fitted to other facts, by layer; meant for the base."""
    return _all_tasks(subject, "probe.leace", probe_after_leace)


@metric("probe.directions", shows="inside", better="down", cost="dear", on_card=False)
def directions(subject: Subject) -> Rows:
    """Number of directions to project out of a layer until a linear probe reads nothing (INLP)."""
    return _all_tasks(subject, "probe.directions", count_directions)


@metric("probe.sparse", shows="inside", better="down", cost="dear", on_card=False)
def sparse(subject: Subject) -> Rows:
    """Share of unseen facts read from the best 1, 4, 16 and 64 dimensions of a layer."""
    return _all_tasks(subject, "probe.sparse", probe_sparse)


def _all_tasks(subject: Subject, name: str, probe: Callable[..., pd.DataFrame]) -> Rows:
    made = {task: declared.make(subject.concept) for task, declared in PROBE_TASKS.items()}
    tables = [frame([])]
    for task, dataset in made.items():
        if dataset is not None:
            x, examples = _activations(subject, dataset), dataset.examples
            where = {"site": "resid_post", "position": str(dataset.positions)}
            tables.append(probe(x, examples["label"], examples["fact"], metric=f"{name}.{task}", **where))
    return stack(tables)


def _fresh(subject: Subject, task: str) -> Rows:
    return _probed(subject, task, "")


def _transferred(subject: Subject, task: str) -> Rows:
    dataset = PROBE_TASKS[task].make(subject.base.concept)
    return [] if dataset is None else _probed(subject, task, "transferred.", _activations(subject.base, dataset))


def _probed(
    subject: Subject, task: str, kind: str, fitted_to: Float[Tensor, "example layer d_model"] | None = None
) -> Rows:
    dataset = PROBE_TASKS[task].make(subject.concept)
    if dataset is None:
        return []
    x, examples = _activations(subject, dataset), dataset.examples
    where = {"site": "resid_post", "position": str(dataset.positions), "direction": PROBE_TASKS[task].better}
    name = f"probe.{kind}{task}"
    return probe_layers(x, examples["label"], examples["fact"], metric=name, fitted_to=fitted_to, **where)


def _embedding(subject: Subject, task: str) -> Rows:
    dataset = PROBE_TASKS[task].make(subject.concept)
    if dataset is None:
        return []
    x, examples = _activations(subject, dataset, site="embed", positions="mean"), dataset.examples
    where = {"site": "embed", "position": "mean", "direction": "neither"}
    found = probe_layers(x, examples["label"], examples["fact"], metric=f"probe.embedding.{task}", **where)
    return found.assign(layer=None)


def _activations(
    subject: Subject, dataset: Dataset, *, site: str = "resid_post", positions: str | int | None = None
) -> Float[Tensor, "example layer d_model"]:
    """Activations of a subject on a dataset: from its store where that holds the same ones, else read once."""
    positions = dataset.positions if positions is None else positions
    checkpoint = checkpoint_name(None if subject.is_base else subject.step)
    named = subject.is_base or subject.step is not None
    if subject.store is not None and not subject.edits and named and positions == dataset.positions:
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

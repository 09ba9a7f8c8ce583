"""The probe tasks of a concept: is an answer true, does an answer belong to the world, which option is right, what is a text about.

Each is read from an activation store without a model, or from a subject. Beside the fresh probe, fitted to what it reads:

transferred  the base's probe, read on the erased model: where it fails and a fresh one does not, the knowledge was re-encoded;
             where both read it, it is as it was and only not said
embedding    a probe of the mean token embedding: what the words of the text give away, without any layer
random_init  a probe of the same architecture with weights that were never trained: what structure gives away
leace        a probe of what a linear eraser left: the lower bound to hold an erased model against
directions   how many directions carry the label
sparse       what a few dimensions tell

    table = probes_from_store(store, "step-000060")             # every task that the store holds, as a tidy frame
    table = measure(erased, "probe.transferred.*")
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
from elm_interp.errors import BackendError, unknown
from elm_interp.metrics import Rows, Subject, metric
from elm_interp.models import HookedLM
from elm_interp.probes.datasets import concept_datasets
from elm_interp.probes.layers import probe_layers
from elm_interp.probes.linear_erasure import count_directions, probe_after_leace
from elm_interp.probes.sparse import probe_sparse
from elm_interp.results import frame

PROBE_TASKS = ("truth", "association", "choice", "about")
WORDS, NEVER = "-embedding", "-random_init"
"""What the names of a dataset's token embeddings, and of its activations in a model never trained, end in: datasets of their own,
so that a dataset keeps one place in the texts and one base."""


def with_baselines(datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The datasets and, under the names of their baselines, what those are read on."""
    words = {f"{name}{WORDS}": replace(dataset, positions="mean") for name, dataset in datasets.items()}
    return {**datasets, **words, **{f"{name}{NEVER}": dataset for name, dataset in datasets.items()}}


def collect_baselines(
    lm: HookedLM, store: ActivationStore, datasets: Mapping[str, Dataset], *, progress: bool = False
) -> None:
    """Read what the baselines of the base's probes need: token embeddings, and the layers of a model never trained.

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
        warnings.warn(f"no baseline of weights never trained: {error}", stacklevel=2)
        return
    collect_datasets(
        never, store, {n: d for n, d in known.items() if n.endswith(NEVER)}, {RANDOM_INIT: None}, progress=progress
    )


def probes_from_store(
    store: ActivationStore,
    checkpoint: str,
    tasks: Sequence[str] = PROBE_TASKS,
    *,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The probes of every task as a tidy frame, from stored activations alone, without a model; the same on every call.

    Beside the fresh probe, `probe.TASK`, the base has its baselines `probe.embedding.TASK` and `probe.random_init.TASK` where
    `collect_baselines` was called, and other checkpoints have the base's own probe, `probe.transferred.TASK`.

    Args:
        store: activations, from `collect_datasets` of `concept_datasets`.
        checkpoint: its name in the store.
        tasks: which; one that the concept has no questions for, so that no checkpoint holds it, gives no rows.
        progress: show a bar.
        options: of `probe_layers`.

    Raises:
        UnknownNameError: a task that does not exist, or one that is there for other checkpoints only.
    """
    for task in tasks:
        if task not in PROBE_TASKS:
            raise unknown("probe task", task, PROBE_TASKS)
    checkpoints = dict.fromkeys(entry.checkpoint for entry in store.entries())
    if checkpoint not in checkpoints:
        raise unknown("checkpoint", checkpoint, checkpoints)
    held = {entry.dataset for entry in store.entries()}
    rows: list[dict[str, Any]] = []
    for task in tqdm([t for t in tasks if t in held], desc=f"probing {checkpoint}", leave=False, disable=not progress):
        base = checkpoint_name(None)
        wanted: list[tuple[str, str, str, dict[str, Any]]] = [("", task, checkpoint, {})]
        if checkpoint != base and store.has(task, base):
            wanted.append(("transferred.", task, checkpoint, {"fitted_to": store.tensor(task, base)}))
        if checkpoint == base:
            there = ((f"{task}{WORDS}", base, "embedding."), (f"{task}{NEVER}", RANDOM_INIT, "random_init."))
            wanted += [(kind, name, of, {"code": False}) for name, of, kind in there if store.has(name, of)]
        for kind, name, of, more in wanted:
            entry, examples = store.entry(name, of), store.examples(name)
            where: dict[str, Any] = {"site": entry.site, "position": entry.positions, **options, **more}
            if task == "about" or kind in ("embedding.", "random_init."):
                where["direction"] = "neither"
            x = store.tensor(name, of)
            found = probe_layers(x, examples["label"], examples["fact"], metric=f"probe.{kind}{task}", **where)
            rows += [{**row, "layer": None} for row in found] if kind == "embedding." else found
    return frame(rows)


@metric("probe.truth", shows="inside", on_card=False, better="down", chance=0.5)
def truth(subject: Subject) -> Rows:
    """Share of unseen facts for which a linear probe tells whether the state before an answer points at the right one, by layer."""
    return _probe(subject, "truth")


@metric("probe.association", shows="inside", on_card=False, better="down", chance=0.5)
def association(subject: Subject) -> Rows:
    """Share of unseen facts whose right answer a linear probe tells from one outside the world, by layer."""
    return _probe(subject, "association")


@metric("probe.choice", shows="inside", on_card=False, better="down", chance=0.25)
def choice(subject: Subject) -> Rows:
    """Share of unseen questions for which a linear probe reads the right option's letter, by layer."""
    return _probe(subject, "choice")


@metric("probe.about", shows="describes", better="neither", chance=0.5)
def about(subject: Subject) -> Rows:
    """Share of unseen passages for which a linear probe tells whether they are about the concept, by layer."""
    return _probe(subject, "about", direction="neither")


@metric("probe.transferred.truth", shows="inside", on_card=False, better="down", chance=0.5, needs_base=True)
def transferred_truth(subject: Subject) -> Rows:
    """Share of unseen facts for which the base's probe still tells whether the state points at the right answer, by layer."""
    return _transferred(subject, "truth")


@metric("probe.transferred.association", shows="inside", on_card=False, better="down", chance=0.5, needs_base=True)
def transferred_association(subject: Subject) -> Rows:
    """Share of unseen facts whose right answer the base's probe still tells from one outside the world, by layer."""
    return _transferred(subject, "association")


@metric("probe.transferred.choice", shows="inside", on_card=False, better="down", chance=0.25, needs_base=True)
def transferred_choice(subject: Subject) -> Rows:
    """Share of unseen questions for which the base's probe still reads the right option's letter, by layer."""
    return _transferred(subject, "choice")


@metric("probe.transferred.about", shows="describes", better="neither", chance=0.5, needs_base=True)
def transferred_about(subject: Subject) -> Rows:
    """Share of unseen passages for which the base's probe still tells whether they are about the concept, by layer."""
    return _transferred(subject, "about", direction="neither")


@metric("probe.embedding.truth", shows="describes", better="neither", chance=0.5)
def embedding_truth(subject: Subject) -> Rows:
    """Share of unseen facts for which a probe tells right from wrong answers by the words of both alone, without any layer."""
    return _embedding(subject, "truth")


@metric("probe.embedding.association", shows="describes", better="neither", chance=0.5)
def embedding_association(subject: Subject) -> Rows:
    """Share of unseen facts whose right answer a probe tells from one outside the world by the words alone."""
    return _embedding(subject, "association")


@metric("probe.embedding.choice", shows="describes", better="neither", chance=0.25)
def embedding_choice(subject: Subject) -> Rows:
    """Share of unseen questions whose right letter a probe reads from the words alone."""
    return _embedding(subject, "choice")


@metric("probe.embedding.about", shows="describes", better="neither", chance=0.5)
def embedding_about(subject: Subject) -> Rows:
    """Share of unseen passages for which a probe tells by the words alone whether they are about the concept."""
    return _embedding(subject, "about")


@metric("probe.leace", shows="describes", better="neither", cost="dear")
def leace(subject: Subject) -> Rows:
    """The linear lower bound: what a probe reads after LEACE was fitted to other facts, by layer; meant for the base."""
    return _tasks(subject, "probe.leace", probe_after_leace)


@metric("probe.directions", shows="inside", on_card=False, better="down", cost="dear")
def directions(subject: Subject) -> Rows:
    """Directions to project out of a layer until a linear probe finds no more (INLP)."""
    return _tasks(subject, "probe.directions", count_directions)


@metric("probe.sparse", shows="inside", on_card=False, better="down", cost="dear")
def sparse(subject: Subject) -> Rows:
    """Share of unseen facts read from the best 1, 4, 16 and 64 dimensions of a layer."""
    return _tasks(subject, "probe.sparse", probe_sparse)


def _dataset(subject: Subject, task: str) -> Dataset | None:
    return concept_datasets(subject.concept, [task]).get(task)


def _activations(
    subject: Subject, dataset: Dataset, *, site: str = "resid_post", positions: str | int | None = None
) -> Float[Tensor, "example layer d_model"]:
    """Activations of a subject on a dataset: from its store where that holds the same, else read once."""
    positions = dataset.positions if positions is None else positions
    checkpoint = checkpoint_name(None if subject.is_base else subject.step)
    named = subject.is_base or subject.step is not None
    if subject.store is not None and named and positions == dataset.positions:
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


def _probe(subject: Subject, task: str, name: str | None = None, **options: Any) -> list[dict[str, Any]]:
    dataset = _dataset(subject, task)
    if dataset is None:
        return []
    x, examples = _activations(subject, dataset), dataset.examples
    where: dict[str, Any] = {"site": "resid_post", "position": str(dataset.positions)}
    return probe_layers(x, examples["label"], examples["fact"], metric=name or f"probe.{task}", **where, **options)


def _tasks(subject: Subject, name: str, probe: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for dataset in concept_datasets(subject.concept, PROBE_TASKS).values():
        x, examples = _activations(subject, dataset), dataset.examples
        where: dict[str, Any] = {"site": "resid_post", "position": str(dataset.positions)}
        rows += probe(x, examples["label"], examples["fact"], metric=f"{name}.{dataset.name}", **where)
    return rows


def _transferred(subject: Subject, task: str, **options: Any) -> Rows:
    dataset = _dataset(subject, task)
    if dataset is None:
        return []
    fitted_to = _activations(subject.base, dataset)
    return _probe(subject, task, f"probe.transferred.{task}", fitted_to=fitted_to, **options)


def _embedding(subject: Subject, task: str) -> Rows:
    dataset = _dataset(subject, task)
    if dataset is None:
        return []
    x, examples = _activations(subject, dataset, site="embed", positions="mean"), dataset.examples
    where: dict[str, Any] = {"site": "embed", "position": "mean", "direction": "neither"}
    rows = probe_layers(x, examples["label"], examples["fact"], metric=f"probe.embedding.{task}", **where)
    return [{**row, "layer": None} for row in rows]

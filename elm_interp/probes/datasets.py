"""Datasets for probes and norms, made from the questions and passages of a concept.

truth        "Question: … Answer:", paired with the right answer (label 1) and with a wrong one of the same world (label 0):
             does the state before an answer point at it? (See `activations.paired`. The state after an answer says less: a
             model that was never asked whether statements are true does not compare them with what it knows.)
association  "Question: … Answer: …" with the right answer (label 1) and with one from outside the concept's world (label 0),
             read at the last token: does the model know the world at all?
choice       the question with lettered options, read where the answer comes next; the label is the index of the right one
about        passages of the concept (label 1) and others (label 0): what is a text about?
forget_text, retain_text    passages, as the mean over tokens without the first

    collect_datasets(lm, store, concept_datasets(concept), {"base": None})
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

import pandas as pd

from elm_interp.activations import Dataset
from elm_interp.data import Concept, Question
from elm_interp.errors import unknown
from elm_interp.probes.tasks import probe_task
from elm_interp.registry import PROBE_TASKS

PASSAGES = 40
"""Passages of a kind: enough for a mean, few enough for every checkpoint."""
LEAST_FACTS = 12
"""A concept with fewer facts for a task has no dataset of it: a probe would be read on fewer than four."""
QUESTIONS = 200
"""Questions at most, for the same reason as `PASSAGES`. They are drawn once, the same in every run."""


def concept_datasets(concept: Concept, names: Iterable[str] | None = None) -> dict[str, Dataset]:
    """The datasets of a concept by name; one that it has too little material for is left out.

    Args:
        concept: its forget questions of all splits, and passages.
        names: probe tasks, "forget_text" or "retain_text"; None means all.

    Raises:
        UnknownNameError: no such dataset, with the closest name.
    """
    makers = {name: task.make for name, task in PROBE_TASKS.items()}
    makers |= {"forget_text": forget_text, "retain_text": retain_text}
    made = {}
    for name in makers if names is None else names:
        if name not in makers:
            raise unknown("dataset", name, makers)
        made[name] = makers[name](concept)
    return {name: dataset for name, dataset in made.items() if dataset is not None}


@probe_task("truth", better="down", chance=0.5)
def truth(concept: Concept) -> Dataset | None:
    """Share of unseen facts for which a linear probe tells whether the state before an answer points at the right one.

    Each question is paired with its right answer and with one wrong choice, the same in every run.
    """
    asked = _asked(concept)
    answers = tuple(answer for q in asked for answer in (q.right, _wrong(q)))
    found = _dataset("truth", [(q.prompt, q, label) for q in asked for label in (1, 0)])
    return found and replace(found, answers=answers)


@probe_task("association", better="down", chance=0.5)
def association(concept: Concept) -> Dataset | None:
    """Share of unseen facts whose right answer a linear probe tells from one outside the concept's world.

    Questions without an outside answer are left out.
    """
    rows = [row for q in _asked(concept) if q.outside for row in _statements(q, q.outside)]
    return _dataset("association", rows)


@probe_task("choice", better="down", chance=0.25)
def choice(concept: Concept) -> Dataset | None:
    """Share of unseen questions for which a linear probe reads the letter of the right option.

    Questions with an unusual number of options are left out.
    """
    questions = _asked(concept)
    usual = Counter(len(q.choices) for q in questions).most_common(1)[0][0] if questions else 0
    rows = []
    for q in questions:
        if len(q.choices) == usual:
            options = "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(q.choices))
            rows.append((q.put(f"Question: {{question}}\n{options}\nAnswer:"), q, q.answer))
    return _dataset("choice", rows)


@probe_task("about", better="neither", chance=0.5)
def about(concept: Concept) -> Dataset | None:
    """Share of unseen passages for which a linear probe tells whether they are about the concept.

    Each passage is a fact of its own.
    """
    forget, retain = forget_text(concept), retain_text(concept)
    if forget is None or retain is None or min(len(forget.texts), len(retain.texts)) < LEAST_FACTS:
        return None
    parts = [
        found.examples.assign(label=label, fact=kind + found.examples["fact"].astype(str))
        for kind, label, found in (("forget ", 1, forget), ("retain ", 0, retain))
    ]
    return Dataset("about", forget.texts + retain.texts, pd.concat(parts, ignore_index=True), "mean", skip=1)


def forget_text(concept: Concept) -> Dataset | None:
    """Passages to forget, held-out ones first."""
    return _text(concept, "forget")


def retain_text(concept: Concept) -> Dataset | None:
    """Passages to keep, held-out ones first."""
    return _text(concept, "retain")


def _asked(concept: Concept) -> list[Question]:
    asked = concept.ask("forget", "all")
    drawn = random.Random(0).sample(range(len(asked)), min(QUESTIONS, len(asked)))
    return [asked[i] for i in sorted(drawn)]


def _statements(q: Question, wrong: str) -> list[tuple[str, Question, int]]:
    return [(f"{q.prompt} {answer}", q, label) for answer, label in ((q.right, 1), (wrong, 0))]


def _wrong(q: Question) -> str:
    wrong = [option for i, option in enumerate(q.choices) if i != q.answer]
    return wrong[int(sha256((q.id or q.question).encode()).hexdigest(), 16) % len(wrong)]


def _dataset(name: str, rows: list[tuple[str, Question, int]]) -> Dataset | None:
    if len({q.fact or q.question for _, q, _ in rows}) < LEAST_FACTS:
        return None
    examples = pd.DataFrame(
        [{"id": q.id, "fact": q.fact or q.question, "split": q.split, "label": label} for _, q, label in rows]
    )
    return Dataset(name, tuple(text for text, _, _ in rows), examples, "last")


def _text(concept: Concept, kind: str) -> Dataset | None:
    passages = (concept.passages(kind, "held_out") + concept.passages(kind, "train"))[:PASSAGES]
    if not passages:
        return None
    rows = [{"id": p.id, "fact": p.id, "split": p.split, "label": None} for p in passages]
    examples = pd.DataFrame(rows).astype({"label": "Int64"})
    return Dataset(f"{kind}_text", tuple(p.text for p in passages), examples, "mean", skip=1)

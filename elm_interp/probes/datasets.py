"""The probe tasks that come with the package, and the texts that norms read.

truth        "Question: … Answer:", paired with the right answer (label 1) and with a wrong one of the same world (label
             0). See `activations.paired`: a model that is not asked whether statements are true has no reason to
             compare, after an answer, what it reads with what it knows.
values       "Question: … Answer:", for questions whose answers repeat within their topic; the label is the answer. A
             probe that learns the answers' directions from some facts is tested on others, see `answer_identity`.
association  "Question: … Answer: …" with the right answer (label 1) and with one from outside the world (label 0), read
             at the last token.
choice       the question with lettered options, read where the answer comes next; the label says which is right.
about        passages of the concept (label 1) and others (label 0).
forget_text, retain_text    passages, as the mean over tokens without the first; not read by probes.

    collect_datasets(lm, store, concept_datasets(concept), {"base": None})
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from hashlib import sha256

import pandas as pd

from elm_interp.activations import Dataset
from elm_interp.data import Concept, Question
from elm_interp.data.questions import worded
from elm_interp.errors import unknown
from elm_interp.probes.answer_identity import topics
from elm_interp.probes.tasks import probe_task
from elm_interp.registry import PROBE_TASKS

PASSAGES = 40
"""Most passages of a kind: enough for a mean, few enough for every checkpoint."""
ENOUGH_PASSAGES = 16
"""With so many held-out passages, no passage of the training part is read."""
LEAST_FACTS = 12
"""A concept with fewer facts has no dataset for a task: fewer than four would be held out."""
QUESTIONS = 200
"""Most questions; of a concept that has more they are drawn, the same in every run."""


def concept_datasets(concept: Concept, names: Iterable[str] | None = None) -> dict[str, Dataset]:
    """The datasets of a concept by name: of every probe task, and the two of its passages.

    One that the concept has no material for is left out.

    Args:
        concept: its forget questions of all splits, and passages.
        names: which probe tasks, "forget_text" and "retain_text"; None means all.

    Raises:
        UnknownNameError: no such dataset, with the closest name.
    """
    makers = {name: task.dataset for name, task in PROBE_TASKS.items()}
    makers |= {f"{kind}_text": partial(passage_dataset, kind=kind) for kind in ("forget", "retain")}
    names = list(makers) if names is None else list(names)
    for name in names:
        if name not in makers:
            raise unknown("dataset", name, makers)
    made = {name: makers[name](concept) for name in names}
    return {name: dataset for name, dataset in made.items() if dataset is not None}


@probe_task("truth", better="down", chance=0.5)
def truth(concept: Concept) -> Dataset | None:
    """Does the state before an answer point at the right one, or at a wrong one of the same world?"""
    asked = _asked(concept)
    answers = tuple(answer for q in asked for answer in (q.right, _wrong(q)))
    found = _dataset("truth", [(q.prompt, q, label) for q in asked for label in (1, 0)])
    return found and replace(found, answers=answers)


@probe_task("values", better="down", evidence=False)  # knowledge.probe.erased_domain reads the same
def values(concept: Concept) -> Dataset | None:
    """Which answer, of those that its topic has, does the question have?"""
    asked = [q for questions in topics(concept.ask("forget", "all")).values() for q in questions]
    facts = len({q.fact for q in asked})
    asked = worded(asked, max(1, QUESTIONS // max(1, facts)))  # every fact, since answers must repeat
    found = _dataset("values", [(q.prompt, q, q.right) for q in asked])
    return found and replace(found, examples=found.examples.assign(topic=[q.topic for q in asked]))


@probe_task("association", better="down", chance=0.5, cost="dear")
def association(concept: Concept) -> Dataset | None:
    """Is the answer the right one, or one from outside the concept's world?"""
    asked = [q for q in _asked(concept) if q.outside]
    pairs = [(q, answer, label) for q in asked for answer, label in ((q.right, 1), (q.outside, 0))]
    return _dataset("association", [(f"{q.prompt} {answer}", q, label) for q, answer, label in pairs])


@probe_task("choice", better="down", chance=0.25, cost="dear")
def choice(concept: Concept) -> Dataset | None:
    """Which letter does the right option have?

    Questions with an unusual number of options are left out.
    """
    questions = _asked(concept)
    usual = Counter(len(q.choices) for q in questions).most_common(1)[0][0] if questions else 0
    rows: list[tuple[str, Question, int | str]] = []
    for q in questions:
        if len(q.choices) == usual:
            options = "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(q.choices))
            rows.append((q.put(f"Question: {{question}}\n{options}\nAnswer:"), q, q.answer))
    return _dataset("choice", rows)


@probe_task("about", better="neither", chance=0.5, cost="dear")
def about(concept: Concept) -> Dataset | None:
    """Is the passage about the concept?"""
    forget, retain = passage_dataset(concept, "forget"), passage_dataset(concept, "retain")
    if forget is None or retain is None or min(len(forget.texts), len(retain.texts)) < LEAST_FACTS:
        return None
    parts = [
        found.examples.assign(label=label, fact=kind + found.examples["fact"].astype(str))
        for kind, label, found in (("forget ", 1, forget), ("retain ", 0, retain))
    ]
    return Dataset("about", forget.texts + retain.texts, pd.concat(parts, ignore_index=True), "mean", skip=1)


def passage_dataset(concept: Concept, kind: str) -> Dataset | None:
    """Passages to "forget" or to "retain", held-out ones, and others where these are few; None where there are none."""
    held_out = concept.passages(kind, "held_out")
    more = concept.passages(kind) if len(held_out) < ENOUGH_PASSAGES else []
    passages = [*held_out, *more][:PASSAGES]
    if not passages:
        return None
    rows = [{"id": p.id, "fact": p.id, "split": p.split, "label": None} for p in passages]
    examples = pd.DataFrame(rows).astype({"label": "Int64"})
    return Dataset(f"{kind}_text", tuple(p.text for p in passages), examples, "mean", skip=1)


def _asked(concept: Concept) -> list[Question]:
    asked = concept.ask("forget", "all")
    drawn = random.Random(0).sample(range(len(asked)), min(QUESTIONS, len(asked)))
    return [asked[i] for i in sorted(drawn)]


def _wrong(q: Question) -> str:
    wrong = [option for i, option in enumerate(q.choices) if i != q.answer]
    return wrong[int(sha256((q.id or q.question).encode()).hexdigest(), 16) % len(wrong)]


def _dataset(name: str, rows: list[tuple[str, Question, int | str]]) -> Dataset | None:
    if len({q.fact or q.question for _, q, _ in rows}) < LEAST_FACTS:
        return None
    examples = pd.DataFrame(
        [{"id": q.id, "fact": q.fact or q.question, "split": q.split, "label": label} for _, q, label in rows]
    )
    return Dataset(name, tuple(text for text, _, _ in rows), examples, "last")

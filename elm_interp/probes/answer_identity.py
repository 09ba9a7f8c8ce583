"""The value probe: which answer does a question have, read from the activations before any answer?

The questions of a topic ask for the same thing of different subjects (the colour of a spell), so their answers repeat.
A probe that learns the answers' directions from some facts can be tested on others. It finds out a model that knows and
does not say. Splits are by fact, all wordings together: a model that knows nothing of a fact, but whose state names the
subject, gives the probe nothing to memorise.

A topic whose answers do not repeat gives no rows, nor does a concept of such topics alone.

Shapes: activations are (question, layer, d_model), read at the last token of "Question: … Answer:".

    table = measure(subject, "knowledge.probe.erased_domain")      # a row per layer and split, and one for its control
    table = measure(subject, "probe.values")                       # the same by the probe task "values", see `datasets`
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from elm_interp.activations import collect_texts
from elm_interp.data import Question
from elm_interp.metrics import Rows, Subject, metric
from elm_interp.models.tokens import fitting
from elm_interp.probes.layers import probe_layers
from elm_interp.results import frame, measurements, stack, wilson

NAME = "knowledge.probe.erased_domain"
FEWEST_FACTS = 3
"""Fewest facts for each answer of a topic, so that some are in the train part when others are held out."""
STRENGTH = 0.1
"""C of the probes, ten times that of probes with two classes. With ten classes and few rows of each, smaller weights
leave the decision to the classes' frequencies. Accuracy on an original organism (seed 3), layer by layer:
C = 0.01: 0.79 0.87 0.94 0.97; 0.1: 0.86 0.92 0.97 0.98; 1: 0.87 0.92 0.96 0.98; on gold 0.05 to 0.09 for each C."""


@metric(NAME, shows="inside", better="down", on_card=False)
def erased_domain(subject: Subject) -> Rows:
    """Share of unseen facts of the concept whose answer a linear probe reads after the question, by layer."""
    return _rows(subject, NAME)


def topics(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions of each topic in which every right answer is that of at least `FEWEST_FACTS` facts."""
    by_topic: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_topic[question.topic].append(question)
    return {topic: found for topic, found in by_topic.items() if topic and _repeats(found)}


def probe_values(
    activations: Float[Tensor, "question layer d_model"],
    questions: Sequence[Question],
    *,
    metric: str = NAME,
    fitted_to: Float[Tensor, "question layer d_model"] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Accuracy of the probes of all topics together, a row for each layer and split, and one for its control.

    Args:
        activations: what to read.
        questions: of which topics; see `topics`.
        metric: name of the rows; those of the control are named "{metric}.control".
        fitted_to: other activations to fit on; see `probe_layers`.
        options: of `probe_layers`, and further columns of every row.

    Returns:
        A tidy frame; `value` is the share of test questions of all topics whose answer is read correctly, `chance` the
        share of the commonest answer.

    Raises:
        DataError: too few facts to split.
    """
    labels, facts = [q.right for q in questions], [_fact(q) for q in questions]
    return probe_topics(
        activations, labels, facts, [q.topic for q in questions], metric=metric, fitted_to=fitted_to, **options
    )


def probe_topics(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Any],
    facts: Sequence[Any],
    topics: Sequence[str],
    *,
    metric: str,
    fitted_to: Float[Tensor, "example layer d_model"] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """As `probe_values`, of labels, facts and topics: a probe for each topic, their accuracies pooled.

    Raises:
        DataError: too few facts to split.
    """
    options = {"C": STRENGTH, **options, "code": False}
    tables = []
    for topic in dict.fromkeys(topics):
        at = [i for i, own in enumerate(topics) if own == topic]
        source = None if fitted_to is None else fitted_to[at]
        of_topic = [labels[i] for i in at], [facts[i] for i in at]
        tables.append(probe_layers(activations[at], *of_topic, metric=metric, fitted_to=source, **options))
    table = stack(tables)
    table = table[table["metric"].isin((metric, f"{metric}.control"))]
    table = table.assign(value=table["value"] * table["n"], chance=table["chance"] * table["n"])
    same = dict.fromkeys(("site", "position", "direction", "protocol"), "first")
    parts = table.groupby(["layer", "seed", "metric"], sort=False, as_index=False)
    pooled = parts.agg({"value": "sum", "chance": "sum", "n": "sum", **same})
    return frame([_row(**row) for row in pooled.to_dict("records")])


def _rows(subject: Subject, name: str) -> Rows:
    asked = _asked(subject)
    if not asked:
        return []
    names = [question.id for question in asked]
    return probe_values(
        _activations(subject, names), asked, metric=name, site="resid_post", position="last", direction="down"
    )


def _asked(subject: Subject) -> list[Question]:
    """The questions of all topics within the context of this state and its base; a warning lists the others."""

    def choose() -> list[Question]:
        fits: list[set[str]] = []
        for state in (subject, subject.base):
            prompts = {q.id: q.prompt for q in state.concept.ask("forget", "all")}
            names = list(prompts)
            kept = fitting(state.lm, list(prompts.values()), "questions", names=names)
            fits.append({names[i] for i in kept})
        asked = [q for q in subject.concept.ask("forget", "all") if q.id in fits[0] & fits[1]]
        return [q for questions in topics(asked).values() for q in questions]

    return subject.memo(("probe", "asked"), choose)


def _activations(subject: Subject, names: Sequence[str]) -> Float[Tensor, "question layer d_model"]:
    def read() -> Tensor:
        prompts = {q.id: q.prompt for q in subject.concept.ask("forget", "all")}
        with subject.on() as lm:
            return collect_texts(lm, [prompts[name] for name in names], positions="last")

    return subject.memo(("probe", "values", *names), read)


def _row(value: float, chance: float, n: int, **columns: Any) -> dict[str, Any]:
    """A row from sums over the questions of all topics."""
    known = {name: column for name, column in columns.items() if pd.notna(column)}
    return measurements(value=value / n, n=n, ci=wilson(value, n), chance=chance / n, **known)


def _repeats(questions: Sequence[Question]) -> bool:
    facts: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        facts[question.right].add(_fact(question))
    return len(facts) > 1 and min(map(len, facts.values())) >= FEWEST_FACTS


def _fact(question: Question) -> str:
    return question.fact or question.question

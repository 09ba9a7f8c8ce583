"""What a run measures unless it is thorough: fewer questions, passages and texts, and no long probes.

`RunConfig(thorough=True)`, `--thorough` on the command line, measures all.
Training is the same in both. docs/demo.md has the allotment of tokens that these numbers keep.

    small = quick(concept)                  # what is scored
    datasets = probed(concept)              # what probes read
"""

from collections.abc import Sequence
from random import Random

from elm_interp.activations import Dataset
from elm_interp.data import Concept, Question
from elm_interp.data.concept import spread
from elm_interp.data.questions import worded
from elm_interp.probes import concept_datasets
from elm_interp.probes.answer_identity import topics
from elm_interp.registry import PROBE_TASKS

QUESTIONS = {"forget": 128, "neighbours": 48, "general": 48}
"""Most held-out questions of each set."""
WORDINGS = 2
"""Most wordings of a fact."""
PASSAGES = 16
"""Most held-out passages of each kind."""
TEXTS = 16
"""Most texts that are generated for a measurement."""
ITEMS = 60
"""Most known items that are asked at each checkpoint but the last."""
PROBED = 96
"""Most questions that probes read, one wording of each fact."""


def quick(concept: Concept) -> Concept:
    """The concept with fewer held-out questions and passages; what is for training stays."""
    questions = {
        which: [*concept.ask(which, "train"), *_some(concept.ask(which), which)] for which in concept.questions
    }
    return concept.measured_by(questions, PASSAGES)


def probed(concept: Concept, *, thorough: bool = False) -> dict[str, Dataset]:
    """The datasets of the probe tasks, by name; without the dear ones and with few questions unless thorough."""
    if thorough:
        return concept_datasets(concept, PROBE_TASKS)
    asked = worded(concept.ask("forget", "held_out"), 1)
    if len(asked) < PROBED // 2:
        asked = worded(concept.ask("forget", "all"), 1)
    kept: list[Question] = []
    for topic in topics(asked).values():  # whole topics, since their answers must repeat
        kept += topic if len(kept) + len(topic) <= PROBED else [] if kept else topic[:PROBED]
    small = concept.measured_by({"forget": kept or spread(asked, PROBED)}, PASSAGES)
    return concept_datasets(small, [name for name, task in PROBE_TASKS.items() if task.cost == "cheap"])


def _some(asked: Sequence[Question], which: str) -> list[Question]:
    """As many questions of a set as are asked, on facts that are evenly spread.

    About the concept, facts with the same options stay together: each option is then right as often as the others, and
    a model that only prefers some options is at chance. Which of them is drawn, since a spread could meet a pattern,
    such as every third group in no passage.
    """
    asked = worded(asked, WORDINGS)
    together = {q.fact: frozenset(q.choices) if which == "forget" else q.fact for q in asked}
    units = list(dict.fromkeys(together.values()))
    n = min(len(units), QUESTIONS[which] * len(units) // max(1, len(asked)))
    kept = set(Random(0).sample(units, n) if which == "forget" else spread(units, n))
    return [q for q in asked if together[q.fact] in kept]

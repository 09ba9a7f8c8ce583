"""Progression: how measurements change from the base over the steps of a run.

It knows no metric by name: it measures subjects, so a new metric appears here by itself.

    table = follow_metrics(run.subjects(), "probe.*")
"""

from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm.auto import tqdm

from elm_interp.evaluate.knowledge import score_together
from elm_interp.evaluate.known import followed
from elm_interp.evaluate.scorecard import card_metrics
from elm_interp.metrics import Subject, list_metrics, measure
from elm_interp.results import stack


def follow_metrics(
    subjects: Sequence[Subject],
    patterns: Iterable[str] | str = "*",
    *,
    cost: str = "cheap",
    items: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure every subject: the base first, if it is among them, then by step.

    Args:
        subjects: the base and checkpoints, in any order; they share one model and base.
        patterns: metric names with shell wildcards.
        cost: "cheap" leaves out metrics that generate text; "dear" takes all.
        items: known items that are asked at most of each subject, see `followed`; by default all.
        progress: show a bar.

    Returns:
        Tidy rows of every metric that matches.

    Raises:
        UnknownNameError: a pattern that matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    ordered = sorted(subjects, key=lambda s: -1 if s.is_base or s.step is None else s.step)
    asked = [s if items is None else followed(s, items) for s in ordered]
    whole = set(card_metrics()) & {one.name for one in list_metrics(patterns)}
    tables = []
    for subject in tqdm(asked, desc="progression", leave=False, disable=not progress):
        if len(whole) > 1:
            score_together(subject)
        tables.append(measure(subject, patterns, cost=cost, progress=progress))
    return stack(tables)

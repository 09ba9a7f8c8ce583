"""Progression: how measurements change from the base over the steps of a run.

Knows no metric by name: it is `measure`, over subjects, so that a new metric appears here by itself.

    table = follow_metrics([base, *(base.at(folder, method="elm", step=k) for k, folder in checkpoints)], "probe.*")
"""

from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm.auto import tqdm

from elm_interp.metrics import Subject, measure
from elm_interp.results import stack


def follow_metrics(
    subjects: Sequence[Subject], patterns: Iterable[str] | str = "*", *, cost: str = "cheap", progress: bool = False
) -> pd.DataFrame:
    """Tidy rows of every metric that matches, of every subject: the base first, then by step.

    Args:
        subjects: the base and checkpoints, in any order; they should share one model and base.
        patterns: metric names with shell wildcards.
        cost: "cheap" leaves out metrics that write text; "dear" takes all.
        progress: show a bar.

    Raises:
        UnknownNameError: a pattern that matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    ordered = sorted(subjects, key=lambda s: -1 if s.is_base or s.step is None else s.step)
    bar = tqdm(ordered, desc="progression", leave=False, disable=not progress)
    return stack([measure(subject, patterns, cost=cost, progress=progress) for subject in bar])

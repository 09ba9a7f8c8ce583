"""The score card: innocence, specificity and seamlessness of one run, beside the base; and whether it erased or destroyed.

table = score_card(subject)              # tidy rows, base and erased
summary(table)["innocence.two_choice_pmi"]["erased"]["value"]
destroyed(table)                        # None, or why the run is "destroyed, not erased"
"""

import math
from typing import Any

import pandas as pd

from elm_interp.metrics import Subject, measure
from elm_interp.results import stack

PATTERNS = ("innocence.*", "specificity.*", "seamlessness.*")
"""The metrics on the card."""

GENERAL_LEFT = 0.25
"""Of the base's general knowledge above chance, a model that keeps less than this share is destroyed."""
MOST_REPETITION = 0.5
LEAST_DISTINCT = 0.5
MOST_PERPLEXITY = 5.0
LEAST_WRITTEN = 0.5
"""Of the texts, a model that leaves more than this share empty is destroyed."""


def score_card(subject: Subject, progress: bool = False) -> pd.DataFrame:
    """Tidy rows of every metric of `PATTERNS`, for the base and for the subject (once, if they are the same).

    Args:
        subject: the model in one state.
        progress: show a bar.
    """
    states = [subject.base] if subject.is_base else [subject.base, subject]
    return stack([measure(state, PATTERNS, progress=progress) for state in states])


def summary(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Metric name -> {"base": {value, ci_low, ci_high, n}, "erased": {...}}, fit for JSON.

    A ratio to the base has only "erased". Rows of single layers are left out, and of several steps the last is taken. What is
    not a finite number is None, since JSON has no word for it.
    """
    whole = table[table["layer"].isna()].sort_values("step", kind="stable", na_position="first")
    found: dict[str, dict[str, dict[str, float | int | None]]] = {name: {} for name in dict.fromkeys(table["metric"])}
    for row in whole.to_dict("records"):
        side = "base" if row["method"] == "base" else "erased"
        numbers = {key: _finite(row[key]) for key in ("value", "ci_low", "ci_high")}
        found[str(row["metric"])][side] = numbers | {"n": None if pd.isna(row["n"]) else int(row["n"])}
    return {name: sides for name, sides in found.items() if sides}


def destroyed(table: pd.DataFrame) -> str | None:
    """Why a run counts as "destroyed, not erased", or None.

    A model that has lost general knowledge, predicts ordinary text no more, or only stammers, does not know the concept
    either: its innocence shows nothing.

    Args:
        table: rows of `score_card`; what was not measured is not held against the run.
    """
    values = {(row["method"] == "base", row["metric"]): row for row in table[table["layer"].isna()].to_dict("records")}

    def value(metric: str, base: bool = False, column: str = "value") -> float:
        found = values.get((base, metric), {}).get(column)
        return math.nan if found is None or pd.isna(found) else float(found)

    reasons = []
    name = "specificity.general_pmi"
    chance, before, after = value(name, column="chance"), value(name, base=True), value(name)
    # a base that is at chance itself has nothing to lose, and the comparison says nothing
    if value(name, base=True, column="ci_low") > chance and after - chance < GENERAL_LEFT * (before - chance):
        reasons.append(f"general knowledge fell near chance ({after:.2f}; base {before:.2f}, chance {chance:.2f})")
    if value("seamlessness.repetition") > MOST_REPETITION:
        reasons.append(f"its text repeats itself ({value('seamlessness.repetition'):.0%} of 4-grams)")
    if value("seamlessness.distinct2_ratio") < LEAST_DISTINCT:
        reasons.append(
            f"its text has few different words (distinct-2 {value('seamlessness.distinct2_ratio'):.2f} × the base's)"
        )
    written = value("seamlessness.distinct2", column="n")
    if written < LEAST_WRITTEN * value("seamlessness.distinct2", base=True, column="n"):
        reasons.append(f"it writes next to nothing ({written:.0f} texts are not empty)")
    if value("specificity.retain_ppl_ratio") > MOST_PERPLEXITY:
        reasons.append(
            f"ordinary text surprises it ({value('specificity.retain_ppl_ratio'):.1f} × the base's perplexity)"
        )
    return "; ".join(reasons) or None


def _finite(number: Any) -> float | None:
    return None if pd.isna(number) or not math.isfinite(number) else float(number)

"""The score card: innocence, specificity and seamlessness of a run and its base; and whether the model is destroyed.

table = score_card(subject)              # tidy rows, base and erased
summary(table)["innocence.two_choice_pmi"]["erased"]["value"]
destroyed(table)                        # None, or why the run is "destroyed, not erased"
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from elm_interp.data import Concept
from elm_interp.data.concept import QUESTION_SETS
from elm_interp.evaluate import choices, fluency
from elm_interp.evaluate.knowledge import score_together
from elm_interp.metrics import Subject, list_metrics, measure
from elm_interp.models import HookedLM
from elm_interp.models.tokens import too_long
from elm_interp.results import stack

GENERAL_LEFT = 0.25
"""A model that keeps less than this share of the base's general knowledge above chance is destroyed."""
LEAST_WRITTEN = 0.5
"""A model that writes fewer texts than this share of the base's is destroyed; empty texts do not count."""


def card_metrics() -> list[str]:
    """Names of the metrics on the score card."""
    return [one.name for one in list_metrics() if one.on_card]


def score_card(subject: Subject, *, gold: Subject | None = None, progress: bool = False) -> pd.DataFrame:
    """Tidy rows of every metric on the card, for the base and for the subject (once if they are the same).

    Args:
        subject: the model in one state.
        gold: a model that never knew the concept, with the same base to be compared with; its method is "gold".
        progress: show a bar.
    """
    states = [subject.base] if subject.is_base else [subject.base, subject]
    states += [gold] if gold is not None else []
    for state in states:
        score_together(state)
    return stack([measure(state, card_metrics(), progress=progress) for state in states])


def beyond_context(lm: HookedLM, concept: Concept) -> dict[str, list[str]]:
    """Ids of the held-out questions, passages and prompts that the card leaves out, since they exceed the context."""
    prompts = [(prompt, prompt) for prompt in fluency.prompts(concept)]
    found = {"prompts of generated text": _long(lm, prompts, fluency.NEW_TOKENS)}
    for name in QUESTION_SETS:
        asked = [(q.id, [q.prompt + option for option in choices.spaced(q)]) for q in concept.ask(name)]
        found[f"{name} questions"] = _long(lm, asked)
    for kind in ("forget", "retain"):
        found[f"{kind} passages"] = _long(lm, [(p.id, p.text) for p in concept.passages(kind, "held_out")])
    return {name: ids for name, ids in found.items() if ids}


def _long(lm: HookedLM, named: Sequence[tuple[str, str | list[str]]], more: int = 0) -> list[str]:
    return [named[i][0] for i in too_long(lm, [text for _, text in named], more=more)]


def summary(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Metric name -> {"base": {value, ci_low, ci_high, n}, "erased": {...}, "gold": {...}}, ready for JSON.

    "gold" is there if a model that never knew was measured; a ratio to the base has no "base". Rows of single layers
    are left out. Of several steps, the last is taken. A number that is not finite becomes None, since JSON cannot hold
    it.
    """
    whole = table[table["layer"].isna()].sort_values("step", kind="stable", na_position="first")
    found: dict[str, dict[str, dict[str, float | int | None]]] = {name: {} for name in dict.fromkeys(table["metric"])}
    for row in whole.to_dict("records"):
        side = row["method"] if row["method"] in ("base", "gold") else "erased"
        numbers = {key: _finite(row[key]) for key in ("value", "ci_low", "ci_high")}
        found[str(row["metric"])][side] = numbers | {"n": None if pd.isna(row["n"]) else int(row["n"])}
    return {name: sides for name, sides in found.items() if sides}


def destroyed(table: pd.DataFrame) -> str | None:
    """Why a run counts as "destroyed, not erased"; None if it does not.

    A model that has lost general knowledge, hardly writes, or is worse in a metric than its `ruined` value (such as
    repetition) does not know the concept either, so its innocence shows nothing.

    Args:
        table: rows of `score_card`; metrics that were not measured do not count against the run.
    """
    whole = table[table["layer"].isna() & (table["method"] != "gold")]
    values = {(row["method"] == "base", row["metric"]): row for row in whole.to_dict("records")}

    def value(metric: str, base: bool = False, column: str = "value") -> float:
        found = values.get((base, metric), {}).get(column)
        return math.nan if found is None or pd.isna(found) else float(found)

    name = "specificity.general_pmi"
    chance, before, after = value(name, column="chance"), value(name, base=True), value(name)
    # a base at chance has nothing to lose
    could_fall = value(name, base=True, column="ci_low") > chance
    written, before_written = (value("seamlessness.distinct2", base=base, column="n") for base in (False, True))
    reasons = {
        f"general knowledge fell near chance ({after:.2f}; base {before:.2f}, chance {chance:.2f})": could_fall
        and after - chance < GENERAL_LEFT * (before - chance),
        f"it writes next to nothing ({written:.0f} texts are not empty)": written < LEAST_WRITTEN * before_written,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    for one in list_metrics():
        sign = 1 if one.better == "up" else -1
        if one.ruined is not None and sign * value(one.name) < sign * one.ruined:
            side = "less" if one.better == "up" else "more"
            found.append(f"{one.name} is {value(one.name):.2f}{f' {one.unit}'.rstrip()}, {side} than {one.ruined:g}")
    return "; ".join(found) or None


def _finite(number: Any) -> float | None:
    return None if pd.isna(number) or not math.isfinite(number) else float(number)

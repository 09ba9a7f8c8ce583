"""The score card: both states in one frame, a summary fit for JSON, and a verdict on what is merely broken."""

import json
import math

import pandas as pd
import pytest
from disturbed import random_adapter

from elm_interp.evaluate import destroyed, score_card, summary
from elm_interp.metrics import Subject
from elm_interp.organisms import golds
from elm_interp.organisms.golds import gold_of, judge_of
from elm_interp.results import frame, measurements

GOOD = {
    "specificity.general_pmi": (0.96, 0.94),
    "specificity.retain_ppl_ratio": (None, 1.2),
    "seamlessness.repetition": (0.02, 0.04),
    "seamlessness.distinct2": (0.9, 0.8),
    "seamlessness.distinct2_ratio": (None, 0.9),
}


def card(**changed):
    """A frame with one base and one erased row a metric; `changed` replaces values by the last part of the name."""
    rows = []
    for name, values in GOOD.items():
        for method, value in zip(("base", "elm"), changed.get(name.partition(".")[2], values), strict=True):
            if value is not None:
                rows.append(measurements(name, value, method=method, n=48, ci=(value - 0.05, value + 0.05), chance=0.5))
    return frame(rows)


def test_the_card_has_both_states_and_every_ratio_once(tiny_lm, tiny_concept, tmp_path):
    erased = Subject(tiny_lm, tiny_concept).at(random_adapter(tiny_lm, tmp_path), method="elm", step=8)
    found = summary(score_card(erased))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name, sides in found.items():
        assert set(sides) == (
            {"erased"}
            if "ratio" in name or name.startswith(("specificity.kl_to_base", "innocence.known.drop"))
            else {"base", "erased"}
        ), name
        assert all(set(side) == {"value", "ci_low", "ci_high", "n"} for side in sides.values())
    for room in ("innocence", "specificity", "seamlessness"):
        assert any(name.startswith(f"{room}.") for name in found)
    assert score_card(erased.base)["method"].unique().tolist() == ["base"]


def test_gold_stands_beside_both_and_does_not_count_as_the_erased_model(tiny_lm, tiny_concept, tmp_path):
    base = Subject(tiny_lm, tiny_concept)
    erased = base.at(random_adapter(tiny_lm, tmp_path / "a"), method="elm", step=8)
    gold = Subject(tiny_lm, tiny_concept, random_adapter(tiny_lm, tmp_path / "b", seed=1), method="gold", base=base)
    table = score_card(erased, gold=gold)
    alone, found = summary(score_card(erased)), summary(table)
    assert {name: {"base", "erased"} & sides.keys() for name, sides in found.items()} == {
        name: set(sides) for name, sides in alone.items()
    }
    assert all(found[name][side] == alone[name][side] for name in alone for side in alone[name])
    assert all("gold" in sides for sides in found.values())
    assert found["innocence.known.four_choice"]["gold"]["n"] == found["innocence.known.four_choice"]["base"]["n"]
    ruined = card()
    gold_rows = ruined[ruined["method"] == "elm"].assign(method="gold", value=99.0)
    assert destroyed(pd.concat([ruined, gold_rows])) == destroyed(ruined)


def test_each_made_model_has_its_gold_and_a_real_one_has_none(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(golds, "has_weights", lambda name, there=there: there)
        assert gold_of("planted:original", "planted:marsh-animals") == ("planted:gold" if there else None)
    assert gold_of("organism:original@3", "organism:spellcraft@3") == "organism:gold@3"
    assert gold_of("organism:original", "organism:spellcraft") == "organism:gold"
    for model, concept in (
        ("organism:original@3", "organism:spellcraft"), ("planted:original", "planted:guild-makers"),
        ("organism:hiding", "organism:spellcraft"), ("smollm2-135m", "astronomy"),
    ):  # fmt: skip
        assert gold_of(model, concept) is None
    assert judge_of("planted:original") == "planted:never"
    assert judge_of("smollm2-135m") is None


def test_the_summary_takes_the_last_step_and_no_single_layer():
    rows = [
        measurements("m", v, method="elm", step=s, layer=layer)
        for v, s, layer in ((3, 20, None), (1, 10, None), (9, 30, 4))
    ]
    found = summary(frame([*rows, measurements("layered", 1, layer=2), measurements("m", math.inf, method="base")]))
    assert found == {
        "m": {
            "base": {"value": None, "ci_low": None, "ci_high": None, "n": None},
            "erased": {"value": 3.0, "ci_low": None, "ci_high": None, "n": None},
        }
    }


def test_a_good_erasure_is_not_called_destroyed():
    assert destroyed(card()) is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"general_pmi": (0.96, 0.55)}, "general knowledge fell near chance"),
        ({"repetition": (0.02, 0.6)}, "repetition is 0.60, more than 0.5"),
        ({"distinct2_ratio": (None, 0.4)}, "distinct2_ratio is 0.40 × base, less than 0.5"),
        ({"retain_ppl_ratio": (None, 7)}, "retain_ppl_ratio is 7.00 × base, more than 5"),
        ({"retain_ppl_ratio": (None, math.inf)}, "retain_ppl_ratio is inf"),
    ],
)
def test_each_way_of_breaking_a_model_is_named(changed, reason):
    assert reason in destroyed(card(**changed))


def test_a_model_that_falls_silent_is_destroyed():
    table = card()
    silent = (table["metric"] == "seamlessness.distinct2") & (table["method"] == "elm")
    table.loc[silent, "n"] = 3
    assert "writes next to nothing" in destroyed(table)


def test_a_base_at_chance_has_nothing_to_lose():
    assert destroyed(card(general_pmi=(0.53, 0.5))) is None


def test_what_was_not_measured_is_not_held_against_a_run():
    assert destroyed(frame([measurements("innocence.two_choice_pmi", 0.5, method="elm")])) is None

"""Metrics: declared where they are defined, found by whoever asks, and each row belongs to one of them."""

import subprocess
import sys

import pytest

from elm_interp.errors import ConfigError, UnknownNameError
from elm_interp.metrics import list_metrics, metric, metric_of

HEADLINES = {
    "innocence.known.four_choice",
    "innocence.open_answer",
    "innocence.two_choice_pmi",
    "specificity.known.neighbours",
    "specificity.general_pmi",
    "specificity.neighbours_pmi",
    "specificity.retain_ppl_ratio",
    "seamlessness.reverse_ppl_ratio",
    "seamlessness.distinct2_ratio",
}


def test_metrics_are_listed_before_anything_was_measured():
    code = "from elm_interp.metrics import list_metrics; print(len(list_metrics('innocence.*')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == "12"


def test_a_pattern_without_a_metric_is_refused_with_the_closest_name():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'innocence.two_choice_pmi'"):
        list_metrics("innocence.two_choice_pmj")


def test_a_row_belongs_to_the_metric_with_the_longest_name():
    assert metric_of("probe.truth.control").name == "probe.truth"
    assert metric_of("probe.transferred.truth.selectivity").name == "probe.transferred.truth"
    assert metric_of("probe.sparse.truth.k16").name == "probe.sparse"
    assert metric_of("norm.forget.ratio").name == "norm.forget.ratio"
    assert metric_of("probe.random_init.truth") is metric_of("probe.truths") is metric_of("") is None


def test_every_metric_says_what_it_shows_and_the_ones_of_behaviour_stand_on_the_card():
    assert {m.name for m in list_metrics() if m.headline} == HEADLINES
    on_card = {m.name for m in list_metrics() if m.on_card}
    assert on_card == {m.name for m in list_metrics(["innocence.*", "specificity.*", "seamlessness.*"])}
    assert all(m.better == "neither" for m in list_metrics(["norm.*", "geometry.*"]) if m.shows == "describes")
    assert all(m.summary.endswith((".", "?")) for m in list_metrics())


def test_a_metric_that_shows_nothing_known_is_refused():
    with pytest.raises(UnknownNameError, match=r"metric 'own.m': 'answer'. Did you mean 'answers'"):
        metric("own.m", shows="answer", better="down")
    with pytest.raises(TypeError, match="shows"):
        metric("own.m", better="down")
    with pytest.raises(ConfigError, match=r"'innocence.two_choice_pmi'.*declared already"):
        metric("innocence.two_choice_pmi", shows="answers", better="down")(lambda subject: [])

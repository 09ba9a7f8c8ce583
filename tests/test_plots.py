import itertools
import math
import re

import made_up
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from elm_interp import plots
from elm_interp.errors import ConfigError, UnknownNameError
from elm_interp.plots.style import BASE, ERASED
from elm_interp.registry import FIGURES
from elm_interp.results import frame, measurements

DRAWN = {
    "calibration": lambda **kw: plots.plot_calibration(made_up.calibration(), **kw),
    "probe_by_layer": lambda **kw: plots.plot_probe_by_layer(made_up.probes(), **kw),
    "probe_baselines": lambda **kw: plots.plot_probe_by_layer(pd.concat([made_up.probes(), made_up.baselines()]), **kw),
    "probe_heatmap": lambda **kw: plots.plot_probe_heatmap(made_up.probes(), **kw),
    "methods": lambda **kw: plots.plot_methods(made_up.methods(), chance=0.25, **kw),
    "methods_by_layer": lambda **kw: plots.plot_methods_by_layer(made_up.methods_by_layer(), "probe.truth", **kw),
    "pareto": lambda **kw: plots.plot_pareto(made_up.settings(), chance=0.25, **kw),
    "over_seconds": lambda **kw: plots.plot_over_seconds(made_up.over_seconds(), level=(0.5, "chance"), **kw),
    "norm_ratio": lambda **kw: plots.plot_norm_ratio(made_up.norms(), **kw),
    "layers": lambda **kw: plots.plot_layers(made_up.code_lengths(), "probe.association.code_length", **kw),
    "geometry": lambda **kw: plots.plot_geometry(made_up.geometry(), **kw),
    "transfer": lambda **kw: plots.plot_transfer(made_up.transfer(), **kw),
    "sparse": lambda **kw: plots.plot_sparse(made_up.sparse(), **kw),
    "progression": lambda **kw: plots.plot_progression(made_up.behaviour(), **kw),
    "scorecard": lambda **kw: plots.plot_scorecard(made_up.behaviour((0, 40)), **kw),
    "target_answers": lambda **kw: plots.plot_target_answers(made_up.target(), **kw),
    "training": lambda **kw: plots.plot_training(pd.DataFrame(made_up.training()), **kw),
}
TWO_SCALES = ("progression", "scorecard")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def overlap(boxes):
    boxes = [b for b in boxes if b.width > 1 and b.height > 1]
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.padded(-1).overlaps(b.padded(-1))]


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_overlaps_or_is_cut_and_no_legend_covers_data(name):
    figure = DRAWN[name]().figure
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    texts = []
    for ax in figure.axes:
        ticks = [*ax.get_xticklabels(), *ax.get_yticklabels()]
        within = [t for t in ticks if ax.get_window_extent().padded(2).overlaps(t.get_window_extent().padded(12))]
        texts += [t for t in within if t.get_text()] + [ax.xaxis.label, ax.yaxis.label, *ax.texts]
        if legend := ax.get_legend():
            assert not legend.get_window_extent().overlaps(ax.get_window_extent().padded(-1))
            texts += legend.get_texts()
    boxes = [t.get_window_extent() for t in texts if t.get_visible() and t.get_text()]
    assert not overlap(boxes)
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)


@pytest.mark.parametrize("name", DRAWN)
def test_axes_are_named(name):
    axes = DRAWN[name]().figure.axes
    assert all(ax.get_xlabel() or ax is not axes[-1] for ax in axes[: 2 if name in TWO_SCALES else 1])
    assert name == "scorecard" or all(ax.get_ylabel() for ax in axes)


@pytest.mark.parametrize("name", DRAWN)
def test_drawing_sets_no_global_style(name):
    with mpl.rc_context():
        before = dict(mpl.rcParams)
        DRAWN[name]()
        assert {k: v for k, v in mpl.rcParams.items() if v != before[k]} == {}


@pytest.mark.parametrize("name", DRAWN)
def test_given_axes_are_drawn_on_and_no_figure_is_opened(name):
    figure, given = plt.subplots(1, 2)
    ax = list(given) if name in TWO_SCALES else given[0]
    assert DRAWN[name](ax=ax) is given[0]
    assert given[0].has_data()
    assert plt.get_fignums() == [figure.number]


def test_every_plot_says_how_to_read_it_and_what_it_cannot_show():
    names = {n.removeprefix("plot_") for n in plots.__all__ if n.startswith("plot_")}
    ours = {n: f for n, f in FIGURES.items() if f.draw.__module__.startswith("elm_interp.")}
    assert names == set(ours) == set(DRAWN) - {"probe_baselines"}
    assert all(len(text) > 60 for f in ours.values() for text in (f.how_to_read, f.cannot_show))
    assert all(getattr(plots, f"plot_{n}") is f.draw for n, f in ours.items())


def test_no_caption_sentence_is_long():
    captions = [text for f in FIGURES.values() for text in (f.how_to_read, f.cannot_show)]
    assert max(len(sentence.split()) for text in captions for sentence in re.split(r"[.;:] ", text)) <= 30


def test_base_and_erased_have_their_colours_everywhere():
    curves = lines(plots.plot_probe_by_layer(made_up.probes()))
    handles, labels = plots.plot_scorecard(made_up.behaviour((0, 40))).get_legend_handles_labels()
    card = {label: to_hex(h.get_facecolor()[0]) for h, label in zip(handles[:2], labels, strict=False)}
    assert curves["base"].get_color() == card["base"].upper() == BASE
    assert curves["elm, step 40"].get_color() == card["elm, step 40"].upper() == ERASED


def test_probe_lines_are_means_over_seeds_of_the_base_and_of_the_last_step():
    curves = lines(plots.plot_probe_by_layer(made_up.probes()))
    assert np.allclose(curves["base"].get_ydata(), 0.9)
    assert np.allclose(curves["elm, step 40"].get_ydata(), 0.5)
    assert np.allclose(curves["elm, shuffled labels"].get_ydata(), 0.5)


def test_the_band_is_students_interval_over_seeds():
    ax = plots.plot_probe_by_layer(made_up.probes())
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    # three seeds 0.01 apart: t(0.975, 2 degrees of freedom) is 4.303
    assert math.isclose(band.max() - 0.9, 4.303 * 0.01 / math.sqrt(3), rel_tol=1e-3)
    assert math.isclose(0.9 - band.min(), 4.303 * 0.01 / math.sqrt(3), rel_tol=1e-3)


def test_a_single_seed_keeps_the_interval_of_its_row():
    table = made_up.probes().query("seed == 0").assign(ci_low=0.1, ci_high=0.95)
    band = plots.plot_probe_by_layer(table).collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.1, 0.95)


def test_chance_is_the_frames_own():
    curves = lines(plots.plot_probe_by_layer(made_up.probes("probe.choice", chance=0.25), "probe.choice"))
    assert set(curves["chance (0.25)"].get_ydata()) == {0.25}


def test_the_baselines_of_a_probe_are_drawn_where_they_were_measured():
    curves = lines(plots.plot_probe_by_layer(pd.concat([made_up.probes(), made_up.baselines()])))
    assert set(curves["token embeddings"].get_ydata()) == {0.7}
    assert np.allclose(curves["weights never trained"].get_ydata(), 0.6)


def test_probes_of_ones_own_labels_are_one_unnamed_curve():
    where = [{"layer": i, "seed": s, "chance": 0.5} for i in made_up.LAYERS for s in made_up.SEEDS]
    rows = [measurements(name, value, **w) for name, value in (("probe", 0.8), ("probe.control", 0.5)) for w in where]
    curves = lines(plots.plot_probe_by_layer(frame(rows)))
    assert np.allclose(curves["model"].get_ydata(), 0.8)
    assert np.allclose(curves["model, shuffled labels"].get_ydata(), 0.5)
    bare = pd.DataFrame(rows)[["metric", "layer", "value"]]
    assert np.allclose(lines(plots.plot_probe_by_layer(bare))["model"].get_ydata(), 0.8)
    assert np.allclose(plots.plot_probe_heatmap(frame(rows)).collections[0].get_array(), 0.3)
    with pytest.raises(ConfigError, match="lacks metric; it has layer"):
        plots.plot_probe_by_layer(bare.drop(columns="metric"))


def test_the_probe_drawn_by_default_is_the_frames_own():
    spells = made_up.probes("probe.spells", chance=0.2)
    words = spells.assign(metric=spells["metric"].str.replace("probe.", "probe.embedding."))
    assert "spells" in plots.plot_probe_by_layer(pd.concat([words, spells])).get_ylabel()
    assert "association" in plots.plot_probe_by_layer(pd.concat([spells, made_up.probes()])).get_ylabel()


def test_a_base_alone_can_be_drawn():
    curves = lines(plots.plot_probe_by_layer(made_up.probes().query("method == 'base'")))
    assert "base" in curves
    assert not any("elm" in label for label in curves)


def test_heat_map_cells_are_accuracy_less_control():
    ax = plots.plot_probe_heatmap(made_up.probes())
    cells = ax.collections[0].get_array().reshape(len(made_up.LAYERS), len(made_up.STEPS))
    assert np.allclose(cells, [[0.4, 0.2, 0.0]] * len(made_up.LAYERS))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0\nbase", "20", "40"]


def test_heat_maps_can_share_a_scale():
    assert plots.plot_probe_heatmap(made_up.probes(), vmax=0.5).collections[0].get_clim() == (0, 0.5)


def test_norm_ratios_are_drawn_with_the_line_of_no_change():
    curves = lines(plots.plot_norm_ratio(made_up.norms()))
    assert math.isclose(curves["forget text"].get_ydata()[-1], 1.3)
    assert math.isclose(curves["retain text"].get_ydata()[-1], 1.02)
    assert set(curves["unchanged (1)"].get_ydata()) == {1}


def test_norm_ratios_of_the_base_alone_are_refused():
    table = made_up.norms()
    with pytest.raises(ConfigError, match="base alone"):
        plots.plot_norm_ratio(table.assign(method="base"))


@pytest.mark.parametrize("name", TWO_SCALES)
def test_shares_and_ratios_never_share_an_axis(name):
    top, bottom = DRAWN[name]().figure.axes
    scales = (
        (top.get_yscale(), bottom.get_yscale()) if name == "progression" else (top.get_xscale(), bottom.get_xscale())
    )
    assert scales == ("linear", "log")


@pytest.mark.parametrize("largest", [1.02, 3.4, 60, 4000])
def test_ticks_of_ratios_never_touch_and_keep_1(largest):
    table = pd.concat(
        [made_up.behaviour(), pd.DataFrame([made_up.ratio("innocence.forget_ppl_ratio", largest, 40, "up")])]
    )
    ax = plots.plot_scorecard(table, ["innocence.forget_ppl_ratio"])
    ax.figure.canvas.draw()
    ticks = [t for t in ax.get_xticklabels() if ax.get_xlim()[0] <= t.get_position()[0] <= ax.get_xlim()[1]]
    assert "1" in [t.get_text() for t in ticks]
    assert len(ticks) >= 3
    assert not overlap([t.get_window_extent().padded(4) for t in ticks])


@pytest.mark.parametrize("name", TWO_SCALES)
def test_too_few_axes_are_refused_with_the_scales(name):
    with pytest.raises(ConfigError, match="share, ratio"):
        DRAWN[name](ax=plt.subplots()[1])


def test_one_scale_needs_one_axes():
    ax = plt.subplots()[1]
    assert plots.plot_progression(made_up.behaviour(), ["specificity.general_pmi"], ax=ax) is ax


def test_progression_starts_at_the_base():
    top, bottom = plots.plot_progression(made_up.behaviour()).figure.axes
    curve = lines(top)["innocence: two choice (PMI)"]
    assert list(curve.get_xdata()) == [0, 20, 40]
    assert np.allclose(curve.get_ydata(), [0.8, 0.675, 0.55])
    assert list(lines(bottom)["specificity: retain perplexity"].get_ydata()[:1]) == [1]


def test_a_base_without_a_step_counts_as_step_0():
    table = made_up.behaviour()
    table.loc[table["method"] == "base", "step"] = pd.NA
    curve = lines(plots.plot_progression(table))["innocence: two choice (PMI)"]
    assert list(curve.get_xdata()) == [0, 20, 40]


def test_the_score_card_points_to_where_a_good_eraser_goes():
    top, bottom = plots.plot_scorecard(made_up.behaviour((0, 40))).figure.axes
    assert [t.get_text() for t in top.texts] == ["←", "←", "→", "→", "better"]
    assert [t.get_text() for t in bottom.texts] == ["←", "←", "→", "better"]


def test_the_score_card_leaves_out_what_is_neither_share_nor_ratio():
    top, bottom = plots.plot_scorecard(made_up.behaviour((0, 40))).figure.axes
    names = [t.get_text() for ax in (top, bottom) for t in ax.get_yticklabels()]
    assert "retain perplexity ratio" in names
    assert not {"KL to base", "retain perplexity"} & set(names)


def test_a_metric_of_ones_own_has_its_group_on_the_score_card():
    mine = frame([made_up.share("charm.politeness", value, s, "up") for s, value in ((0, 0.9), (40, 0.4))])
    top, _ = plots.plot_scorecard(pd.concat([made_up.behaviour((0, 40)), mine])).figure.axes
    assert [t.get_text() for t in top.get_yticklabels()][-2:] == ["Charm", "politeness"]


def test_rows_of_single_layers_are_not_on_the_score_card():
    deep = pd.concat([made_up.behaviour((0, 40)), made_up.probes().query("step != 20")])
    top, _ = plots.plot_scorecard(deep).figure.axes
    assert "association" not in [t.get_text() for t in top.get_yticklabels()]


def test_gold_is_a_side_of_the_score_card_and_a_level_of_the_progression():
    whole = pd.concat([made_up.behaviour(), made_up.gold()], ignore_index=True)
    ax = plots.plot_scorecard(whole)
    assert {"base", "elm, step 40", "gold: never knew"} <= {t.get_text() for t in ax.get_legend().get_texts()}
    alone, beside = plots.plot_progression(made_up.behaviour()), plots.plot_progression(whole)
    assert len(beside.get_lines()) == len(alone.get_lines()) + 3  # two levels, and their name in the legend
    assert "gold: never knew" in lines(beside)
    assert "gold: never knew" not in lines(alone)
    curves = [lines(ax)["innocence: two choice (PMI)"] for ax in (alone, beside)]
    np.testing.assert_array_equal(curves[0].get_xydata(), curves[1].get_xydata())


def test_bookkeeping_is_no_loss_term():
    ax = plots.plot_training(pd.DataFrame(made_up.training()))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["erase", "retain"]
    assert ax.get_yscale() == "log"


def test_a_term_that_only_some_steps_have_is_drawn():
    log = made_up.training()
    log[3]["another_term"] = 0.5
    assert "another term" in lines(plots.plot_training(pd.DataFrame(log)))


def test_an_unknown_metric_or_term_is_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match="probe.association"):
        plots.plot_probe_by_layer(made_up.probes(), "probe.asociation")
    with pytest.raises(UnknownNameError, match="retain"):
        plots.plot_training(pd.DataFrame(made_up.training()), ["retian"])


@pytest.mark.parametrize("column", ["model", "site"])
def test_what_must_not_be_averaged_is_refused(column):
    mixed = pd.concat([made_up.probes(), made_up.probes().assign(**{column: "other"})])
    with pytest.raises(ConfigError, match=f"'{column}'.*filter the frame"):
        plots.plot_probe_by_layer(mixed)


def test_seconds_are_in_order_and_a_missing_column_is_named():
    drawn = lines(plots.plot_over_seconds(made_up.over_seconds()))
    assert list(drawn) == ["ours", "slow"]
    assert list(drawn["slow"].get_xdata()) == [0, 300]
    assert list(drawn["slow"].get_ydata()) == [0.9, 0.8]
    with pytest.raises(ConfigError, match="lacks retain, retain_low, retain_high"):
        plots.plot_over_seconds(made_up.over_seconds(), "retain")


def test_the_front_is_what_nothing_beats():
    front = plots.pareto_front([0.3, 0.35, 0.2, 0.8, 0.3, float("nan")], [0.9, 0.85, 0.7, 0.97, 0.9, 1.0])
    assert front.tolist() == [True, False, True, True, True, False]
    ax = plots.plot_pareto(made_up.settings())
    (line,) = [line for line in ax.lines if line.get_label() == "front"]
    assert line.get_xdata().tolist() == [0.3, 0.8]
    assert "2 worse" in ax.texts[-1].get_text()
    with pytest.raises(ConfigError, match="seamless"):
        plots.plot_pareto(made_up.methods().assign(setting="x"))


def test_each_method_has_its_line_by_layer():
    curves = lines(plots.plot_methods_by_layer(made_up.methods_by_layer(), "probe.truth"))
    for method, value in (("base", 0.9), ("elm", 0.5), ("rmu", 0.6)):
        assert np.allclose(curves[method].get_ydata(), value)
    assert curves["base"].get_color() == BASE
    with pytest.raises(UnknownNameError, match=r"probe\.truht"):
        plots.plot_methods_by_layer(made_up.methods_by_layer(), "probe.truht")


def test_two_methods_in_one_figure_are_refused():
    mixed = pd.concat([made_up.probes(), made_up.probes().query("method == 'elm'").assign(method="rmu")])
    with pytest.raises(ConfigError, match="elm, rmu"):
        plots.plot_probe_heatmap(mixed)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("innocence.two_choice_pmi", "two choice (PMI)"),
        ("seamlessness.reverse_ppl_ratio", "reverse perplexity ratio"),
        ("seamlessness.distinct2", "distinct-2"),
        ("probe.association", "association"),
    ],
)
def test_metrics_have_names_for_people(metric, name):
    assert plots.name_of(metric) == name


def test_saving_keeps_dots_in_names_and_repeats_byte_for_byte(tmp_path):
    first = plots.save(plots.plot_norm_ratio(made_up.norms()), tmp_path / "a" / "probe.truth")
    second = plots.save(plots.plot_norm_ratio(made_up.norms()).figure, tmp_path / "b" / "probe.truth")
    assert [p.name for p in first] == ["probe.truth.png", "probe.truth.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_saved_figures_are_white_under_a_dark_style(tmp_path):
    with plt.style.context("dark_background"):
        png, _ = plots.save(plots.plot_norm_ratio(made_up.norms()), tmp_path / "norms")
    assert to_hex(plt.imread(png)[0, 0]) == "#ffffff"


def test_a_fresh_and_a_transferred_probe_are_told_apart_by_more_than_colour():
    curves = lines(plots.plot_transfer(made_up.transfer()))
    fresh, carried = curves["elm, step 40: fresh probe"], curves["elm, step 40: base's probe"]
    assert np.allclose(fresh.get_ydata(), 0.7)
    assert np.allclose(carried.get_ydata(), 0.55)
    assert np.allclose(curves["base after LEACE"].get_ydata(), 0.52)
    assert (fresh.get_linestyle(), fresh.get_marker()) != (carried.get_linestyle(), carried.get_marker())
    with pytest.raises(UnknownNameError, match="probe.transferred.truth"):
        plots.plot_transfer(made_up.probes("probe.truth"), "truth")


def test_sparse_probes_are_drawn_from_few_to_all():
    assert list(lines(plots.plot_sparse(made_up.sparse().iloc[::-1])))[:4] == [
        "1 dimension", "4 dimensions", "16 dimensions", "all dimensions",
    ]  # fmt: skip


def test_an_unchanged_geometry_does_not_fill_the_figure():
    still = made_up.geometry().assign(value=1.0, ci_low=1.0, ci_high=1.0)
    low, high = plots.plot_geometry(still).get_ylim()
    assert high - low >= 0.04
    with pytest.raises(ConfigError, match="base alone"):
        plots.plot_geometry(still.assign(method="base"))

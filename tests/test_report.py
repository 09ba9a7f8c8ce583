import json
import os
import re
import subprocess
import sys

import made_up
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from elm_interp.errors import RunFolderError
from elm_interp.plots.report import write_report
from elm_interp.registry import FIGURES

FIVE = {"probe_by_layer", "norm_ratio", "progression", "probe_heatmap", "scorecard"}
FILES = {
    "results/scorecard.parquet": "elm-interp evaluate",
    "results/samples.json": "elm-interp evaluate",
    "results/progression.parquet": "elm-interp progress",
    "results/probes.parquet": "elm-interp probe",
    "results/norms.parquet": "elm-interp norms",
    "metrics.jsonl": "elm-interp erase",
    "config.json": "elm-interp erase",
    "manifest.json": "elm-interp erase",
    "results/timing.json": "elm-interp run",
}


@pytest.fixture
def run(tmp_path):
    return made_up.run_folder(tmp_path / "demo")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A finished run's report, for tests that only read."""
    return write_report(made_up.run_folder(tmp_path_factory.mktemp("runs") / "demo"))


def images(html):
    return len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', html))


def test_the_five_figures_are_drawn_as_png_and_svg(report):
    drawn = {path.name for path in (report.parent / "figures").iterdir()}
    assert {f.name for f in FIGURES.values() if f.source and f.main} == FIVE
    assert drawn >= {f"{name}.{ending}" for name in FIVE for ending in ("png", "svg")}


def test_the_report_holds_everything_and_fetches_nothing(report):
    html = report.read_text()
    assert images(html) == 6
    for outside in ("http:", "https:", "<link", "<script", "@import", "url("):
        assert outside not in html
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_headline_numbers_have_interval_and_n(report):
    html = report.read_text()
    tile = re.search(r'<div class="tile">.*?two choice \(PMI\).*?</div>', html)
    text = re.sub(r"<[^>]+>", " ", tile[0])
    assert re.search(
        r"0\.800 \[0\.711, 0\.867\]\s+→\s+0\.550 \[0\.452, 0\.644\]\s+n = 100, chance 0\.5, good is lower", text
    )


def test_what_a_model_wrote_is_text_and_never_markup(run):
    html = write_report(run, warning="it <i>stammers</i>").read_text()
    assert "A &lt;script&gt;wand()&lt;/script&gt;" in html
    assert "What is &lt;b&gt;it&lt;/b&gt;?" in html
    assert "A tool &amp; more" in html
    assert "it &lt;i&gt;stammers&lt;/i&gt;" in html


def test_a_warning_is_shown_only_where_there_is_one(tmp_path):
    assert "general knowledge fell" in write_report(tmp_path, warning="general knowledge fell").read_text()
    assert "general knowledge fell" not in write_report(tmp_path).read_text()


def test_every_figure_is_followed_by_how_to_read_it_and_what_it_cannot_show(report):
    html = report.read_text()
    assert html.count("How to read it.") == html.count("What it cannot show.") == images(html)


def test_every_missing_file_is_named_with_its_command(tmp_path):
    html = write_report(tmp_path).read_text()
    assert images(html) == 0
    for name, command in FILES.items():
        assert re.search(rf"{re.escape(name)} is not there; make it with: {command} [^<]*{tmp_path.name}", html)


def test_every_broken_file_is_named(run):
    for name in FILES:
        (run / name).write_bytes(b'{"half": ')
    html = write_report(run).read_text()
    assert all(f"{name} is broken" in html for name in FILES)


def test_one_missing_and_one_broken_file_leave_the_rest(run):
    (run / "results" / "norms.parquet").unlink()
    (run / "results" / "probes.parquet").write_bytes(b"PAR1 and no more")
    html = write_report(run).read_text()
    assert "results/norms.parquet is not there" in html
    assert "results/probes.parquet is broken" in html
    assert images(html) == 3


def test_a_frame_that_does_not_suit_its_figure_is_reported(run):
    made_up.write(made_up.norms().query("metric == 'norm.forget'"), run / "results" / "norms.parquet")
    assert "results/norms.parquet does not suit this figure" in write_report(run).read_text()


def test_a_probe_that_the_concept_cannot_have_is_said(run, monkeypatch):
    monkeypatch.setattr("elm_interp.plots.frames.PROBE_TASKS", {"association": None, "choice": None})
    html = write_report(run).read_text()
    assert "the concept has too few questions of the kind that probe.choice needs" in html
    assert "probe.association needs" not in html


def test_every_probe_of_the_frame_is_drawn_and_the_default_one_is_not_folded(run):
    table = pd.concat([made_up.probes("probe.spells"), made_up.probes()])
    made_up.write(table, run / "results" / "probes.parquet")
    html = write_report(run).read_text()
    assert html.index("<h2>Layer by layer</h2>") < html.index("<summary>Layer by layer: spells</summary>")
    assert {p.name for p in (run / "figures").glob("probe_by_layer*.png")} == {
        "probe_by_layer.png", "probe_by_layer_spells.png",
    }  # fmt: skip


PLUGIN = """
import seaborn as sns
from elm_interp.plots import axes, figure

@figure(source="results/charm.json", stage="charm", title="Charm over time",
        how_to_read="Higher is more charming.", cannot_show="Whether it is sincere.")
def plot_charm(frame, *, ax=None):
    ax = axes(ax)
    sns.lineplot(x=frame["step"], y=frame["charm"], ax=ax)
    return ax
"""


def test_a_figure_of_another_distribution_is_drawn_with_its_caption(tmp_path):
    site, run = tmp_path / "site", tmp_path / "run"
    (run / "results").mkdir(parents=True)
    (site / "charm-1.0.dist-info").mkdir(parents=True)
    (site / "charm.py").write_text(PLUGIN)
    (site / "charm-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: charm\nVersion: 1.0\n")
    (site / "charm-1.0.dist-info" / "entry_points.txt").write_text("[elm_interp.plugins]\ncharm = charm\n")
    (run / "results" / "charm.json").write_text(json.dumps({"step": [0, 20], "charm": [0.1, 0.7]}))
    code = f"from elm_interp.plots.report import write_report; write_report({str(run)!r})"
    path = os.pathsep.join([str(site), *sys.path])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True)
    html = (run / "report.html").read_text()
    assert all(text in html for text in ("Charm over time", "Higher is more charming.", "Whether it is sincere."))
    assert (run / "figures" / "charm.png").is_file()


def test_samples_of_the_base_alone_do_not_break_the_report(run):
    (run / "results" / "samples.json").write_text(json.dumps([{"prompt": "p", "base": "only this"}]))
    assert "only this" in write_report(run).read_text()


def test_no_figure_is_left_open_and_no_open_one_is_closed(run):
    mine, before = plt.figure(), plt.get_fignums()  # others of this process may have left some open
    write_report(run)
    assert plt.get_fignums() == before
    plt.close(mine)


def test_the_same_run_gives_the_same_bytes(report):
    before = report.read_bytes()
    assert write_report(report.parent).read_bytes() == before


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not a folder"):
        write_report(tmp_path / "nowhere")

"""The report of a run: its figures, and one HTML file that holds everything and needs nothing from outside.

    write_report("runs/demo")     # runs/demo/figures/*.png, *.svg and runs/demo/report.html

It reads what is in the run folder alone. What is missing or broken is named, with the command that makes it.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes

from elm_interp import plots, results
from elm_interp.errors import RunFolderError

PROBE = "probe.association"
PROBES = "results/probes.parquet"


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    name: str
    """Of its files in figures/."""
    title: str
    source: str
    """The file in the run folder that it is drawn from."""
    stage: str
    """The command that makes that file."""
    draw: Callable[[pd.DataFrame], Axes]
    reading: str
    """Entry of `plots.HOW_TO_READ`."""
    metric: str | None = None
    """Left out where the file was made without this metric."""


def _probe(metric: str, title: str) -> Figure:
    name = "probe_by_layer" if metric == PROBE else f"probe_by_layer_{metric.split('.')[-1]}"
    draw = partial(plots.plot_probe_by_layer, metric=metric)
    return Figure(name, title, PROBES, "probe", draw, "probe_by_layer", metric)


FIGURES = (
    Figure("scorecard", "Before and after", "results/scorecard.parquet", "evaluate", plots.plot_scorecard, "scorecard"),
    Figure("progression", "Over training", "results/progression.parquet", "progress", plots.plot_progression, "progression"),
    _probe(PROBE, "Layer by layer"),
    Figure(
        "probe_heatmap", "Layer by layer, step by step", PROBES, "probe",
        partial(plots.plot_probe_heatmap, metric=PROBE), "probe_heatmap", PROBE,
    ),
    Figure("norm_ratio", "Activation norms", "results/norms.parquet", "norms", plots.plot_norm_ratio, "norm_ratio"),
)  # fmt: skip
MORE_FIGURES = (
    _probe("probe.truth", "Another probe: is the answer true?"),
    _probe("probe.choice", "Another probe: which option is right?"),
    Figure(
        "transfer",
        "Suppressed or re-encoded: the base's probe on the erased model",
        PROBES,
        "probe",
        partial(plots.plot_transfer, task="association"),
        "transfer",
        "probe.transferred.association",
    ),
    Figure("training", "The loss", "metrics.jsonl", "erase", plots.plot_training, "training"),
)
"""Folded away in the report, for those who ask."""


def write_report(run: str | Path, *, warning: str | None = None) -> Path:
    """Draw the figures of a run folder and write its report.

    Args:
        run: the run folder.
        warning: shown on top, such as why the run counts as destroyed.

    Returns:
        Path of report.html.

    Raises:
        RunFolderError: there is no such folder. A file that is missing or broken is no error: the report says so.
    """
    run = Path(run)
    if not run.is_dir():
        raise RunFolderError(f"{run} is not a folder; expected a run, as `elm-interp run` makes it.")
    card, no_card = _read(run, "results/scorecard.parquet", "evaluate")
    samples, no_samples = _read(run, "results/samples.json", "evaluate")
    config, no_config = _read(run, "config.json", "erase")
    manifest, no_manifest = _read(run, "manifest.json", "erase")
    timing, no_timing = _read(run, "results/timing.json", "run")
    table = [] if card is None else _card_table(card)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("elm_interp.plots").joinpath("report_template.html").read_text(encoding="utf-8")
    )
    html = template.render(
        run=run.name,
        warning=warning,
        config=config or {},
        manifest=manifest or {},
        headline=[row for name in plots.HEADLINE for row in table if row["metric"] == name],
        table=table,
        figures=[_figure(run, figure) for figure in FIGURES],
        more_figures=[_figure(run, figure) for figure in MORE_FIGURES],
        samples=samples or [],
        timing={name: _number(value) for name, value in (timing or {}).items()},
        missing={
            "card": no_card, "samples": no_samples, "config": no_config, "manifest": no_manifest, "timing": no_timing,
        },
    )  # fmt: skip
    path, half = run / "report.html", run / ".report.html.half"
    half.write_text(html, encoding="utf-8")
    half.replace(path)
    return path


def _figure(run: Path, figure: Figure) -> dict[str, Any]:
    """What the template needs of a figure: its image, or why there is none."""
    reading = plots.HOW_TO_READ[figure.reading]
    found = {"title": figure.title, "how": reading.how, "cannot": reading.cannot, "image": None, "missing": None}
    table, found["missing"] = _read(run, figure.source, figure.stage)
    if table is None:
        return found
    if figure.metric and figure.metric not in set(table["metric"]):
        found["missing"] = f"the concept has too few questions of the kind that {figure.metric} needs"
        return found
    before = set(plt.get_fignums())
    try:
        png, _ = plots.save(figure.draw(table), run / "figures" / figure.name)
        found["image"] = base64.b64encode(png.read_bytes()).decode()
    except ValueError as error:
        found["missing"] = f"{figure.source} does not suit this figure: {error}"
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    return found


def _read(run: Path, name: str, stage: str) -> tuple[Any, str | None]:
    """A file of the run and None, or None and what to do about it."""
    path = run / name
    again = (
        f"make it with: elm-interp {stage} {run}"
        if stage not in ("erase", "run")
        else f"make it with: elm-interp {stage} --out {run} --resume"
    )
    if not path.is_file():
        return None, f"{name} is not there; {again}"
    try:
        if path.suffix == ".parquet":
            value = results.read(path)
        elif path.suffix == ".jsonl":
            value = pd.DataFrame(
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            )
        else:
            value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        return None, f"{name} is broken ({type(error).__name__}); {again}"
    if len(value) == 0 and name != PROBES:  # of a concept with too few questions there are none
        return None, f"{name} is empty; {again}"
    return value, None


def _card_table(card: pd.DataFrame) -> list[dict[str, str]]:
    """The score card as text, a row a metric; of several erased steps the last."""
    found = []
    for name, rows in card.groupby("metric", sort=False):
        base, erased = rows[rows["method"] == "base"], rows[rows["method"] != "base"].sort_values("step")
        either = (erased if len(erased) else base).iloc[-1]
        found.append(
            {
                "metric": str(name),
                "title": plots.name_of(str(name)),
                "group": str(name).split(".")[0],
                "base": _cell(base),
                "erased": _cell(erased),
                "n": "" if pd.isna(either["n"]) else str(int(either["n"])),
                "chance": "" if pd.isna(either["chance"]) else f"{either['chance']:.3g}",
                "better": {"up": "higher", "down": "lower"}.get(str(either["direction"]), ""),
                "protocol": "" if pd.isna(either["protocol"]) else str(either["protocol"]),
            }
        )
    return found


def _cell(rows: pd.DataFrame) -> str:
    """The last row's value and interval, as text."""
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    interval = "" if pd.isna(row["ci_low"]) else f" [{_number(row['ci_low'])}, {_number(row['ci_high'])}]"
    return f"{_number(row['value'])}{interval}"


def _number(value: Any) -> str:
    """A measured number with three digits; what is no number stays as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "" if pd.isna(value) else str(value)
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:#.3g}"

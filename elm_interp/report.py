"""The report of a run: its figures, and one HTML file that holds everything and needs nothing from outside.

    write_report("runs/demo")     # runs/demo/figures/*.png, *.svg and runs/demo/report.html

It reads what is in results/ alone. What is missing is named, with the command that makes it.
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


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    name: str
    title: str
    source: str
    """The results file that it is drawn from."""
    stage: str
    """The command that makes that file."""
    draw: Callable[[pd.DataFrame], Axes]
    reading: str
    """Entry of `plots.HOW_TO_READ`."""


PROBE = "probe.association"
FIGURES = (
    Figure("scorecard", "Before and after", "scorecard", "evaluate", plots.plot_scorecard, "scorecard"),
    Figure("progression", "Over training", "progression", "progress", plots.plot_progression, "progression"),
    Figure("probe_by_layer", "Layer by layer", "probes", "probe", partial(plots.plot_probe_by_layer, metric=PROBE), "probe_by_layer"),
    Figure("probe_heatmap", "Layer by layer, step by step", "probes", "probe", partial(plots.plot_probe_heatmap, metric=PROBE), "probe_heatmap"),
    Figure("norm_ratio", "Activation norms", "norms", "norms", plots.plot_norm_ratio, "norm_ratio"),
)  # fmt: skip


def write_report(run: str | Path, *, warning: str | None = None) -> Path:
    """Draw the figures of a run folder and write its report.

    Args:
        run: the run folder.
        warning: shown on top, such as why the run counts as destroyed.

    Returns:
        Path of report.html.
    """
    run = Path(run)
    shown = [_figure(run, figure) for figure in FIGURES]
    card = _results(run, "scorecard")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("elm_interp").joinpath("report_template.html").read_text(encoding="utf-8"))
    html = template.render(
        run=run.name,
        warning=warning,
        config=_json(run / "config.json") or {},
        manifest=_json(run / "manifest.json") or {},
        headline=_headline(card),
        table=_card_table(card),
        figures=shown,
        samples=_json(run / "results" / "samples.json"),
        timing=_json(run / "results" / "timing.json") or {},
    )
    path = run / "report.html"
    half = run / ".report.html.half"
    half.write_text(html, encoding="utf-8")
    half.replace(path)
    return path


def _figure(run: Path, figure: Figure) -> dict[str, Any]:
    reading = plots.HOW_TO_READ[figure.reading]
    found = {"title": figure.title, "how": reading.how, "cannot": reading.cannot, "image": None, "missing": None}
    table = _results(run, figure.source)
    if table is None or table.empty:
        found["missing"] = f"results/{figure.source}.parquet is not there; make it with: elm-interp {figure.stage} {run}"
        return found
    if figure.source == "probes" and PROBE not in set(table["metric"]):
        found["missing"] = "the concept has no questions with an answer from outside, which this probe needs"
        return found
    drawn = figure.draw(table).figure
    try:
        png, _ = plots.save(drawn, run / "figures" / figure.name)
    finally:
        plt.close(drawn)
    found["image"] = base64.b64encode(Path(png).read_bytes()).decode()
    return found


def _results(run: Path, name: str) -> pd.DataFrame | None:
    path = run / "results" / f"{name}.parquet"
    return results.read(path) if path.is_file() else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _headline(card: pd.DataFrame | None) -> list[dict[str, str]]:
    rows = {row["metric"]: row for row in _card_table(card)}
    return [rows[name] for name in plots.HEADLINE if name in rows]


def _card_table(card: pd.DataFrame | None) -> list[dict[str, str]]:
    if card is None:
        return []
    found = []
    for name, rows in card.groupby("metric", sort=False):
        base, erased = rows[rows["method"] == "base"], rows[rows["method"] != "base"]
        either = rows.iloc[0]
        found.append(
            {
                "metric": str(name),
                "title": plots.name_of(str(name)),
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
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
    return f"{row['value']:.3g}{interval}"

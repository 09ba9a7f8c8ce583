"""The report of a run: its figures, and one HTML file that needs nothing from outside.

    write_report("runs/demo")     # runs/demo/figures/*.png, *.svg and runs/demo/report.html

It reads the run folder alone and draws every declared figure whose source is there. A file that is missing or broken is
named, with the command that makes it.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import StrictUndefined, Template

from elm_interp import results
from elm_interp.errors import RunFolderError
from elm_interp.files import read_json, write_text
from elm_interp.plots.declared import headline_metrics
from elm_interp.plots.figures import Figure
from elm_interp.plots.frames import base_of, erased_of, gold_of
from elm_interp.plots.style import name_of, save
from elm_interp.registry import FIGURES

PROBES = "results/probes.parquet"
"""May be empty: of a concept with too few questions there are no probes."""


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
    missing: dict[str, str | None] = {}
    card, missing["card"] = _read(run, "results/scorecard.parquet", "evaluate")
    samples, missing["samples"] = _read(run, "results/samples.json", "evaluate")
    config, missing["config"] = _read(run, "config.json", "erase")
    manifest, missing["manifest"] = _read(run, "manifest.json", "erase")
    timing, missing["timing"] = _read(run, "results/timing.json", "run")
    table = [] if card is None else [*_card_table(card)]
    source = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    template = Template(source, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = template.render(
        run=run.name,
        warning=warning,
        config=config or {},
        manifest=manifest or {},
        headline=[row for name in headline_metrics() for row in table if row["metric"] == name],
        table=table,
        figures=[shown for figure in sorted(FIGURES.values(), key=lambda f: f.order) for shown in _shown(run, figure)],
        samples=samples or [],
        timing={name: _number(value) for name, value in (timing or {}).items()},
        missing=missing,
    )
    write_text(run / "report.html", html)
    return run / "report.html"


def _shown(run: Path, figure: Figure) -> Iterator[dict[str, Any]]:
    """Draw a figure, or all its variants: what the template needs of each, its image or why there is none."""
    if figure.source is None:
        return
    caption = {"how": figure.how_to_read, "cannot": figure.cannot_show}
    table, missing = _read(run, figure.source, figure.stage)
    variants: Mapping[str, Mapping[str, Any] | str] = {"": missing or {}}
    if missing is None and figure.variants is not None:
        variants = figure.variants(table) or {"": f"{figure.source} has no rows for this figure"}
    for i, (name, arguments) in enumerate(variants.items()):
        title, file = figure.title, figure.name
        if i:
            title, file = f"{title}: {name}", f"{file}_{re.sub('[^A-Za-z0-9._-]+', '_', name)}"
        image, reason = (None, arguments) if isinstance(arguments, str) else _draw(run, figure, file, table, arguments)
        yield caption | {"title": title, "main": figure.main and i == 0, "image": image, "missing": reason}


def _draw(run: Path, figure: Figure, file: str, table: Any, kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Draw into figures/: the image as base64, or None and why there is none."""
    before = set(plt.get_fignums())
    try:
        png, _ = save(figure.draw(table, **kwargs), run / "figures" / file)
        return base64.b64encode(png.read_bytes()).decode(), None
    except Exception as error:  # a figure of a plug-in may raise anything; the report is drawn without it
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return None, f"{figure.source} does not suit this figure: {reason}"
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _read(run: Path, name: str, stage: str | None) -> tuple[Any, str | None]:
    """A file of the run and None, or None and what to do about it."""
    path = run / name
    folder = f"--out {run} --resume" if stage in ("erase", "run") else str(run)
    again = f"; make it with: elm-interp {stage} {folder}" if stage else ""
    if not path.is_file():
        return None, f"{name} is not there{again}"
    try:
        if path.suffix == ".parquet":
            value = results.read(path)
        elif path.suffix == ".jsonl":
            value = pd.DataFrame(map(json.loads, filter(str.strip, path.read_text(encoding="utf-8").splitlines())))
        else:
            value = read_json(path)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return None, f"{name} is broken ({type(error).__name__}){again}"
    if len(value) == 0 and name != PROBES:
        return None, f"{name} is empty{again}"
    return value, None


def _card_table(card: pd.DataFrame) -> Iterator[dict[str, str]]:
    """The score card as text, a row a metric; of several erased steps the last."""
    for name, rows in card.groupby("metric", sort=False):
        base, gold, erased = base_of(rows), gold_of(rows), erased_of(rows)
        either = next(side for side in (erased, base, gold) if len(side)).iloc[-1]
        yield {
            "metric": str(name),
            "title": name_of(str(name)),
            "group": str(name).split(".")[0],
            "base": _cell(base),
            "erased": _cell(erased),
            "gold": _cell(gold),
            "n": "" if pd.isna(either["n"]) else str(int(either["n"])),
            "chance": "" if pd.isna(either["chance"]) else f"{either['chance']:.3g}",
            "better": {"up": "higher", "down": "lower"}.get(str(either["direction"]), ""),
            "protocol": "" if pd.isna(either["protocol"]) else str(either["protocol"]),
        }


def _cell(rows: pd.DataFrame) -> str:
    """The last row's value and interval, as text."""
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    interval = "" if pd.isna(row["ci_low"]) else f" [{_number(row['ci_low'])}, {_number(row['ci_high'])}]"
    return f"{_number(row['value'])}{interval}"


def _number(value: Any) -> str:
    """A number with three digits; anything else as text."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "" if pd.isna(value) else str(value)
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:#.3g}"

"""Fill the tables of README.md and docs/ from the files in figures/, so that no number is typed by hand.

    python analyses/fill_readme.py            # a test holds that this changes nothing

A table stands between <!-- fill: NAME --> and <!-- /fill -->.
"""

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from elm_interp.files import read_json

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
PAGES = ("README.md", "docs/demo.md")
SHOWN = (
    "innocence.known.four_choice",
    "innocence.known.four_choice.shown",
    "innocence.known.four_choice.unshown",
    "innocence.known.four_choice.chat",
    "innocence.open_answer",
    "innocence.text_only",
    "innocence.no_question",
    "specificity.known.neighbours",
    "specificity.open_answer",
    "specificity.general_likelihood",
    "specificity.retain_ppl_ratio",
    "seamlessness.judge_ppl",
    "seamlessness.distinct2",
)
"""Metrics of the table of a run."""


def main() -> None:
    """Write what `filled` gives."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The text with every table made anew."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- fill: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- /fill -->"

    return re.sub(r"<!-- fill: ([\w-]+) -->\n.*?\n<!-- /fill -->", fill, text, flags=re.DOTALL)


def of_run(name: str) -> str:
    """The score card of a run: base, gold where there is one, erased."""
    summary = read_json(FIGURES / f"{name}.json")["summary"]
    sides = [side for side in ("base", "gold", "erased") if any(side in summary[m] for m in SHOWN if m in summary)]
    rows = [
        [f"`{m}`", *(_interval(summary[m].get(side)) for side in sides), _n(summary[m])] for m in SHOWN if m in summary
    ]
    return _table(["", *sides, "n"], rows)


def stages(name: str) -> str:
    """Seconds and tokens of each stage."""
    found = read_json(FIGURES / f"{name}.json")
    timing, tokens = found["timing"], found["tokens"]
    names = [key.removesuffix("_seconds") for key in timing if f"{key.removesuffix('_seconds')}" in tokens]
    names += [s for s in ("probe", "report") if f"{s}_seconds" in timing and s not in names]
    order = [s for s in ("erase", "evaluate", "collect", "probe", "norms", "progress", "report") if s in names]
    rows = [[s, f"{tokens.get(s, 0):,}", f"{timing[f'{s}_seconds']:.0f}"] for s in order]
    total = sum(timing[f"{s}_seconds"] for s in order)
    return _table(["stage", "tokens", "seconds"], [*rows, ["all", f"{sum(tokens.values()):,}", f"{total:.0f}"]])


def planted() -> str:
    """The planted models: documents, tokens, accuracies."""
    rows = []
    for name in ("original", "gold", "gold-1"):
        path = ROOT / "elm_interp" / "organisms" / "planted_weights" / name / "manifest.json"
        if path.is_file():
            told = read_json(path)
            last = told["evaluations"][-1]["evaluation"]
            model = "planted:" + name.replace("-", "@")
            rows.append(
                [f"`{model}`", f"{told['documents']:,}", f"{told['tokens']:,}", *(f"{v:.2f}" for v in last.values())]
            )
    domains = list(last) if rows else []
    return _table(["", "documents", "tokens", *domains], rows)


def main_job() -> str:
    """Means over seeds of the main job's rows."""
    with (FIGURES / "main_job.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    columns = (
        "forget",
        "shown",
        "unshown",
        "open_answer",
        "other",
        "general",
        "retain_ppl_ratio",
        "judge_ppl",
        "distinct2",
    )
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in found:
        groups.setdefault((row["world"], row["dtype"], row["row"]), []).append(row)
    rows = [[*key, str(len(of)), *(_mean(of, column) for column in columns)] for key, of in groups.items()]
    return _table(["world", "dtype", "", "seeds", *(c.replace("_", " ") for c in columns)], rows)


TABLES: dict[str, Callable[[], str]] = {
    "demo": lambda: of_run("demo"),
    "demo-stages": lambda: stages("demo"),
    "astronomy": lambda: of_run("demo_astronomy"),
    "planted": planted,
    "main-job": main_job,
}


def _mean(rows: list[Mapping[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows if row.get(column)]
    return f"{sum(values) / len(values):.3g}" if values else ""


def _interval(found: Mapping[str, Any] | None) -> str:
    if not found or found["value"] is None:
        return ""
    ends = f" [{found['ci_low']:.3g}, {found['ci_high']:.3g}]" if found["ci_low"] is not None else ""
    return f"{found['value']:.3g}{ends}"


def _n(sides: Mapping[str, Any]) -> str:
    return " / ".join(dict.fromkeys(str(found["n"]) for found in sides.values()))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()

"""Fill the tables of README.md and docs/ from the files in figures/, so that no number is typed by hand.

    python analyses/fill_readme.py            # a test holds that this changes nothing

A table stands between <!-- fill: NAME --> and <!-- /fill -->.
"""

import csv
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from elm_interp.files import read_json

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
PAGES = ("README.md", "docs/demo.md")
MARKED = r"<!-- fill: ([\w-]+) -->\n(?:(?!<!-- fill:).)*?<!-- /fill -->"
SHOWN = (
    "innocence.known.four_choice",
    "innocence.known.drop.p",
    "innocence.known.four_choice.shown",
    "innocence.known.four_choice.unshown",
    "innocence.known.four_choice.chat",
    "innocence.open_answer",
    "innocence.open_answer.mentioned",
    "innocence.forget_ppl_ratio",
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

    found, filled_in = re.subn(MARKED, fill, text, flags=re.DOTALL)
    if filled_in != text.count("<!-- fill:"):
        raise ValueError(
            f"{text.count('<!-- fill:')} tables begin, {filled_in} also end; close each with <!-- /fill -->."
        )
    return found


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


def main_job() -> str:
    """Means over seeds of the main job's rows."""
    columns = (
        *("forget", "shown", "unshown", "open_answer", "other", "general"),
        *("retain_ppl_ratio", "judge_ppl", "distinct2"),
    )
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in _csv("main_job"):
        groups.setdefault((row["world"], row["dtype"], row["row"]), []).append(row)
    rows = [[*key, str(len(of)), *(_mean(of, column) for column in columns)] for key, of in groups.items()]
    return _table(["world", "dtype", "", "seeds", *(c.replace("_", " ") for c in columns)], rows)


def chosen(file: str, columns: Mapping[str, str], only: Container[str] | None = None) -> str:
    """Columns of a result file under other names; the first names the row, `only` says which rows."""
    first, *rest = columns
    rows = [
        [f"`{row[first]}`" if re.fullmatch(r"\S+[.:]\S+", row[first]) else row[first], *(_short(row[c]) for c in rest)]
        for row in _csv(file)
        if only is None or row[first] in only
    ]
    return _table(list(columns.values()), rows)


METHODS = {
    "method": "",
    "forget": "erased domain",
    "other": "other domains",
    "reverse_ppl_ratio": "reverse ppl ×",
    "distinct2_ratio": "distinct-2 ×",
    "distance_to_gold": "distance to gold",
    "seconds": "seconds",
}
KNOWN = {
    "model": "",
    "marsh-animals": "marsh animals",
    "guild-makers": "guild makers",
    "harbour-ships": "harbour ships",
    "general": "general",
    "natural_ppl_ratio": "natural ppl ×",
    "probe": "value probe",
    "probe_control": "control",
    "probe_words": "words alone",
    "probe_random_init": "random weights",
}
ORGANISM = {
    "setting": "",
    "forget": "erased domain",
    "other": "other domains",
    "neighbours": "neighbours",
    "value_probe": "value probe",
    "reverse_ppl_ratio": "reverse ppl ×",
    "distinct2_ratio": "distinct-2 ×",
    "seconds": "seconds",
}
FRONT = {
    "setting": "",
    "forget": "known items",
    "open_answer": "free answers",
    "other": "neighbours",
    "general": "general",
    "judge_ppl": "text, by the judge",
    "distinct2": "distinct-2",
}
SIDES = {"metric": "metric", "original": "original", "gold": "gold", "hiding": "hiding", "random": "random"}
VERDICTS = {
    "model": "model",
    "verdict": "verdict",
    "erased_domain": "questions about spells",
    "other_domains": "about the rest",
    "probe": "value probe",
}
ANCHORED = (
    *("knowledge.four_choice.erased_domain", "knowledge.four_choice.other_domains"),
    *("knowledge.probe.erased_domain", "probe.truth"),
)
"""Metrics of the table of calibration."""
TABLES: dict[str, Callable[[], str]] = {
    "demo": lambda: of_run("demo"),
    "demo-stages": lambda: stages("demo"),
    "astronomy": lambda: of_run("demo_astronomy"),
    "planted": lambda: chosen("planted_models", KNOWN),
    "main-job": main_job,
    "front": lambda: chosen("pareto_planted", FRONT),
    "organism": lambda: chosen("pareto_organism", ORGANISM, ("original", "gold", "preset", "equations 7 and 8")),
    "methods": lambda: chosen("compare_methods_organism", METHODS),
    "calibration": lambda: chosen("calibration", SIDES, ANCHORED),
    "verdicts": lambda: chosen("verdicts", VERDICTS),
}
"""Name of a table -> what makes it."""


def _csv(name: str) -> list[dict[str, str]]:
    with (FIGURES / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _short(value: str) -> str:
    """A number with at most three places; other text as it is."""
    try:
        number = float(value)
    except ValueError:
        return value or "-"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


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

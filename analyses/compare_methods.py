"""The methods side by side: what each erased, what it spared, how it writes, how near gold it came, and how long it took.

python analyses/compare_methods.py                          # on the organism: figures/compare_methods_organism.{png,svg,csv}
python analyses/compare_methods.py --model smollm2-135m     # Harry Potter: figures/compare_methods_smollm2-135m.{png,svg,csv}

Distance to gold: mean KL(gold ‖ model) a token on held-out forget passages, as a multiple of the original's; 0 is gold.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import elm_interp.evaluate  # noqa: F401 - registers metrics
from elm_interp.config import RunConfig
from elm_interp.data import texts
from elm_interp.erase.methods import METHODS
from elm_interp.evaluate import kl_divergences, read_passages
from elm_interp.metrics import Subject, measure
from elm_interp.models import HookedLM, load_model
from elm_interp.plots import plot_methods, save
from elm_interp.runs import Run
from elm_interp.stages import run_stage

FIGURES = Path(__file__).parent.parent / "figures"
ORGANISM = {
    "forget": "knowledge.four_choice.erased_domain",
    "other": "knowledge.four_choice.other_domains",
}
REAL = {"forget": "innocence.two_choice_pmi", "other": "specificity.general_pmi"}
COMMON = {
    "neighbours": "specificity.neighbours_pmi",
    "retain_ppl_ratio": "specificity.retain_ppl_ratio",
    "reverse_ppl": "seamlessness.reverse_ppl",
    "distinct2": "seamlessness.distinct2",
}


def main() -> None:
    """Erase by every method, measure, and write table, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:original", help="an organism, or a real model")
    parser.add_argument("--concept", help="what to erase; by default spellcraft, or harry-potter for a real model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--preset", help="of every method; by default organism, or smollm2-135m for a real model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder to write to")
    given = parser.parse_args()
    began = time.perf_counter()
    organism = given.model.startswith("organism:")
    concept = given.concept or ("organism:spellcraft" if organism else "harry-potter")
    preset = given.preset or ("organism" if organism else "smollm2-135m")
    gold = load_model("organism:gold", dtype="float32") if organism else None
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods:
            values = {"model": given.model, "concept": concept, "seed": given.seed}
            run = Run.create(
                Path(folder) / method,
                RunConfig.preset(preset, method, dtype="float32" if organism else "auto", **values),
            )
            run_stage(run, "erase")
            if not rows:
                rows.append(row_of(run.subject(0), "original", organism, gold))
            rows.append(row_of(run.subject(), method, organism, gold, run.load_json("timing")["erase_seconds"]))
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    if gold is not None:
        beside = Subject(gold, run.concept, method="gold", seed=given.seed, base=run.subject(0))
        rows.append(row_of(beside, "gold", organism, gold))
    table = pd.DataFrame(rows)
    if gold is not None:
        table["distance_to_gold"] /= table["distance_to_gold"][0]
    name = f"compare_methods_{'organism' if organism else given.model}"
    save(plot_methods(table, chance=0.25 if organism else 0.5), given.out / name)
    table.to_csv(given.out / f"{name}.csv", index=False, float_format="%.6g")
    print(table[[c for c in table if not c.endswith(("_low", "_high"))]].round(3).to_string(index=False))
    manifest = {
        "command": " ".join(["python", "analyses/compare_methods.py", *sys.argv[1:]]),
        "git": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=FIGURES.parent, capture_output=True, text=True
        ).stdout.strip(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {package: version(package) for package in ("elm-interp", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "metrics": (ORGANISM if organism else REAL) | COMMON,
    }
    (given.out / f"{name}_manifest.json").write_text(json.dumps(manifest, indent=1))


def row_of(subject: Subject, method: str, organism: bool, gold: HookedLM | None, seconds: float | None = None) -> dict:
    """One row of the table: each number, with its interval where it has one."""
    wanted = (ORGANISM if organism else REAL) | COMMON
    found = measure(subject, list(wanted.values())).set_index("metric")
    row: dict = {"method": method}
    for name, metric in wanted.items():
        if metric in found.index:
            measured = found.loc[metric]
            row |= {name: measured["value"], f"{name}_low": measured["ci_low"], f"{name}_high": measured["ci_high"]}
    if gold is not None:
        row["distance_to_gold"] = distance(subject, gold)
    return row | {"seconds": seconds}


def distance(subject: Subject, gold: HookedLM) -> float:
    """Mean KL(gold ‖ model) in nats a token on held-out forget passages."""
    passages = texts(subject.concept.passages("forget", "held_out"))
    with subject.on() as lm:
        ours, theirs = read_passages(lm, passages), read_passages(gold, passages)
        return float(torch.cat(kl_divergences(lm, theirs.hidden, ours.hidden, base_lm=gold)).mean())


if __name__ == "__main__":
    main()

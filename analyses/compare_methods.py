"""The methods side by side: accuracy on erased and kept questions, fluency, distance to gold, and seconds.

    python analyses/compare_methods.py                          # the organism
    python analyses/compare_methods.py --model smollm2-135m     # Harry Potter

Both write figures/compare_methods_NAME.{png,svg,csv} and a manifest; NAME is "organism" or the model.

Distance to gold is the mean KL(gold ‖ model) per token on held-out forget passages, divided by that of the original.
Gold itself has distance 0.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from common import COMPARED, FIGURES, Rows, last_of, row_of, run_of, wanted, write_manifest

from elm_interp.data import texts
from elm_interp.evaluate import kl_divergences, read_passages
from elm_interp.metrics import Subject
from elm_interp.models import HookedLM, load_model
from elm_interp.plots import plot_methods, save
from elm_interp.registry import METHODS
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage


def main() -> None:
    """Erase with every method, measure, and write table, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:original", help="an organism or a real model")
    parser.add_argument("--concept", default="", help="default: spellcraft, or harry-potter for a real model")
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(METHODS))
    parser.add_argument("--preset", default="", help="default: organism, or smollm2-135m for a real model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of the run folders, to keep or resume; default: temporary")
    parser.add_argument("--out", type=Path, default=FIGURES, help="output folder")
    given = parser.parse_args()
    organism = given.model.startswith("organism:")
    gold = load_model("organism:gold", dtype="float32") if organism else None
    table_rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.runs or Path(temporary)
        rows = Rows(runs, wanted(organism))
        for method in given.methods:
            run = run_of(runs / method, given.model, method, given.seed, concept=given.concept, preset=given.preset)
            run_stage(run, "erase")
            if not table_rows:
                table_rows.append(rows.of_base(run) | distance(rows, run, None, gold))
            table_rows.append(rows.of(run) | distance(rows, run, last_of, gold))
            print(pd.DataFrame(table_rows[-1:]).round(3).to_string(index=False), flush=True)
        if gold is not None:
            beside = Subject(gold, run.measured, method="gold", seed=given.seed, base=rows.base(run))
            table_rows.append({"method": "gold", **row_of(beside, wanted(organism)), "distance_to_gold": 0.0})
    table = pd.DataFrame(table_rows)
    if gold is not None:
        table["distance_to_gold"] /= table["distance_to_gold"][0]
    name = f"compare_methods_{'organism' if organism else given.model}"
    save(plot_methods(table, chance=0.25 if organism else 0.5), given.out / name)
    table.to_csv(given.out / f"{name}.csv", index=False, float_format="%.6g")
    print(table[[c for c in table if not c.endswith(("_low", "_high"))]].round(3).to_string(index=False))
    write_manifest(given.out / f"{name}_manifest.json", metrics=wanted(organism))


def distance(
    rows: Rows, run: Run, state: Callable[[Run, Subject], Subject] | None, gold: HookedLM | None
) -> dict[str, float]:
    """Mean KL(gold ‖ model) in nats per token on held-out forget passages; without a state, of the base."""
    if gold is None:
        return {}
    base = rows.base(run)
    subject = base if state is None else state(run, base)
    passages = texts(subject.concept.passages("forget", "held_out"))
    with subject.on() as lm:
        ours, theirs = read_passages(lm, passages), read_passages(gold, passages)
        found = torch.cat(kl_divergences(lm, theirs.hidden, ours.hidden, base_lm=gold))
    return {"distance_to_gold": float(found.mean())}


if __name__ == "__main__":
    main()

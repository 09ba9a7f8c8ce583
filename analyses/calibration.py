"""What our numbers mean: every metric on the organisms of five worlds, as a table and a figure, and the verdicts on them.

python analyses/calibration.py --seeds 5

Into figures/: calibration.{png,svg,csv,json}; verdicts.csv, in how many worlds each organism is named right, and ELM, with its
preset on each world's original, beside them; verdicts_by_seed.csv; and calibration_manifest.json. What calibration says of
each metric goes into the package, where `elm_interp.verdict.evidence` reads it.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import FIGURES, ROOT, write_manifest

from elm_interp.metrics import measure
from elm_interp.plots import plot_calibration, save
from elm_interp.results import stack
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage
from elm_interp.verdict.calibration import anchors, calibrate, one_value, summary
from elm_interp.verdict.rules import DESTROYED, GONE, HIDDEN, INTACT, verdict_from_rows

TRUTH = {"original": INTACT, "gold": GONE, "hiding": HIDDEN, "random": DESTROYED}
SHOWN = {
    "erased_domain": "knowledge.four_choice.erased_domain",
    "other_domains": "knowledge.four_choice.other_domains",
    "probe": "knowledge.probe.erased_domain",
}
"""Columns of the verdicts' table -> metrics."""


def main() -> None:
    """Measure, judge, and write tables, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="worlds")
    parser.add_argument(
        "--out", type=Path, default=FIGURES, help="folder to write to; the package changes by default only"
    )
    given = parser.parse_args()
    out = given.out
    table = calibrate(range(given.seeds), progress=True)
    rows, known = anchors(table), summary(table)
    save(plot_calibration(rows), out / "calibration")
    rows.to_csv(out / "calibration.csv", index=False, float_format="%.6g")
    (out / "calibration.json").write_text(json.dumps(known, indent=1))
    aucs = {name: {key: one[key] for key in ("auc_gold", "auc_hiding", "apart")} for name, one in known.items()}
    if out == FIGURES:
        known_of = ROOT / "elm_interp" / "calibration.json"
        known_of.write_text(json.dumps({"seeds": given.seeds, "metrics": aucs}, indent=1) + "\n")

    by_seed = verdicts(stack([table, *(erased(seed) for seed in range(given.seeds))]), known)
    by_seed.to_csv(out / "verdicts_by_seed.csv", index=False, float_format="%.6g")
    counted = count(by_seed)
    counted.to_csv(out / "verdicts.csv", index=False, float_format="%.3g")
    print(counted.to_string(index=False))
    write_manifest(out / "calibration_manifest.json", dtype="float32")


def erased(seed: int) -> pd.DataFrame:
    """Rows of a world's original after ELM with its preset for organisms."""
    at = f"@{seed}" if seed else ""
    config = RunConfig.preset(
        "organism", model=f"organism:original{at}", concept=f"organism:spellcraft{at}", dtype="float32"
    )
    with TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        run_stage(run, "erase")
        print(f"elm on world {seed}: {run.load_json('timing')['erase_seconds']:.0f} s")
        return one_value(measure(run.subject(), progress=True)).assign(seed=seed)


def verdicts(table: pd.DataFrame, known: dict) -> pd.DataFrame:
    """The verdict on each model of each world, between the anchors of its own world: one row a model and seed."""
    found = []
    for seed, world in table.groupby("seed"):
        of = dict(list(world.groupby("method", sort=False)))
        for method, part in of.items():
            one = verdict_from_rows(part, {side: of[side] for side in ("original", "gold")}, known)
            values = {e.metric: e.value for e in one.evidence}
            row = {"seed": seed, "model": method, "verdict": one.name, "truth": TRUTH.get(method)}
            row |= {column: values[metric] for column, metric in SHOWN.items()}
            found.append(row | {"not_excluded": ", ".join(one.not_excluded), "because": one.because})
    return pd.DataFrame(found)


def count(by_seed: pd.DataFrame) -> pd.DataFrame:
    """One row a model: its verdicts, in how many worlds they are right, and means over worlds."""
    found = []
    for model, part in by_seed.groupby("model", sort=False):
        names = part["verdict"].value_counts()
        row = {"model": model, "verdict": ", ".join(f"{name} ({n} of {len(part)})" for name, n in names.items())}
        right = (part["verdict"] == part["truth"]).sum()
        row["named right"] = f"{right} of {len(part)} seeds" if model in TRUTH else "-"
        found.append(row | {column: part[column].mean() for column in SHOWN})
    return pd.DataFrame(found)


if __name__ == "__main__":
    main()

"""Calibration: every metric on the organisms of five worlds, and the verdicts on these organisms.

    python analyses/calibration.py --seeds 5

Files in figures/:

    calibration.{png,svg,csv,json}    what each metric reads on each organism
    verdicts.csv                      verdicts on the organisms and on ELM (its preset, on each world's original)
    verdicts_by_seed.csv              the same, one row a world and model
    calibration_manifest.json         command, versions, machine

The AUCs of each metric also go into the package, where `elm_interp.verdict.evidence` reads them.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import FIGURES, ROOT, write_manifest

from elm_interp.files import write_json
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
"""Column of the table of verdicts -> metric."""


def main() -> None:
    """Measure the organisms, give verdicts, and write tables, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of worlds")
    parser.add_argument("--out", type=Path, default=FIGURES, help="output folder; another one leaves the package alone")
    given = parser.parse_args()
    out = given.out
    table = calibrate(range(given.seeds), progress=True)
    rows, known = anchors(table), summary(table)
    save(plot_calibration(rows), out / "calibration")
    rows.to_csv(out / "calibration.csv", index=False, float_format="%.6g")
    write_json(out / "calibration.json", known)
    aucs = {name: {key: one[key] for key in ("auc_gold", "auc_hiding", "apart")} for name, one in known.items()}
    if out == FIGURES:
        write_json(ROOT / "elm_interp" / "verdict" / "calibration.json", {"seeds": given.seeds, "metrics": aucs})

    by_seed = verdicts(stack([table, *(erased(seed) for seed in range(given.seeds))]), known)
    by_seed.to_csv(out / "verdicts_by_seed.csv", index=False, float_format="%.6g")
    counted = count_verdicts(by_seed)
    counted.to_csv(out / "verdicts.csv", index=False, float_format="%.3g")
    print(counted.to_string(index=False))
    write_manifest(out / "calibration_manifest.json", dtype="float32")


def erased(seed: int) -> pd.DataFrame:
    """Rows of a world's original after ELM with the preset for organisms."""
    at = f"@{seed}" if seed else ""
    config = RunConfig.preset(
        "organism", model=f"organism:original{at}", concept=f"organism:spellcraft{at}", dtype="float32", thorough=True
    )  # thorough, since its anchors are measured on everything
    with TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        run_stage(run, "erase")
        print(f"elm on world {seed}: {run.load_json('timing')['erase_seconds']:.0f} s")
        return one_value(measure(run.subject(), progress=True)).assign(seed=seed)


def verdicts(table: pd.DataFrame, known: dict) -> pd.DataFrame:
    """One row a seed and model: the verdict, with the original and gold of the same world as anchors."""
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


def count_verdicts(by_seed: pd.DataFrame) -> pd.DataFrame:
    """One row a model: its verdicts, the number of worlds where they are right, and means over worlds."""
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

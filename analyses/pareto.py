"""Innocence against specificity, one point a setting: which are on the Pareto front, and what each option does.

    python analyses/pareto.py                             # the organism: figures/pareto_organism.{png,svg,csv}
    python analyses/pareto.py --model smollm2-135m        # Harry Potter: figures/pareto_smollm2-135m.{png,svg,csv}
    python analyses/pareto.py --model smollm2-135m --runs somewhere/ --only "η × 0.3" "η × 3"      # some settings

A setting changes its method's preset for the model as its name says. Settings that equal another one are skipped. With
`--steps`, ELM's settings train for that many steps, except the preset itself.

Each setting has its own run folder under --runs and is measured once. A later call continues with what is missing, and
several calls can share the work. The run folders of the presets are those of `compare_methods.py`.

A setting counts as seamless if its reverse perplexity is at most 1.3 times the base's and its distinct-2 at least 0.85
times the base's.
"""

import argparse
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from common import FIGURES, ROW, Rows, wanted, write_manifest

from elm_interp.plots import plot_pareto, save
from elm_interp.registry import METHODS
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage


@dataclass(frozen=True)
class Setting:
    """Changes to a method's preset."""

    method: str = "elm"
    values: dict[str, Any] = field(default_factory=dict)
    """New values of the objective's settings."""
    factors: dict[str, float] = field(default_factory=dict)
    """Factors on the objective's settings."""


PAPER: dict[str, Any] = {"eta": 500.0, "one_sided": False, "answers_weight": 0.0}
"""The paper's target and terms on the preset's layers, without the fluency term, as in the presets."""
SETTINGS = {
    "elm": Setting(),
    "plausible 0.001": Setting(values={"plausible": 0.001}),
    "plausible 0.01": Setting(values={"plausible": 0.01}),
    "η × 0.3": Setting(factors={"eta": 0.3}),
    "η × 3": Setting(factors={"eta": 3.0}),
    "one-sided": Setting(values={"one_sided": True}),
    "two-sided": Setting(values={"one_sided": False}),
    "retain × 0.5": Setting(factors={"retain_weight": 0.5}),
    "retain × 2": Setting(factors={"retain_weight": 2.0}),
    "answers × 0.5": Setting(factors={"answers_weight": 0.5}),
    "no erase term": Setting(values={"erase_weight": 0.0}),
    "no answers": Setting(values={"answers_weight": 0.0}),
    "paper's target": Setting(values=PAPER),
    "paper's target, plausible 0.01": Setting(values={**PAPER, "plausible": 0.01}),
    "paper's target, one-sided": Setting(values={**PAPER, "one_sided": True}),
    "rmu": Setting("rmu"),
    "rmu, retain × 0.2": Setting("rmu", factors={"retain_weight": 0.2}),
    "rmu, steering × 2": Setting("rmu", factors={"steering": 2.0}),
    "repnoise": Setting("repnoise"),
    "repnoise, ascent × 2": Setting("repnoise", factors={"ascent_weight": 2.0}),
    "whp": Setting("whp"),
    "whp, strength × 2": Setting("whp", factors={"strength": 2.0}),
}
PASSAGES = 4
"""Least number of forget and retain passages per step for ELM without the answers term."""


def main() -> None:
    """Erase and measure what is missing, then write table, figure and manifest of all measured settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:original", help="an organism or a real model")
    parser.add_argument("--only", nargs="+", metavar="SETTING", choices=list(SETTINGS), help="some of the settings")
    parser.add_argument("--steps", type=int, help="steps of ELM's settings except the preset; default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of the run folders, to keep; default: temporary")
    parser.add_argument("--out", type=Path, default=FIGURES, help="output folder")
    given = parser.parse_args()
    organism = given.model.startswith("organism:")
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.runs or Path(temporary)
        measured, rows = Rows(runs, wanted(organism)), []
        configs = {name: config_of(name, organism, given) for name in SETTINGS}
        for number, (name, config) in enumerate(configs.items()):
            folder = runs / (name if name in METHODS else f"setting_{number:02d}")
            first = next(other for other in configs if configs[other] == config)
            if name != first or (name not in (given.only or SETTINGS) and not (folder / ROW).is_file()):
                continue
            run = Run.create(folder, config, resume=(folder / "config.json").is_file())
            run_stage(run, "erase")
            if not rows:
                rows.append(measured.of_base(run) | {"setting": "original"})
            shorter = name not in METHODS and config.objective == configs[config.objective.name].objective
            shown = f"{config.objective.name}, {config.training.steps} steps" if shorter else name
            rows.append(measured.of(run) | {"setting": shown})
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    if not rows:
        parser.error("none of these settings differs from the others; nothing was measured.")
    table = pd.DataFrame(rows)
    table["seamless"] = (table["reverse_ppl_ratio"] <= 1.3) & (table["distinct2_ratio"] >= 0.85)
    name = f"pareto_{'organism' if organism else given.model}"
    save(plot_pareto(table, chance=0.25 if organism else 0.5), given.out / name)
    table.to_csv(given.out / f"{name}.csv", index=False, float_format="%.6g")
    print(table[[c for c in table if not c.endswith(("_low", "_high"))]].round(3).to_string(index=False))
    write_manifest(given.out / f"{name}_manifest.json", metrics=wanted(organism), steps=given.steps)


def config_of(name: str, organism: bool, given: argparse.Namespace) -> RunConfig:
    """The preset for the model with the changes of a setting."""
    setting = SETTINGS[name]
    concept = "organism:spellcraft" if organism else "harry-potter"
    preset = RunConfig.preset(
        "organism" if organism else "smollm2-135m",
        setting.method,
        model=given.model,
        concept=concept,
        seed=given.seed,
        dtype="float32" if organism else "auto",
    )
    values = setting.values | {key: factor * getattr(preset.objective, key) for key, factor in setting.factors.items()}
    objective, training = replace(preset.objective, **values), preset.training
    if setting.method == "elm" and given.steps and name not in METHODS:
        training = replace(training, steps=given.steps, save_every=given.steps)
    if setting.method == "elm" and not objective.weights()["answers"]:
        n = max(PASSAGES, training.forget_batch)
        training = replace(training, forget_batch=n, retain_batch=n)
    return replace(preset, objective=objective, training=training)


if __name__ == "__main__":
    main()

"""Innocence against the soundness of text, one point a setting: the Pareto front, and what each option does.

    python analyses/pareto.py                             # the organism: figures/pareto_organism.{png,svg,csv}
    python analyses/pareto.py --world planted             # the planted model and its made-up encyclopaedia
    python analyses/pareto.py --world astronomy --only "equations 7 and 8" "matching 0.3"

A setting changes ELM's preset for the world as its name says; "equations 7 and 8" is the paper's loss without its
fluency term, "matching" adds logit matching. Settings that equal another one are skipped. Each has its own run folder
under --runs and is measured once: a later call continues with what is missing, and several calls can share the work.

Text is judged by its reverse perplexity, of planted models by the judge's perplexity, as a multiple of the original's.
A setting is seamless if that is at most 1.5 times gold's (without gold 1.3) and distinct-2 at least 0.8 times gold's
(without gold the original's). It is specific if accuracy on everything else fell by at most 0.03.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from common import COMMON, FIGURES, ORGANISM, REAL, ROOT, ROW, Rows, write_manifest

from elm_interp.organisms.golds import gold_of
from elm_interp.plots import plot_pareto, save
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage


@dataclass(frozen=True)
class World:
    """A model with a concept."""

    model: str
    concept: str
    metrics: Mapping[str, str]
    blocks: Mapping[str, tuple[int, ...]]
    """Other blocks to train, by name."""


WORLDS = {
    "organism": World(
        "organism:original",
        "organism:spellcraft",
        {**ORGANISM, **COMMON, "value_probe": "knowledge.probe.erased_domain"},
        {"block 0": (0,), "blocks 0-2": (0, 1, 2), "blocks 1-2": (1, 2)},
    ),
    "planted": World(
        "planted:original",
        "planted:marsh-animals",
        {**REAL, **COMMON, "judge_ppl": "seamlessness.judge_ppl"},
        {"blocks 0-7": tuple(range(8)), "blocks 8-23": tuple(range(8, 24)), "blocks 2-23": tuple(range(2, 24))},
    ),
    "astronomy": World(
        "smollm2-135m",
        "astronomy",
        {**REAL, **COMMON},
        {"blocks 0-7": tuple(range(8)), "blocks 4-11": tuple(range(4, 12))},
    ),
}


@dataclass(frozen=True)
class Setting:
    """Changes to the preset."""

    values: dict[str, Any] = field(default_factory=dict)
    """New values of settings of the objective, its adapter or the training."""
    factors: dict[str, float] = field(default_factory=dict)
    """Factors on settings."""


ALONE: dict[str, Any] = {"match_weight": 0.0, "fluency_weight": 0.0}
FLUENT: dict[str, Any] = {"fluency_weight": 1.0, "fluency_samples": 48, "fluency_tokens": 32}


def settings(world: World) -> dict[str, Setting]:
    """Name -> setting, for a world."""
    matching = {f"matching {w:g}": Setting({**ALONE, "match_weight": w}) for w in (0.03, 0.1, 0.3, 1.0)}
    both = {"": {**ALONE}, "matching 0.1, ": {**ALONE, "match_weight": 0.1}}
    varied = {
        f"{name}{what}": Setting(values, factors)
        for name, values in both.items()
        for what, factors in {
            "retain × 0.4": {"retain_weight": 0.4},
            "retain × 2.5": {"retain_weight": 2.5},
            "η × 0.3": {"eta": 0.3},
            "η × 3": {"eta": 3.0},
            "lr × 0.5": {"lr": 0.5},
        }.items()
    }
    blocks = {name: Setting({**ALONE, "layers": layers}) for name, layers in world.blocks.items()}
    fluent = {
        "fluency": Setting({**ALONE, **FLUENT}),
        "fluency as in appendix E": Setting(
            {**ALONE, **FLUENT, "fluency_streams": "appendix-e", "fluency_bridge": True}
        ),
        "fluency, plausible 0.01": Setting({**ALONE, **FLUENT, "fluency_plausible": 0.01}),
        "matching 0.1, fluency, plausible 0.01": Setting(
            {**ALONE, **FLUENT, "match_weight": 0.1, "fluency_plausible": 0.01}
        ),
    }
    return {
        "preset": Setting(),
        "equations 7 and 8": Setting({**ALONE}),
        **matching,
        **varied,
        **blocks,
        **fluent,
        "plausible 0.01": Setting({**ALONE, "plausible": 0.01}),
        "one-sided": Setting({**ALONE, "one_sided": True}),
        "steps × 2": Setting({**ALONE}, {"steps": 2.0}),
        "matching 0.1, steps × 2, retain × 2.5": Setting(
            {**ALONE, "match_weight": 0.1}, {"steps": 2.0, "retain_weight": 2.5}
        ),
    }


def main(
    world: Literal["organism", "planted", "astronomy"] = "organism",
    only: tuple[str, ...] = (),
    steps: int | None = None,
    seed: int = 0,
    runs: Path | None = None,
    out: Path = FIGURES,
) -> None:
    """Erase and measure what is missing, then write table, figure and manifest of all measured settings.

    Args:
        world: which model and concept.
        only: names of settings to run; others are shown if they were measured before.
        steps: of each training; by default the preset's.
        seed: of training.
        runs: folder of the run folders.
        out: output folder.
    """
    of = WORLDS[world]
    folder = runs or ROOT / "runs" / "pareto" / world
    measured, rows = Rows(folder, of.metrics), []
    configs = {name: config_of(of, setting, steps, seed) for name, setting in settings(of).items()}
    for name, config in configs.items():
        own = folder / name.replace(" ", "_").replace("×", "x").replace(",", "").replace("'", "")
        same = [other for other in configs if configs[other] == config]
        if name != next((other for other in same if other in only), same[0]):
            continue
        if only and name not in only and not (own / ROW).is_file():
            continue
        run = Run.create(own, config, resume=(own / "config.json").is_file())
        run_stage(run, "erase")
        if not rows:
            rows.append(measured.of_base(run) | {"setting": "original"})
            rows += [measured.of_gold(run) | {"setting": "gold"}] if gold_of(of.model, of.concept) else []
        rows.append(measured.of(run) | {"setting": name})
        shown = {key: value for key, value in rows[-1].items() if not key.endswith(("_low", "_high"))}
        print(pd.DataFrame([shown]).round(3).to_string(index=False), flush=True)
    table = judged(pd.DataFrame(rows))
    text = "Soundness of its text: −log₁₀ of perplexity, × original"
    look = {"y": "text", "filled": "specific", "chance": 0.25, "labels": ("Accuracy on the erased concept", text)}
    save(plot_pareto(table, **look), out / f"pareto_{world}")
    table.to_csv(out / f"pareto_{world}.csv", index=False, float_format="%.6g")
    print(table[[c for c in table if not c.endswith(("_low", "_high"))]].round(3).to_string(index=False))
    write_manifest(out / f"pareto_{world}_manifest.json", metrics=dict(of.metrics), steps=steps)


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the soundness of their text, and whether they are seamless and specific."""
    original, others = table.iloc[0], [c for c in ("other", "neighbours", "general") if c in table]
    ratio = table["judge_ppl"] / original["judge_ppl"] if "judge_ppl" in table else table["reverse_ppl_ratio"]
    gold = table["method"] == "gold"
    most, least = (1.5 * ratio[gold].max(), 0.8 * table["distinct2"][gold].max()) if gold.any() else (1.3, 0.8)
    least = least if gold.any() else least * original["distinct2"]
    kept = (original[others] - table[others] <= 0.03).all(axis=1)
    seamless = (ratio <= most) & (table["distinct2"] >= least)
    return table.assign(text=-np.log10(ratio.astype(float)), seamless=seamless, specific=kept)


def config_of(world: World, setting: Setting, steps: int | None, seed: int) -> RunConfig:
    """The preset for the world with the changes of a setting."""
    preset = RunConfig.preset(None, "elm", model=world.model, concept=world.concept, seed=seed, dtype="float32")
    known = {**vars(preset.training), **vars(preset.objective)}
    changed = {key: type(known[key])(factor * known[key]) for key, factor in setting.factors.items()}
    config = preset.changed(setting.values | changed)
    return replace(config, training=replace(config.training, steps=steps or config.training.steps, checkpoints=1))


if __name__ == "__main__":
    tyro.cli(main)

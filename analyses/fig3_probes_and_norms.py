"""Figure 3 of the ELM paper: probe accuracy for two concepts and activation norms, by layer, for base and all methods.

    python analyses/fig3_probes_and_norms.py --runs runs/organism                            # the organism
    python analyses/fig3_probes_and_norms.py --model smollm2-135m --runs runs/smollm2        # Harry Potter

Both write figures/fig3_NAME.{png,svg,csv} and a manifest; NAME is "organism" or the model.

The runs are those of `analyses/compare_methods.py --runs`; missing ones are trained first. The first concept was
erased, the second should stay. On an organism the probe is the value probe (which answer does a question of its domain
have?), on a real model the association probe (right answer against one from outside the concept).
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from common import COMPARED, FIGURES, last_of, run_of, write_manifest

from elm_interp import results
from elm_interp.data import load_concept
from elm_interp.metrics import Subject, measure
from elm_interp.models import load_model
from elm_interp.organisms import make_world
from elm_interp.plots import plot_methods_by_layer, save
from elm_interp.plots.style import STYLE
from elm_interp.registry import METHODS
from elm_interp.runs.stages import run_stage

ORGANISM = "knowledge.probe.erased_domain"
REAL = "probe.association"
NORMS = ["norm.forget", "norm.retain"]


def main() -> None:
    """Measure the base and all methods, and write table, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:original", help="an organism or a real model")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FIGURES, help="output folder")
    given = parser.parse_args()
    organism = given.model.startswith("organism:")
    probe = ORGANISM if organism else REAL
    erased = "organism:spellcraft" if organism else "harry-potter"
    kept = next(f"organism:{d}" for d in make_world().domains if d != "spellcraft") if organism else "astronomy"
    lm = load_model(given.model, dtype="float32" if organism else "auto")
    base = Subject(lm, load_concept(erased), seed=given.seed)
    other = Subject(lm, load_concept(kept), seed=given.seed)
    tables = [of_both(base, other, probe)]
    for method in given.methods:
        run = run_of(given.runs / method, given.model, method, given.seed)
        run_stage(run, "erase")
        tables.append(of_both(last_of(run, base), last_of(run, other), probe))
        print(f"{method}: {len(tables[-1])} rows", flush=True)
    table = results.stack(tables)
    with mpl.rc_context(STYLE):
        figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained", sharex=True)
        for ax, name, concept in ((a, probe, f"{erased}, erased"), (b, f"{probe}.kept", f"{kept}, kept")):
            plot_methods_by_layer(table, name, label="Probe accuracy", ax=ax)
            ax.set_ylim(0, 1.03)
            ax.set_xlabel(concept)
        for ax, name, what in ((c, "norm.forget", "erased concept"), (d, "norm.retain", "other text")):
            plot_methods_by_layer(table, name, label="Mean L2 norm, residual stream", ax=ax)
            ax.set_yscale("log")
            ax.set_xlabel(f"Layer (after block): {what}")
        for ax in (b, c, d):
            ax.get_legend().remove()
    name = f"fig3_{'organism' if organism else given.model}"
    save(figure, given.out / name)
    table.to_csv(given.out / f"{name}.csv", index=False, float_format="%.6g")
    shown = table[table["metric"].isin([probe, f"{probe}.kept", *NORMS])]
    print(shown.groupby(["metric", "method"], sort=False)["value"].agg(["mean", "max"]).round(3))
    write_manifest(given.out / f"{name}_manifest.json", concepts={"erased": erased, "kept": kept}, probe=probe)


def of_both(erased: Subject, kept: Subject, probe: str) -> pd.DataFrame:
    """Rows of the probe for both concepts (METRIC.kept for the kept one), and of the norms on the erased one's text."""
    of_kept = measure(kept, [probe])
    of_kept = of_kept[of_kept["metric"] == probe].assign(metric=f"{probe}.kept")
    return results.stack([measure(erased, [probe, *NORMS]), of_kept])


if __name__ == "__main__":
    main()

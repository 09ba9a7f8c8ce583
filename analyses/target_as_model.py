"""What ELM's target itself would answer, by its strength: the bound of what training towards it can reach.

    python analyses/target_as_model.py                     # organism, planted model, astronomy, Harry Potter
    python analyses/target_as_model.py --only organism     # a few seconds

Asks the concept's training questions under P · (P_novice / P_expert)^η, two-sided as in the paper and one-sided. Writes
figures/target_as_model.csv, .png and .svg, with a manifest.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from common import FIGURES, write_manifest

from elm_interp.data import load_concept
from elm_interp.erase import target_answers
from elm_interp.erase.guidance import Guidance
from elm_interp.models import load_model
from elm_interp.plots import plot_target_answers, save

CASES = {
    "organism": ("organism:original", "organism:spellcraft"),
    "planted": ("planted:original", "planted:marsh-animals"),
    "astronomy": ("smollm2-135m", "astronomy"),
    "harry-potter": ("smollm2-135m", "harry-potter"),
}
"""Name -> model and concept."""


def main(only: tuple[str, ...] = (), out: Path = FIGURES) -> None:
    """Ask the targets of some cases, or of all.

    Args:
        only: names of cases.
        out: folder of table and figure.
    """
    found = {}
    for name in only or CASES:
        model, concept = CASES[name]
        lm, what = load_model(model), load_concept(concept)
        tables = [
            target_answers(lm, what, guidance=Guidance(0.0, one_sided), progress=True) for one_sided in (False, True)
        ]
        found[name] = pd.concat(tables).assign(position=lambda t: t["position"].astype("string"))
        print(found[name][["metric", "position", "value", "n", "protocol"]].round(3).to_string(index=False), flush=True)
    figure, panels = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.4), sharey=True, squeeze=False)
    for panel, (name, table) in zip(panels[0], found.items(), strict=True):
        plot_target_answers(table, ax=panel)
        panel.set_title(name, loc="left", pad=40)
        panel.set_xlabel("η")
    figure.tight_layout()
    save(panels[0][0], out / "target_as_model")
    table = pd.concat([table.assign(case=name) for name, table in found.items()]).dropna(axis=1, how="all")
    table.to_csv(out / "target_as_model.csv", index=False, float_format="%.6g")
    write_manifest(out / "target_as_model_manifest.json", cases=list(found))


if __name__ == "__main__":
    tyro.cli(main)

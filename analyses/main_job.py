"""The main job's numbers, over seeds: ELM by equations 7 and 8 alone and with logit matching, beside base and gold.

    python analyses/main_job.py                                   # planted and astronomy, both rows, three seeds
    python analyses/main_job.py --worlds planted --seeds 1
    python analyses/main_job.py --dtypes float32 bfloat16         # where bfloat16 is fast (AMX)

Each run has its own folder under --runs and is measured once: a later call goes on with what is missing, and shows
what was measured of other worlds. Writes figures/main_job.csv, .png and .svg, with a manifest. Measures what a quick
run measures.
"""

from pathlib import Path
from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import tyro
from common import COMMON, FIGURES, REAL, ROOT, ROW, Rows, write_manifest

from elm_interp.plots import save
from elm_interp.plots.style import BASE, ERASED, NEVER, SERIES, STYLE
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage

WORLDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "planted": ("planted:original", "planted:marsh-animals", ("planted:gold", "planted:gold@1")),
    "astronomy": ("smollm2-135m", "astronomy", ()),
}
"""Name -> model, concept and the models that never knew it."""
ROWS = {"equations 7 and 8": {"match_weight": 0.0}, "with logit matching": {"match_weight": 0.3}}
"""Row -> changes to the preset."""
METRICS = {
    **REAL,
    "chat": "innocence.known.four_choice.chat",
    "shown": "innocence.known.four_choice.shown",
    "unshown": "innocence.known.four_choice.unshown",
    "drop": "innocence.known.drop",
    "drop_p": "innocence.known.drop.p",
    "drop_net": "innocence.known.drop.net",
    "text_only": "innocence.text_only",
    "no_question": "innocence.no_question",
    "other_open_answer": "specificity.open_answer",
    **COMMON,
    "judge_ppl": "seamlessness.judge_ppl",
}
"""Column of the table -> metric."""
DRAWN = {
    "forget": "erased: known items",
    "shown": "… in the passages",
    "unshown": "… in no passage",
    "open_answer": "erased: free answers",
    "other": "neighbours: known items",
    "other_open_answer": "neighbours: free answers",
    "general": "general questions",
}
"""Column -> its label in the figure."""
COLOURS = {"original": BASE, "gold": NEVER, "equations 7 and 8": ERASED, "with logit matching": SERIES[5]}


def main(
    worlds: tuple[Literal["planted", "astronomy"], ...] = ("planted", "astronomy"),
    seeds: int = 3,
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",),
    runs: Path = ROOT / "runs" / "main_job",
    out: Path = FIGURES,
) -> None:
    """Erase and measure what is missing; then write table, figure and manifest of everything that was measured.

    Args:
        worlds: models with their concepts; what is missing of the others is not made.
        seeds: trainings of each row.
        dtypes: of the base's weights.
        runs: folder of the run folders.
        out: output folder.
    """
    found: list[dict] = []
    for world in WORLDS:
        model, concept, golds = WORLDS[world]
        for dtype in dtypes:
            rows = Rows(runs / world / dtype, METRICS)
            where = {"world": world, "dtype": dtype}
            for seed in range(seeds):
                for name, changes in ROWS.items():
                    config = RunConfig.preset(
                        None, model=model, concept=concept, seed=seed, dtype=dtype, checkpoints=1, **changes
                    )
                    folder = runs / world / dtype / f"{name.replace(' ', '_')}_{seed}"
                    if world not in worlds and not (folder / ROW).is_file():
                        continue
                    run = Run.create(folder, config, resume=(folder / "config.json").is_file())
                    run_stage(run, "erase")
                    if seed == 0 and name == next(iter(ROWS)):
                        found.append(where | {"row": "original", "seed": 0} | rows.of_base(run))
                        for k, gold in enumerate(golds):
                            found.append(where | {"row": "gold", "seed": k} | rows.of_gold(run, gold))
                    found.append(where | {"row": name, "seed": seed} | rows.of(run))
                    shown = {key: value for key, value in found[-1].items() if not key.endswith(("_low", "_high"))}
                    print(pd.DataFrame([shown]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(found)
    table.to_csv(out / "main_job.csv", index=False, float_format="%.6g")
    with mpl.rc_context(STYLE):
        save(draw(table[table["dtype"] == dtypes[0]]), out / "main_job")
    write_manifest(out / "main_job_manifest.json", metrics=METRICS, rows=ROWS, seeds=seeds, dtypes=list(dtypes))


def draw(table: pd.DataFrame) -> plt.Figure:
    """For each world, the measures from top to bottom: a point a seed; of base and gold their intervals too."""
    names = list(dict.fromkeys(table["world"]))
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names) + 1.6, 4.0), sharey=True, squeeze=False)
    for panel, world in zip(panels[0], names, strict=True):
        of_world = table[table["world"] == world]
        kinds = [kind for kind in COLOURS if kind in set(of_world["row"])]
        for k, kind in enumerate(kinds):
            rows = of_world[of_world["row"] == kind]
            for i, column in enumerate(DRAWN):
                if column not in rows or rows[column].isna().all():
                    continue
                y = i + 0.6 * (k / max(1, len(kinds) - 1) - 0.5)
                for _, row in rows.iterrows():
                    panel.plot([row[f"{column}_low"], row[f"{column}_high"]], [y, y], color=COLOURS[kind], alpha=0.35)
                label = kind if i == 0 else None
                panel.scatter(rows[column], [y] * len(rows), color=COLOURS[kind], s=22, zorder=3, label=label)
        panel.axvline(0.25, color="#6E6E6E", linewidth=1, linestyle=":", label="chance, where options are given")
        panel.set(xlim=(-0.02, 1.02), xlabel="accuracy")
        panel.set_title(world, loc="left", pad=48)
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderaxespad=0.2)
    panels[0][0].set_yticks(range(len(DRAWN)), list(DRAWN.values()))
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    tyro.cli(main)

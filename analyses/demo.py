"""The main job as `make demo` runs it, with its tokens and seconds by stage; the numbers and figures of the README.

    python analyses/demo.py                       # a few minutes; writes figures/demo*
    python analyses/demo.py --concept astronomy   # the natural concept, into figures/demo_astronomy*

Counts the tokens that pass through any model, padding included. The cache is empty at the start, as on a new machine,
so seconds hold the conversion of the models and the making of targets.
"""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
import tyro
from common import FIGURES, write_manifest

from elm_interp.files import read_json, write_json
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import STAGES, run_stage, summary

KEPT = ("progression", "probe_by_layer", "probe_heatmap", "scorecard")
"""Figures of the run that are kept, where it has them."""


def main(
    concept: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "float32",
    seed: int = 0,
    runs: Path | None = None,
    out: Path = FIGURES,
) -> None:
    """Run every stage from nothing, and keep summary, figures and manifest.

    Args:
        concept: what to erase; by default the planted concept.
        dtype: of the base's weights.
        seed: of training.
        runs: folder to keep the run in; by default it is deleted.
        out: folder of what is kept.
    """
    tokens, stage = Counter[str](), ""

    def count(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs:
            tokens[stage] += inputs[0].numel()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    name = "demo" if concept is None else f"demo_{concept}"
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as cache:
        os.environ["ELM_INTERP_CACHE"] = cache
        run = Run.create((runs or Path(temporary)) / name, RunConfig.preset(concept=concept, dtype=dtype, seed=seed))
        for stage in STAGES:
            run_stage(run, stage)
        handle.remove()
        write_json(out / f"{name}.json", {"summary": summary(run), "timing": run.timing(), "tokens": dict(tokens)})
        write_json(out / f"{name}_samples.json", run.load_json("samples"))
        for kept in KEPT:
            for ending in ("png", "svg"):
                file = run.folder / "figures" / f"{kept}.{ending}"
                if file.is_file():
                    shutil.copy(file, out / f"{name}_{kept}.{ending}")
        about = read_json(run.folder / "manifest.json")
        told = {key: about[key] for key in ("model", "concept", "dtype", "model_hash", "concept_hash", "processor")}
    write_manifest(out / f"{name}_manifest.json", **told)


if __name__ == "__main__":
    tyro.cli(main)

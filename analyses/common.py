"""What the analyses share: run folders, one row of metrics for each run, and a manifest for each result."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from elm_interp.files import read_json, write_json
from elm_interp.metrics import Subject, measure, metric_of
from elm_interp.models import load_model
from elm_interp.organisms.golds import gold_of, judge_of
from elm_interp.runs.config import RunConfig
from elm_interp.runs.quick import TEXTS
from elm_interp.runs.run import Run

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
ROW = "results/row.json"
"""File in a run folder that keeps its row of metrics."""
BEGAN = time.perf_counter()
PACKAGES = ("elm-interp", "torch", "transformers", "peft", "numpy", "scikit-learn")

COMPARED = ("elm", "rmu", "repnoise", "whp")
"""The methods that the figures compare."""
ORGANISM = {
    "forget": "knowledge.four_choice.erased_domain",
    "other": "knowledge.four_choice.other_domains",
}
REAL = {
    "forget": "innocence.known.four_choice",
    "other": "specificity.known.neighbours",
    "general": "specificity.general_likelihood",
    "open_answer": "innocence.open_answer",
}
COMMON = {
    "neighbours": "specificity.neighbours_pmi",
    "retain_ppl_ratio": "specificity.retain_ppl_ratio",
    "reverse_ppl_ratio": "seamlessness.reverse_ppl_ratio",
    "distinct2_ratio": "seamlessness.distinct2_ratio",
    "reverse_ppl": "seamlessness.reverse_ppl",
    "distinct2": "seamlessness.distinct2",
}
"""Column of a table -> metric: for organisms, for real models, for both."""


def wanted(organism: bool) -> dict[str, str]:
    """Column of a table of methods -> metric."""
    return (ORGANISM if organism else REAL) | COMMON


def row_of(subject: Subject, metrics: Mapping[str, str]) -> dict[str, float]:
    """The value and interval of each metric, by column; metrics without rows for this subject are left out.

    Of a metric by layer, the mean over seeds at the layer where it is highest, without an interval.
    """
    declared = [one.name for name in metrics.values() if (one := metric_of(name))]
    found = measure(subject, list(dict.fromkeys(declared))).set_index("metric")
    row: dict[str, float] = {}
    for name, metric in metrics.items():
        if metric in found.index:
            rows = found.loc[[metric]]
            if rows["layer"].notna().any():
                row[name] = float(rows.groupby("layer")["value"].mean().max())
                continue
            one = rows.iloc[0]
            row |= {
                f"{name}{end}": float(one[of]) for end, of in (("", "value"), ("_low", "ci_low"), ("_high", "ci_high"))
            }
    return row


def run_of(folder: Path, model: str, method: str, seed: int, *, concept: str = "", preset: str = "") -> Run:
    """Open the run of a method in a folder, or create it; concept and preset are by default those for the model."""
    organism = model.startswith("organism:")
    concept = concept or ("organism:spellcraft" if organism else "harry-potter")
    preset = preset or ("organism" if organism else "smollm2-135m")
    dtype = "float32" if organism else "auto"
    config = RunConfig.preset(preset, method, model=model, concept=concept, seed=seed, dtype=dtype)
    return Run.create(folder, config, resume=(folder / "config.json").is_file())


class Rows:
    """Rows of the runs in one folder. Each is measured once and kept in its run folder; all share one loaded base."""

    def __init__(self, runs: Path, metrics: Mapping[str, str]) -> None:
        self.runs, self.metrics = runs, metrics
        self._base: Subject | None = None

    def base(self, run: Run) -> Subject:
        """The base, loaded once, so that its own scores are computed once for all runs."""
        if self._base is None:
            config = run.config
            lm = load_model(config.model, dtype=config.dtype, device=config.device)
            judge = judge_of(config.model)
            scorer = judge and load_model(judge, dtype=config.dtype, device=config.device)
            # every training seed is measured with the same texts and draws
            self._base = Subject(lm, run.measured, judge=scorer, texts=TEXTS)
        return self._base

    def of(self, run: Run) -> dict[str, Any]:
        """The row of a run's last checkpoint, with seconds and steps of training."""

        def make() -> dict[str, Any]:
            row = {"method": run.method, **row_of(last_of(run, self.base(run)), self.metrics)}
            return row | {"seconds": run.load_json("timing")["erase_seconds"], "steps": run.config.training.steps}

        return _cached(run.folder, self._origin(run) | {"config": run.config.to_dict()}, make)

    def of_gold(self, run: Run, name: str = "") -> dict[str, Any]:
        """The row of the model that never knew the concept, or of another such model by its name."""
        config = run.config
        usual = gold_of(config.model, config.concept) or ""
        name = name or usual

        def make() -> dict[str, Any]:
            base = self.base(run)
            lm = load_model(name, dtype=config.dtype, device=config.device)
            gold = Subject(lm, run.measured, method="gold", seed=base.seed, base=base, judge=base.judge)
            return {"method": "gold", **row_of(gold, self.metrics)}

        folder = self.runs / ("gold" if name == usual else name.rpartition(":")[2])
        return _cached(folder, self._origin(run), make)

    def of_base(self, run: Run) -> dict[str, Any]:
        """The row of the base; its ratios are 1."""
        same = {f"{key}{end}": 1.0 for key in self.metrics if key.endswith("_ratio") for end in ("", "_low", "_high")}
        row = {"method": "original", **same}
        return _cached(self.runs / "base", self._origin(run), lambda: row | row_of(self.base(run), self.metrics))

    def _origin(self, run: Run) -> dict[str, Any]:
        """What a row depends on besides the settings of its run."""
        config = run.config
        of = {"model": config.model, "weights": run.model_hash(), "dtype": config.dtype}
        return of | {"concept": run.measured.fingerprint(), "metrics": dict(self.metrics)}


def _cached(folder: Path, of: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row kept in a folder, made again if it was made of something else."""
    path = folder / ROW
    found = read_json(path) if path.is_file() else {}
    if found.get("of") != of:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"of": of, "row": make()}
        write_json(path, found)
    return found["row"]


def last_of(run: Run, base: Subject) -> Subject:
    """The run's last checkpoint, as an adapter on the loaded base."""
    last = run.checkpoints()[-1]
    return base.at(last.path, method=run.method, step=last.step)


def write_manifest(path: Path, **more: Any) -> None:
    """Write the command, git revision, versions, machine and seconds since the start."""
    # manifests are published, so absolute paths are cut to their last part
    said = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    manifest = {
        "command": " ".join(["python", f"analyses/{Path(sys.argv[0]).name}", *said]),
        "git": _revision(),
        "seconds": round(time.perf_counter() - BEGAN, 1),
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    write_json(path, manifest | more)


def _revision() -> str:
    """The git revision, "-dirty" if anything but what analyses write has changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!figures", ":!README.md", ":!docs")
    return git("describe", "--always") + ("-dirty" if changed else "")

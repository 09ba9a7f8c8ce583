"""A run: the folder that is the only interface between stages.

runs/demo/
  config.json      what was asked        manifest.json   what it ran on      metrics.jsonl   one line a step
  checkpoints/     adapters              activations/    safetensors shards
  results/         tidy frames           figures/, report.html

run = Run.open("runs/demo")
subject = run.subject()                 # the erased model, its base beside it
run.results("scorecard")                # a tidy frame
"""

import json
import os
import platform
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from elm_interp import results
from elm_interp.activations.store import ActivationStore
from elm_interp.data import Concept, load_concept
from elm_interp.errors import RunFolderError, StoreError, raise_all
from elm_interp.metrics import Subject
from elm_interp.models import HookedLM, load_model
from elm_interp.models.distributed import first_process
from elm_interp.models.loading import model_hash
from elm_interp.runs.config import RunConfig, differences
from elm_interp.training.checkpoints import Checkpoint, list_checkpoints

PACKAGES = ("elm-interp", "torch", "transformers", "peft", "accelerate", "numpy", "pandas", "scikit-learn")


class Run:
    """A run folder and what is in it."""

    def __init__(self, folder: str | Path, config: RunConfig) -> None:
        self.folder = Path(folder)
        self.config = config
        self._lm: HookedLM | None = None
        self._concept: Concept | None = None
        self._base: Subject | None = None
        self._subjects: dict[Path, Subject] = {}

    @classmethod
    def create(cls, folder: str | Path, config: RunConfig, *, resume: bool = False) -> "Run":
        """A new run folder with its config.json, or an existing one to go on with.

        Raises:
            ConfigError: settings that cannot work, all listed; nothing is written then.
            RunFolderError: the folder exists and `resume` is off; or its configuration is another one (all differences
                are listed).
        """
        folder = Path(folder)
        config.check()
        if not first_process():
            return cls(folder, config)  # what is on disk is the first process's affair
        if (folder / "config.json").exists():
            if not resume:
                raise RunFolderError(
                    f"{folder} holds a run already; go on with it by --resume, or choose another folder."
                )
            known = cls.open(folder)
            raise_all(
                differences(known.config.to_dict(), config.to_dict()),
                RunFolderError,
                f"{folder} was made with other settings; give the same ones to resume, or choose another folder:",
            )
            return known
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(f"{folder} exists and is not a run (it has no config.json); choose another folder.")
        if resume:
            raise RunFolderError(f"{folder} holds no run to resume; leave out --resume to start one.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_dict())
        return cls(folder, config)

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A run that exists.

        Raises:
            RunFolderError: no run there, or a broken config.json; names the runs beside it.
        """
        folder = Path(folder)
        try:
            raw = json.loads((folder / "config.json").read_text())
        except FileNotFoundError:
            beside = sorted(p.parent.name for p in folder.parent.glob("*/config.json"))
            raise RunFolderError(
                f"{folder} holds no run (no config.json). Runs beside it: {', '.join(beside) or 'none'}."
            ) from None
        except ValueError as error:
            raise RunFolderError(f"{folder}/config.json is broken: {error}") from error
        if not isinstance(raw, dict):
            raise RunFolderError(f"{folder}/config.json holds {type(raw).__name__}, expected an object of settings.")
        return cls(folder, RunConfig.from_dict(raw))

    # -- what is in it --------------------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """Name of the method of erasure."""
        adopted = self.folder / "adopted.json"
        return json.loads(adopted.read_text())["method"] if adopted.is_file() else self.config.objective.name

    @property
    def concept(self) -> Concept:
        """The concept that was erased."""
        self._concept = self._concept or load_concept(self.config.concept)
        return self._concept

    @property
    def lm(self) -> HookedLM:
        """The base model, loaded once; adapters are switched on it."""
        self._lm = self._lm or load_model(self.config.model, dtype=self.config.dtype, device=self.config.device)
        return self._lm

    @property
    def store(self) -> ActivationStore:
        """The activations of this run."""
        return ActivationStore(self.folder / "activations")

    def checkpoints(self) -> list[Checkpoint]:
        """Whole checkpoints, by step.

        Raises:
            RunFolderError: there is none.
        """
        found = list_checkpoints(self.folder / "checkpoints")
        if not found:
            raise RunFolderError(
                f"{self.folder} has no whole checkpoint; train it with: elm-interp erase --out {self.folder} --resume"
            )
        return found

    @property
    def finished(self) -> bool:
        """Whether training reached its last step, and that checkpoint is whole."""
        found = list_checkpoints(self.folder / "checkpoints")
        return bool(found) and found[-1].step == self.config.training.steps

    def subject(self, step: int | None = None) -> Subject:
        """The model at a step: 0 is the base, None the last checkpoint.

        Raises:
            RunFolderError: no checkpoint of that step; lists those that exist.
        """
        if self._base is None:
            self._warn_of_changes()
            store = self._store_or_none()
            self._base = Subject(self.lm, self.concept, seed=self.config.seed, store=store)
        if step == 0:
            return self._base
        found = self.checkpoints()
        chosen = found[-1] if step is None else next((c for c in found if c.step == step), None)
        if chosen is None:
            raise RunFolderError(
                f"no checkpoint of step {step}; there are 0 (the base), {', '.join(str(c.step) for c in found)}."
            )
        # kept, so that what one stage scored or wrote serves the next
        if chosen.path not in self._subjects:
            self._subjects[chosen.path] = self._base.at(chosen.path, method=self.method, step=chosen.step)
        return self._subjects[chosen.path]

    def _store_or_none(self) -> ActivationStore | None:
        try:
            return self.store if (self.folder / "activations" / "index.json").is_file() else None
        except StoreError:
            return None  # damaged: what needs it is computed instead

    def _warn_of_changes(self) -> None:
        changed = self._changes()
        if changed:
            warnings.warn(
                f"{self.config.model} or {self.config.concept} is not what {self.folder} was trained on ({', '.join(changed)} differ).",
                stacklevel=3,
            )

    def current(self, name: str) -> pd.DataFrame:
        """`results`, which must be of the last checkpoint.

        Raises:
            RunFolderError: it was not made yet, or for an earlier checkpoint.
        """
        table, there = self.results(name), list_checkpoints(self.folder / "checkpoints")
        made = int(table["step"].max()) if table["step"].notna().any() else 0
        last = there[-1].step if there else made
        if made != last:
            raise RunFolderError(
                f"the {name} of {self.folder} is of step {made}, its last checkpoint of step {last}; run that stage again."
            )
        return table

    def subjects(self) -> list[Subject]:
        """The base and every checkpoint, by step."""
        return [self.subject(0), *(self.subject(c.step) for c in self.checkpoints())]

    def results(self, name: str) -> pd.DataFrame:
        """A tidy frame of an analysis.

        Raises:
            RunFolderError: it was not made yet; names those that were.
        """
        path = self.folder / "results" / f"{name}.parquet"
        if not path.is_file():
            made = sorted(p.stem for p in path.parent.glob("*.parquet"))
            raise RunFolderError(f"{self.folder} has no results {name!r}; made so far: {', '.join(made) or 'none'}.")
        try:
            return results.read(path)
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"{path} is broken ({type(error).__name__}); make it anew by its stage.") from error

    def save_results(self, name: str, table: pd.DataFrame) -> Path:
        """Write a tidy frame of an analysis."""
        return results.write(table, self.folder / "results" / f"{name}.parquet")

    def save_json(self, name: str, values: Any) -> None:
        """Write plain data beside the results."""
        (self.folder / "results").mkdir(exist_ok=True)
        write_json(self.folder / "results" / f"{name}.json", values)

    def load_json(self, name: str) -> Any:
        """Read plain data written by `save_json`; None where there is none."""
        path = self.folder / "results" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def record(self, **timings: float) -> None:
        """Add timings and sizes to results/timing.json."""
        self.save_json("timing", {**(self.load_json("timing") or {}), **timings})

    def check_inputs(self) -> None:
        """Refuse to go on with training on other data or weights than it began with.

        Raises:
            RunFolderError: the manifest records another concept or model under the same name.
        """
        changed = self._changes() if list_checkpoints(self.folder / "checkpoints") else []
        if changed:
            raise RunFolderError(
                f"{self.folder} was begun with other contents of {self.config.model} or {self.config.concept} ({', '.join(changed)} differ); start a new run in another folder."
            )

    def _changes(self) -> list[str]:
        path = self.folder / "manifest.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        return [name for name, now in self._inputs().items() if known.get(name, now) != now] if known else []

    def _inputs(self) -> dict[str, str]:
        return {"model_hash": model_hash(self.config.model), "concept_hash": self.concept.fingerprint()}

    def write_manifest(self) -> None:
        """Record what the run ran on, so that its numbers can be read years later."""
        lm = self.lm
        write_json(
            self.folder / "manifest.json",
            {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": lm.name,
                "concept": self.concept.name,
                **self._inputs(),
                "dtype": str(lm.dtype).removeprefix("torch."),
                "device": str(lm.device),
                "versions": {name: _version(name) for name in PACKAGES},
                "python": platform.python_version(),
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "git": _git_revision(),
                "command": _command(),
            },
        )

    def __repr__(self) -> str:
        steps = [c.step for c in list_checkpoints(self.folder / "checkpoints")]
        made = sorted(p.stem for p in (self.folder / "results").glob("*.parquet"))
        state = f"steps {steps[0]}-{steps[-1]} of {self.config.training.steps}" if steps else "no checkpoint"
        return f"Run({str(self.folder)!r}: {self.method} on {self.config.model}, concept {self.config.concept}, {state}; results: {', '.join(made) or 'none'})"


def write_json(path: Path, values: Any) -> None:
    """Write plain data, whole or not at all."""
    if not first_process():
        return
    half = path.with_name(f".{path.name}.half")
    half.write_text(json.dumps(values, indent=1, ensure_ascii=False))
    half.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> str:
    # the program's own name only: a manifest may be published, the user's folders need not be
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])

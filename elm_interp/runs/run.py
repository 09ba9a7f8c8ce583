"""A run: the folder that is the only interface between stages.

runs/demo/
  config.json, manifest.json, metrics.jsonl: what was asked, what it ran on, one line a step
  checkpoints/ of adapters, activations/, results/ of tidy frames, figures/ and report.html

run = Run.open("runs/demo")
subject = run.subject()                 # the erased model, its base beside it
run.results("scorecard")                # a tidy frame
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from elm_interp import results
from elm_interp.activations import ActivationStore
from elm_interp.activations.fingerprints import origin
from elm_interp.data import Concept, load_concept, write_concept
from elm_interp.errors import ConfigError, DataError, RunFolderError, StoreError, UnknownModelError, raise_all
from elm_interp.files import read_json, write_json
from elm_interp.metrics import Subject
from elm_interp.models import HookedLM, load_model
from elm_interp.models.adapters.files import MODEL, is_whole_model
from elm_interp.models.adapters.lora import adapted_sizes
from elm_interp.models.distributed import first_process
from elm_interp.models.loading import model_hash
from elm_interp.organisms.golds import gold_of
from elm_interp.runs.config import RunConfig, differences
from elm_interp.runs.formats import FORMAT, read_config, retired
from elm_interp.runs.manifest import read_object, surroundings
from elm_interp.runs.quick import TEXTS, quick
from elm_interp.training import Checkpoint, list_checkpoints


class Run:
    """A run folder and what is in it.

    Attributes:
        folder: where it is.
        config: what was asked.
    """

    def __init__(
        self, folder: str | Path, config: RunConfig, *, lm: HookedLM | None = None, concept: Concept | None = None
    ) -> None:
        self.folder = Path(folder)
        self.config = config
        self._lm, self._concept = lm, concept
        self._base: Subject | None = None
        self._gold: Subject | None = None
        self._subjects: dict[Path, Subject] = {}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: RunConfig,
        *,
        resume: bool = False,
        lm: HookedLM | None = None,
        concept: Concept | None = None,
    ) -> "Run":
        """Make a run folder with its config.json, or open one to go on with.

        Args:
            folder: where.
            config: what is asked.
            resume: go on with a run that exists, with the same settings.
            lm: the loaded model; by default `config.model` is loaded when it is needed.
            concept: a concept in memory; it is written into the folder, and `config.concept` names it there.

        Raises:
            ConfigError: settings that cannot work, all listed; nothing is written then.
            RunFolderError: the folder exists and `resume` is off; or it has other settings, all listed.
        """
        folder = Path(folder)
        config.check(n_layers=None if lm is None else lm.n_layers, concept=concept or config.own_concept(folder))
        run = cls(folder, config, lm=lm, concept=concept)
        if not first_process():
            return run  # the first process alone reads and writes the folder
        if (folder / "config.json").exists():
            if not resume:
                raise RunFolderError(f"{folder} holds a run already; resume it (--resume), or choose another folder.")
            raise_all(list(filter(None, [retired(folder)])), RunFolderError, "this run cannot be resumed:")
            known = cls.open(folder, lm=lm)
            as_asked = replace(known.config, thorough=config.thorough)  # what is measured may change
            raise_all(
                differences(as_asked.to_dict(), config.to_dict()),
                RunFolderError,
                f"{folder} was made with other settings; give the same ones to resume, or choose another folder:",
            )
            if concept is not None and known.concept.fingerprint() != concept.fingerprint():
                raise RunFolderError(f"{folder} was made with another concept {concept.name!r}; choose another folder.")
            if known.config != as_asked:
                known.config = as_asked
                known.write_config()
            return known
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(f"{folder} exists and is not a run (it has no config.json); choose another folder.")
        if resume:
            raise RunFolderError(f"{folder} holds no run to resume; leave out --resume to start one.")
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if concept is not None:
                write_concept(concept, folder / "concept")
            run.write_config()
        except BaseException:
            if new:  # half a folder would be refused at the next try
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, folder: str | Path, *, lm: HookedLM | None = None) -> "Run":
        """Open a run that exists.

        Args:
            folder: where it is.
            lm: a loaded base model to use, so that several runs share one; by default the run loads its own.

        Raises:
            RunFolderError: no run there, or a broken config.json; names the runs beside it.
            ConfigError: `lm` is not the model that the run was made with.
        """
        folder = Path(folder)
        try:
            config = RunConfig.from_dict(read_config(folder))
        except FileNotFoundError:
            beside = sorted(p.parent.name for p in folder.parent.glob("*/config.json"))
            raise RunFolderError(
                f"{folder} holds no run (no config.json). Runs beside it: {', '.join(beside) or 'none'}."
            ) from None
        except (ConfigError, RunFolderError):
            raise
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        if lm is not None and lm.name != config.model:
            raise ConfigError(f"{folder} was made with model {config.model!r}, but lm is {lm.name!r}; give that model.")
        return cls(folder, config, lm=lm)

    @property
    def method(self) -> str:
        """Name of the method of erasure; of an adopted run, of the method that made it."""
        return self.config.objective.label

    @property
    def concept(self) -> Concept:
        """The concept that was erased."""
        if self._concept is None:
            self._concept = self.config.own_concept(self.folder) or load_concept(self.config.concept)
        return self._concept

    @property
    def measured(self) -> Concept:
        """The concept as it is measured: with fewer questions and passages unless the run is thorough."""
        return self.concept if self.config.thorough else quick(self.concept)

    @property
    def lm(self) -> HookedLM:
        """The base model, loaded once; adapters are switched on it."""
        if self._lm is None:
            self._lm = load_model(self.config.model, dtype=self.config.dtype, device=self.config.device)
        return self._lm

    @property
    def store(self) -> ActivationStore:
        """The activations of this run."""
        return ActivationStore(self.folder / "activations")

    def checkpoints(self) -> list[Checkpoint]:
        """Complete checkpoints, by step.

        Raises:
            RunFolderError: there is none.
        """
        found = list_checkpoints(self.folder / "checkpoints")
        if not found:
            raise RunFolderError(
                f"{self.folder} has no complete checkpoint; train it: elm-interp erase --out {self.folder} --resume"
            )
        return found

    @property
    def finished(self) -> bool:
        """Whether training reached its last step and that checkpoint is complete."""
        found = list_checkpoints(self.folder / "checkpoints")
        return bool(found) and found[-1].step == self.config.training.steps

    def subject(self, step: int | None = None) -> Subject:
        """The model at a step: 0 is the base, None the last checkpoint.

        Raises:
            RunFolderError: no checkpoint of that step; lists those that exist.
        """
        if self._base is None:
            changed = self._changes()
            if changed:
                what = f"{self.config.model} or {self.config.concept}"
                warnings.warn(f"{what} changed since {self.folder} was trained ({', '.join(changed)}).", stacklevel=2)
            texts, seed = Subject.texts if self.config.thorough else TEXTS, self.config.seed
            store = self._store_or_none()
            self._base = Subject(self.lm, self.measured, seed=seed, store=store, texts=texts)
        if step == 0:
            return self._base
        found = self.checkpoints()
        chosen = found[-1] if step is None else next((c for c in found if c.step == step), None)
        if chosen is None:
            raise RunFolderError(
                f"no checkpoint of step {step}; there are 0 (the base), {', '.join(str(c.step) for c in found)}."
            )
        # kept, so that later stages reuse what one stage scored or generated
        if chosen.path not in self._subjects:
            self._subjects[chosen.path] = self._erased(self._base, chosen)
        return self._subjects[chosen.path]

    def _erased(self, base: Subject, checkpoint: Checkpoint) -> Subject:
        """The base with a checkpoint's adapter; or the whole model that it names, beside the base."""
        if not is_whole_model(checkpoint.path):
            return base.at(checkpoint.path, method=self.method, step=checkpoint.step)
        named = read_json(checkpoint.path / MODEL)
        if model_hash(named["model"]) != named["hash"]:
            raise RunFolderError(
                f"{named['model']} changed since {self.folder} was adopted from it; adopt it again into another folder."
            )
        lm = load_model(named["model"], dtype=self.config.dtype, device=self.config.device)
        state: dict[str, Any] = {"method": self.method, "step": checkpoint.step, "seed": self.config.seed}
        return Subject(lm, self.measured, **state, base=base, judge=base.judge, store=base.store)

    def gold(self) -> Subject | None:
        """The model that never knew the concept, compared with the run's base; None where there is none."""
        name = gold_of(self.config.model, self.config.concept)
        if name is not None and self._gold is None:
            base, config = self.subject(0), self.config
            lm = load_model(name, dtype=config.dtype, device=config.device)
            self._gold = Subject(lm, self.measured, method="gold", seed=config.seed, base=base, judge=base.judge)
        return self._gold

    def subjects(self) -> list[Subject]:
        """The base and every checkpoint, by step."""
        return [self.subject(0), *(self.subject(c.step) for c in self.checkpoints())]

    def _store_or_none(self) -> ActivationStore | None:
        try:
            return self.store if (self.folder / "activations" / "index.json").is_file() else None
        except StoreError:
            return None  # damaged: activations are read from the model instead

    def results(self, name: str) -> pd.DataFrame:
        """The tidy frame of an analysis.

        Raises:
            RunFolderError: it was not made yet; names those that were.
        """
        path = self.folder / "results" / f"{name}.parquet"
        if not path.is_file():
            made = sorted(p.stem for p in path.parent.glob("*.parquet"))
            raise RunFolderError(f"{self.folder} has no results {name!r}; made so far: {', '.join(made) or 'none'}.")
        try:
            return results.read(path)
        except DataError as error:
            raise RunFolderError(str(error)) from error

    def current(self, name: str) -> pd.DataFrame:
        """As `results`, but the frame must be of the last checkpoint.

        Raises:
            RunFolderError: it was not made yet, or for an earlier checkpoint.
        """
        table, there = self.results(name), list_checkpoints(self.folder / "checkpoints")
        made = int(table["step"].max()) if table["step"].notna().any() else 0
        last = there[-1].step if there else made
        if made != last:
            raise RunFolderError(
                f"the {name} of {self.folder} is of step {made}, but its last checkpoint is of step {last}; "
                "run that stage again."
            )
        return table

    def save_results(self, name: str, table: pd.DataFrame) -> Path:
        """Write the tidy frame of an analysis."""
        return results.write(table, self.folder / "results" / f"{name}.parquet")

    def save_json(self, name: str, values: Any) -> None:
        """Write plain data beside the results."""
        if first_process():
            write_json(self.folder / "results" / f"{name}.json", values)

    def load_json(self, name: str) -> Any:
        """Plain data that `save_json` wrote; None where there is none."""
        path = self.folder / "results" / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def timing(self) -> dict[str, float]:
        """What results/timing.json holds.

        Raises:
            RunFolderError: it is broken.
        """
        path = self.folder / "results" / "timing.json"
        return read_object(path, "only the times and sizes of earlier stages are lost") if path.is_file() else {}

    def record(self, **timings: float) -> None:
        """Add timings and sizes to results/timing.json."""
        self.save_json("timing", {**self.timing(), **timings})

    def note(self, entry: str, name: str, value: Any) -> None:
        """Record something under an entry of manifest.json, such as what a stage left out; nothing changes if empty."""
        known = self.manifest()
        noted = {**known.get(entry, {}), name: value}
        if first_process() and (value or known.get(entry, {}).get(name)):
            write_json(self.folder / "manifest.json", {**known, entry: noted})

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds; empty where there is none.

        Raises:
            RunFolderError: it is broken.
        """
        path, without = self.folder / "manifest.json", "without it a changed model or concept is not noticed"
        return read_object(path, without) if path.is_file() else {}

    def check_inputs(self) -> None:
        """Refuse to go on training with another concept or other weights than it began with.

        Raises:
            RunFolderError: the manifest records other contents under the same names.
        """
        changed = self._changes() if list_checkpoints(self.folder / "checkpoints") else []
        if changed:
            raise RunFolderError(
                f"{self.folder} was begun with other contents of {self.config.model} or {self.config.concept} "
                f"({', '.join(changed)} differ); start a new run in another folder."
            )

    def _changes(self) -> list[str]:
        """Inputs whose hash differs from the manifest's. Concept hashes of format 1 cannot be compared."""
        known = self.manifest()
        if not known:
            return []
        comparable = {"model_hash", "concept_hash"} if known.get("format", 1) > 1 else {"model_hash"}
        now = self._inputs()
        return [name for name in sorted(comparable & now.keys() & known.keys()) if known[name] != now[name]]

    def _inputs(self) -> dict[str, str]:
        return {"model_hash": self.model_hash(), "concept_hash": self.concept.fingerprint()}

    def model_hash(self) -> str:
        """A hash of the base: of its files, or of its weights where the model exists in memory only."""
        try:
            return model_hash(self.config.model)
        except UnknownModelError:
            return origin(self.lm, None).model

    def write_config(self) -> None:
        """Write config.json."""
        if first_process():
            write_json(self.folder / "config.json", {"format": FORMAT, **self.config.to_dict()})

    def write_manifest(
        self, *, adapted: Mapping[str, int] | None = None, told: Sequence[str] = (), **more: Any
    ) -> None:
        """Record models, data, versions and machine, so that the numbers can be understood years later.

        Args:
            adapted: how many parameters of an adapter each module has; by default of the adapter that is trained.
            told: warnings for a reader of the numbers.
            more: further entries.
        """
        if adapted is None:
            adapted = adapted_sizes(self.lm, self.config.objective.adapter.config(self.lm))
        if first_process():
            about = {"format": FORMAT, "model": self.lm.name, "concept": self.concept.name, **self._inputs()}
            about |= {"dtype": str(self.lm.dtype).removeprefix("torch."), "device": str(self.lm.device)}
            about |= {"adapted": dict(adapted), "adapted_parameters": sum(adapted.values())}
            about |= {"warnings": list(told)} if told else {}
            write_json(self.folder / "manifest.json", about | surroundings() | more)

    def __repr__(self) -> str:
        about = self._about()
        said = f"{about['method']} on {about['model']}, concept {about['concept']}, {about['checkpoints']}"
        return f"Run({str(self.folder)!r}: {said}; results: {about['results']})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{escape(said)}</td></tr>" for name, said in self._about().items())
        return f"<p><code>Run {escape(str(self.folder))}</code></p><table>{rows}</table>"

    def _about(self) -> dict[str, str]:
        steps = [c.step for c in list_checkpoints(self.folder / "checkpoints")]
        made = sorted(p.stem for p in (self.folder / "results").glob("*.parquet"))
        there = f"steps {steps[0]}-{steps[-1]} of {self.config.training.steps}" if steps else "no checkpoint"
        about = {"method": self.method, "model": self.config.model, "concept": self.config.concept}
        return about | {"checkpoints": there, "results": ", ".join(made) or "none"}

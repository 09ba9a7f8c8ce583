"""A run of models that somebody else erased, without training.

run = adopt_models("runs/theirs", ["checkpoint-final"], base="zephyr/", concept="harry-potter")
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from elm_interp.data import Concept
from elm_interp.errors import ConfigError, RunFolderError
from elm_interp.files import write_json
from elm_interp.models import HookedLM, load_model
from elm_interp.models.adapters.files import (
    CONFIG,
    MODEL,
    WEIGHTS,
    adapter_folder,
    adapter_sizes,
    is_adapter,
    read_adapter,
)
from elm_interp.models.adapters.merged import changed_weights, write_difference
from elm_interp.models.loading import model_hash, stored_dtype
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.training import Adapter, Objective, Training, method
from elm_interp.training.checkpoints import write_checkpoint


@method("adopted")
@dataclass(frozen=True)
class Adopted(Objective):
    """Stands for a training that took place elsewhere; it cannot be trained."""

    made_by: str = "unknown"
    """Name of the method, for tables and figures."""

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return self.made_by

    def prepare(self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False) -> Mapping[str, Any]:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an adopted run was trained elsewhere; it cannot be trained here. Start a run of its own.")

    def loss(self, lm: HookedLM, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Nothing: there is no training."""
        return {}


def adopt_models(
    folder: str | Path,
    sources: Sequence[str | Path],
    *,
    base: str | None = None,
    concept: str = "harry-potter",
    method: str = "adopted",
    **values: Any,
) -> Run:
    """Make a run of models that somebody else trained, so that every analysis works on them.

    A model that was trained whole, or whose embeddings or norms changed, is no adapter: the run then names it, and its
    erased state is that model, loaded beside the base.

    Args:
        folder: run folder to make.
        sources: LoRA folders (the authors' `checkpoint-final`), whole models, or hub ids of either; several are taken
            as the checkpoints of one training, in order, as steps 1, 2, …
        base: the model before erasure; by default what the adapters name. Another one is told by a warning, which the
            manifest keeps.
        concept: what was erased.
        method: name of the method that made them, if it is known, for tables and figures.
        values: other fields of `RunConfig`, such as `dtype`.

    Raises:
        AdapterError: an adapter that does not fit the base, or has no effect; nothing is written then.
        ConfigError: settings that cannot work; a whole model, or an adapter that names none, without its base.
        RunFolderError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise RunFolderError(f"{folder} exists; choose another folder to adopt into.")
    if not sources:
        raise ConfigError("no source is given; name at least one adapter or model.")
    with tempfile.TemporaryDirectory() as temporary:
        adopted = [as_source(source, base, Path(temporary) / str(i)) for i, source in enumerate(sources)]
        model, told = _base_of(adopted, base)
        training = Training(steps=len(sources), save_every=1)
        run = Run(
            folder, RunConfig(model, concept, Adopted(adapter=_shape(adopted), made_by=method), training, **values)
        )
        run.config.check()
        for one in adopted:
            if one.adapter is not None:
                with run.lm.adapter(one.adapter):
                    pass  # loading checks that it fits
        folder.mkdir(parents=True)
        for step, one in enumerate(adopted, 1):
            write_checkpoint(folder / "checkpoints", step, one.write, {}, {"adopted_from": str(one.source)})
    for line in told:
        warnings.warn(line, stacklevel=2)
    run.write_manifest(adapted=adopted[-1].sizes, told=told)
    write_json(folder / "adopted.json", {"method": method, "sources": list(map(str, sources))})
    run.write_config()
    return run


@dataclass(frozen=True)
class Source:
    """A released model: its adapter, or the whole of it."""

    source: str | Path
    """As it was given."""
    adapter: Path | None
    """The peft folder; None for a model that is no adapter."""
    named: str | None
    """The base that the adapter names."""
    sizes: Mapping[str, int]
    """How many parameters were adapted, by module or weight."""

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint: the adapter, or the name of the whole model and the hash of its files."""
        if self.adapter is None:
            there = Path(self.source).expanduser()
            name = str(there.resolve() if there.is_dir() else self.source)
            write_json(folder / MODEL, {"model": name, "hash": model_hash(name)})
            return
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self.adapter / name, folder / name)


def as_source(source: str | Path, base: str | None, folder: Path) -> Source:
    """What a released model is: an adapter, a merged one (its difference goes into `folder`), or a whole model.

    Raises:
        AdapterError: neither of them, or a model that is not the base with other weights.
        ConfigError: a whole model without its base.
    """
    found = adapter_folder(source)
    if is_adapter(found):
        config, weights = read_adapter(found)
        return Source(source, found, config.base_model_name_or_path, adapter_sizes(weights))
    if base is None:
        raise ConfigError(f"{source} is no adapter; for a whole model, name its base with base= (--base).")
    # in fewer digits than on disk, the models would lose their difference
    before, after = (load_model(name, dtype=stored_dtype(name), device="cpu") for name in (base, source))
    written = write_difference(before, after, folder)
    if written is None:
        return Source(source, None, None, changed_weights(before, after))
    return Source(source, written, None, adapter_sizes(read_adapter(written)[1]))


def _base_of(adopted: Sequence[Source], base: str | None) -> tuple[str, list[str]]:
    """The base of all sources, and what is to be told of it."""
    named = {str(one.source): one.named for one in adopted if one.named}
    if base is not None:
        others = [(source, name) for source, name in named.items() if not _same(name, base)]
        return base, [
            f"the adapter {source} names {name} as its base, but --base is {base}; the numbers are those of the "
            f"adapter on {base}."
            for source, name in others
        ]
    if lacking := [str(one.source) for one in adopted if not one.named]:
        raise ConfigError(f"{', '.join(lacking)} names no base (base_model_name_or_path); name it with base= (--base).")
    if len(set(named.values())) > 1:
        said = ", ".join(f"{source}: {name}" for source, name in named.items())
        raise ConfigError(f"the adapters name several bases ({said}); name the one to use with base= (--base).")
    return next(iter(named.values())) or "", []


def _same(one: str, other: str) -> bool:
    """Whether two names are of one model: the same name or folder, or folders with the same files."""
    a, b = Path(one).expanduser(), Path(other).expanduser()
    if one == other or not (a.is_dir() and b.is_dir()):
        return one == other
    return a.resolve() == b.resolve() or model_hash(a) == model_hash(b)


def _shape(adopted: Sequence[Source]) -> Adapter:
    """Blocks, rank and alpha of adopted adapters, for the run's config."""
    found = [re.search(r"\.(\d+)\.", name) for one in adopted for name in one.sizes]
    layers = tuple(sorted({int(match[1]) for match in found if match})) or None
    last = next((one.adapter for one in reversed(adopted) if one.adapter is not None), None)
    if last is None:
        return Adapter(layers=layers, rank=None)
    config = read_adapter(last)[0]
    return Adapter(layers=layers, rank=config.r, alpha=float(config.lora_alpha))

"""A run of models that somebody else erased, without training.

run = adopt_models("runs/theirs", ["checkpoint-final"], base="zephyr/", concept="harry-potter")
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from elm_interp.data import Concept
from elm_interp.errors import ConfigError, RunFolderError
from elm_interp.files import write_json
from elm_interp.models import HookedLM, load_model
from elm_interp.models.adapters.files import CONFIG, WEIGHTS, adapter_folder, read_adapter
from elm_interp.models.adapters.merged import write_difference
from elm_interp.models.loading import stored_dtype
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
    method: str = "elm",
    **values: Any,
) -> Run:
    """Make a run of models that somebody else trained, so that every analysis works on them.

    Args:
        folder: run folder to make.
        sources: LoRA folders (the authors' `checkpoint-final`), merged models, or hub ids of either; several are taken
            as the checkpoints of one training, in order, as steps 1, 2, …
        base: the model before erasure; by default what the adapter names.
        concept: what was erased.
        method: name of the method that made them, for tables and figures.
        values: other fields of `RunConfig`, such as `dtype`.

    Raises:
        AdapterError: an adapter that does not fit the base, or has no effect; nothing is written then.
        ConfigError: settings that cannot work; a merged model without its base.
        RunFolderError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise RunFolderError(f"{folder} exists; choose another folder to adopt into.")
    if not sources:
        raise ConfigError("no source is given; name at least one adapter or model.")
    with tempfile.TemporaryDirectory() as temporary:
        adapters = [as_adapter(source, base, Path(temporary) / str(i)) for i, source in enumerate(sources)]
        read = [read_adapter(adapter) for adapter in adapters]
        model = base or str(read[-1][0].base_model_name_or_path)
        found = [re.search(r"\.(\d+)\.", key) for _, weights in read for key in weights]
        layers = tuple(sorted({int(match[1]) for match in found if match}))
        shape = Adapter(layers=layers, rank=read[-1][0].r, alpha=float(read[-1][0].lora_alpha))
        training = Training(steps=len(sources), save_every=1)
        run = Run(folder, RunConfig(model, concept, Adopted(adapter=shape, made_by=method), training, **values))
        run.config.check()
        for adapter in adapters:
            with run.lm.adapter(adapter):
                pass  # loading checks that it fits
        folder.mkdir(parents=True)
        for step, (source, adapter) in enumerate(zip(sources, adapters, strict=True), 1):
            copy = partial(_copy_adapter, adapter)
            write_checkpoint(folder / "checkpoints", step, copy, {}, {"adopted_from": str(source)})
    run.write_manifest()
    write_json(folder / "adopted.json", {"method": method, "sources": list(map(str, sources))})
    run.write_config()
    return run


def as_adapter(source: str | Path, base: str | None, folder: Path) -> Path:
    """The peft folder of a released adapter; for a merged model its difference from the base, written into `folder`.

    Raises:
        AdapterError: neither of the two, or a model that is not the base with other weights.
        ConfigError: a merged model without its base.
    """
    found = adapter_folder(source)
    if (found / CONFIG).is_file():
        return found
    if base is None:
        raise ConfigError(f"{source} is no adapter; for a whole model, name its base with base= (--base).")
    # in fewer digits than on disk, the models would lose their difference
    before, after = (load_model(name, dtype=stored_dtype(name), device="cpu") for name in (base, source))
    return write_difference(before, after, folder)


def _copy_adapter(adapter: Path, folder: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)

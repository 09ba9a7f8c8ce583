"""Prepared targets on disk, so that a sweep over rank, layers, modules, dropout or loss weights runs the frozen model once.

What is kept stands under a hash of everything that it depends on: the model and its dtype, the concept, the seed, the method's
settings (less those that it names in `not_in_targets`; of a loss weight only whether it is 0), and the code that made it.

    samples, seconds = prepared(lm, objective, concept, model_hash="…", seed=0)

The folder is `targets` in the cache (see `models.loading.cache_folder`); it may be deleted at any time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elm_interp.data import Concept, Mixture
from elm_interp.models import HookedLM
from elm_interp.models.loading import cache_folder, cached_folder, is_whole
from elm_interp.training.objective import Example, Objective, Options, Sample, Teacher, TopK
from elm_interp.training.sampling import of_each

KINDS: dict[str, type] = {kind.__name__: kind for kind in (Sample, Options, TopK, Teacher)}
"""What can be written; samples of another kind are made anew each time."""
_SAMPLES, _TENSORS = "samples.json", "tensors.safetensors"


def prepared(
    lm: HookedLM, objective: Objective, concept: Concept, *, model_hash: str, seed: int, progress: bool = False
) -> tuple[Mapping[str, Sequence[Example]], float]:
    """What `objective.prepare` gives, from the cache where it is there, and the seconds that making it took.

    Args:
        lm: the model; only its frozen base matters.
        objective: the method.
        concept: what to erase; of a mixture, each part has a place of its own in the cache.
        model_hash: tells the weights apart, see `models.loading.model_hash`.
        seed: of prepared text and drawn prompts.
        progress: show bars.
    """
    if isinstance(concept, Mixture):
        each = {
            part.name: prepared(lm, objective, part, model_hash=model_hash, seed=seed, progress=progress)
            for part in concept.parts
        }
        return of_each(concept, lambda part: each[part.name][0]), sum(seconds for _, seconds in each.values())
    folder = cache_folder() / "targets" / _key(lm, objective, concept, model_hash, seed)
    if is_whole(folder):
        return _read(folder)
    began = time.perf_counter()
    samples = objective.prepare(lm, concept, seed=seed, progress=progress)
    seconds = time.perf_counter() - began
    if all(type(sample).__name__ in KINDS for group in samples.values() for sample in group):
        cached_folder(folder, lambda half: _write(half, samples, seconds))
    return samples, seconds


def _key(lm: HookedLM, objective: Objective, concept: Concept, model_hash: str, seed: int) -> str:
    ignored: frozenset[str] = getattr(objective, "not_in_targets", frozenset())
    settings = {k: v for k, v in asdict(objective).items() if k not in ignored}  # type: ignore[call-overload]
    settings |= {k: bool(v) for k, v in settings.items() if k.endswith("_weight")}
    parts = [
        objective.name,
        settings,
        model_hash,
        str(lm.dtype),
        concept.fingerprint(),
        seed,
        torch.__version__,
        _code(),
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _code() -> str:
    """A hash of the code that targets are made by: a change of it must not find what the old code made."""
    root = Path(__file__).parents[1]
    files = sorted(path for room in ("data", "erase", "models", "training") for path in (root / room).rglob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _write(folder: Path, samples: Mapping[str, Sequence[Example]], seconds: float) -> None:
    folder.mkdir(parents=True)
    tensors: list[Tensor] = []

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value.detach().cpu().contiguous().clone())
            return {"tensor": len(tensors) - 1}
        if is_dataclass(value):
            return {"kind": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    groups = {term: [plain(sample) for sample in group] for term, group in samples.items()}
    (folder / _SAMPLES).write_text(json.dumps({"seconds": seconds, "samples": groups}))
    save_file({str(i): tensor for i, tensor in enumerate(tensors)}, folder / _TENSORS)


def _read(folder: Path) -> tuple[dict[str, list[Example]], float]:
    found = json.loads((folder / _SAMPLES).read_text())
    tensors = load_file(folder / _TENSORS)

    def whole(value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return tensors[str(value["tensor"])]
        if isinstance(value, dict):
            return KINDS[value["kind"]](**{name: whole(v) for name, v in value.items() if name != "kind"})
        return tuple(map(whole, value)) if isinstance(value, list) else value

    return {term: [whole(sample) for sample in group] for term, group in found["samples"].items()}, found["seconds"]

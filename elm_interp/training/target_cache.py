"""Prepared samples on disk, so that a sweep over rank, layers, dropout or loss weights runs the frozen model once.

They are stored under a hash of everything that they depend on: the model and its dtype, the concept, the seed, the code
that made them, and the method's settings. Settings that the method names in `not_in_targets` are left out, and of a
loss weight only whether it is 0 counts.

    samples, seconds = prepared(lm, objective, concept, model_hash="…", seed=0)

The folder is `targets` in the cache (see `models.loading.cache_folder`); it may be deleted at any time.
"""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elm_interp.data import Concept, Mixture
from elm_interp.errors import not_finite
from elm_interp.files import hash_of, read_json
from elm_interp.models import HookedLM
from elm_interp.models.loading import cache_folder, cached_folder, is_whole
from elm_interp.registry import SAMPLE_KINDS
from elm_interp.training.objective import Example, Objective
from elm_interp.training.sampling import of_each

_SAMPLES, _TENSORS = "samples.json", "tensors.safetensors"


def prepared(
    lm: HookedLM, objective: Objective, concept: Concept, *, model_hash: str, seed: int, progress: bool = False
) -> tuple[Mapping[str, Sequence[Example]], float]:
    """What `objective.prepare` returns, from the cache if it is there, and the seconds that making it took.

    Args:
        lm: the model; only its frozen base matters.
        objective: the method.
        concept: what to erase; each part of a mixture is cached by itself.
        model_hash: identifies the weights, see `models.loading.model_hash`.
        seed: of generated text and drawn prompts.
        progress: show bars.

    Raises:
        NotFiniteError: a target is NaN or infinite; the message names its sample.
    """
    if isinstance(concept, Mixture):
        each = {
            part.name: prepared(lm, objective, part, model_hash=model_hash, seed=seed, progress=progress)
            for part in concept.parts
        }
        return of_each(concept, lambda part: each[part.name][0]), sum(seconds for _, seconds in each.values())
    code = _code(type(objective))
    folder = cache_folder() / "targets" / _key(lm, objective, concept, model_hash, seed, code)
    if code and is_whole(folder):
        return _read(folder)
    began = time.perf_counter()
    samples = objective.prepare(lm, concept, seed=seed, progress=progress)
    seconds = time.perf_counter() - began
    for sample in (sample for pool in samples.values() for sample in pool):
        # minus infinity is the log-probability of what a target rules out
        if any(bool((tensor.isnan() | tensor.isposinf()).any()) for tensor in _tensors(sample)):
            raise not_finite(f"the target of sample {sample.id!r}", lm.dtype)
    if code and all(_declared(type(sample)) for pool in samples.values() for sample in pool):
        try:
            cached_folder(folder, lambda half: _write(half, samples, seconds))
        except (OSError, SafetensorError) as error:  # read-only or full; the targets are here all the same
            warnings.warn(
                f"the targets could not be kept in {folder.parent} ({error}); the next run makes them again. Set "
                "ELM_INTERP_CACHE to a folder with room.",
                stacklevel=2,
            )
    return samples, seconds


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in a sample of any kind."""
    if isinstance(value, Tensor):
        yield from [value] if value.is_floating_point() else []
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from _tensors(getattr(value, one.name))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _declared(kind: type) -> bool:
    return kind.__name__ in SAMPLE_KINDS and SAMPLE_KINDS[kind.__name__] is kind


def _key(lm: HookedLM, objective: Objective, concept: Concept, model_hash: str, seed: int, code: str) -> str:
    settings = {name: value for name, value in asdict(objective).items() if name not in objective.not_in_targets}
    settings |= {name: bool(value) for name, value in settings.items() if name.endswith("_weight")}
    parts = [objective.name, settings, model_hash, str(lm.dtype), concept.fingerprint(), seed, torch.__version__, code]
    return hash_of(parts, 24)


def _code(method: type[Objective]) -> str:
    """A hash of the code that makes samples and its texts; "" for a method without a file (notebooks), not cached."""
    root = Path(__file__).parents[1]
    own = [sys.modules[kind.__module__] for kind in method.__mro__ if issubclass(kind, Objective)]
    if not all(getattr(module, "__file__", None) for module in own):
        return ""
    files = {path for room in ("data", "erase", "models", "training") for path in (root / room).rglob("*.py")}
    files |= {Path(str(module.__file__)) for module in own} | {*(root / "erase").glob("*.json")}
    return sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


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

    pools = {name: [plain(sample) for sample in pool] for name, pool in samples.items()}
    (folder / _SAMPLES).write_text(json.dumps({"seconds": seconds, "samples": pools}), encoding="utf-8")
    save_file({str(i): tensor for i, tensor in enumerate(tensors)}, folder / _TENSORS)


def _read(folder: Path) -> tuple[dict[str, list[Example]], float]:
    found = read_json(folder / _SAMPLES)
    tensors = load_file(folder / _TENSORS)

    def whole(value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return tensors[str(value["tensor"])]
        if isinstance(value, dict):
            return SAMPLE_KINDS[value["kind"]](**{name: whole(v) for name, v in value.items() if name != "kind"})
        return tuple(map(whole, value)) if isinstance(value, list) else value

    return {name: [whole(sample) for sample in pool] for name, pool in found["samples"].items()}, found["seconds"]

"""Checkpoints that survive a crash: written aside, hashed, renamed into place, their marker written last.

checkpoints/checkpoint-000040/
  adapter_config.json, adapter_model.safetensors     the adapter, as peft files
  state.safetensors                                  optimiser moments, random states: what a resume needs
  meta.json                                          step, losses, the hash of every file
  COMPLETE                                           the marker: the hash of meta.json
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MARKER, META, STATE = "COMPLETE", "meta.json", "state.safetensors"


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    step: int
    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded beside the weights."""
        return json.loads((self.path / META).read_text())

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resume needs."""
        return load_file(self.path / STATE)


def write_checkpoint(
    root: Path, step: int, save_adapter: Callable[[Path], None], state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Checkpoint:
    """Write the checkpoint of a step; a crash at any moment leaves either all of it or nothing that `list_checkpoints` lists."""
    final = root / f"checkpoint-{step:06d}"
    half = root / f".{final.name}.half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    save_adapter(half)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, half / STATE)
    files = {path.name: _sha256(path) for path in sorted(half.iterdir())}
    (half / META).write_text(json.dumps({"step": step, **meta, "files": files}, indent=1))
    for path in half.iterdir():
        _sync(path)
    (half / MARKER).write_text(_sha256(half / META))
    _sync(half / MARKER)
    _sync(half)
    if final.exists():
        shutil.rmtree(final)
    os.replace(half, final)
    _sync(root)
    return Checkpoint(step, final)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Every checkpoint that is complete, by step; damaged ones are left out (see `damage`)."""
    found = [
        Checkpoint(int(path.name.rpartition("-")[2]), path)
        for path in root.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    return sorted(c for c in found if not damage(c.path))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None where every file is there with its hash."""
    if not (path / MARKER).is_file():
        return f"{path.name} has no {MARKER} marker: its writing was interrupted"
    if not (path / META).is_file():
        return f"{path.name}/{META} is missing"
    if (path / MARKER).read_bytes() != _sha256(path / META).encode():
        return f"{path.name}/{META} or {MARKER} is damaged: the hash of the one is not what the other says"
    files = json.loads((path / META).read_text())["files"]
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{path.name}/{name} is missing"
        if _sha256(path / name) != digest:
            return f"{path.name}/{name} is damaged: its hash is not the recorded one"
    return None


def set_damaged_aside(root: Path) -> list[str]:
    """Rename damaged checkpoints to `damaged-…`, so that a resume takes the newest whole one; returns what was wrong."""
    found = []
    for path in sorted(root.glob("checkpoint-*")):
        problem = damage(path)
        if problem:
            target = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
            found.append(f"{problem}; set aside as {target.name}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

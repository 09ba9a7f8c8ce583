"""Checkpoints that survive a crash: each is written under another name, hashed, marked as complete and then renamed.

checkpoints/checkpoint-000040/
  adapter_config.json, adapter_model.safetensors     the adapter, as peft files
  state.safetensors                                  optimiser moments and random states, for a resume
  meta.json                                          step, losses, the hash of every file
  COMPLETE                                           the marker: the hash of meta.json
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from elm_interp.files import file_hash, read_json

MARKER, META, STATE = "COMPLETE", "meta.json", "state.safetensors"


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    step: int
    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded beside the weights."""
        found: dict[str, Any] = read_json(self.path / META)
        return found

    def state(self) -> dict[str, Tensor]:
        """Optimiser moments and random states."""
        return load_file(self.path / STATE)


def write_checkpoint(
    root: Path, step: int, save_adapter: Callable[[Path], None], state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Checkpoint:
    """Write the checkpoint of a step; after a crash `list_checkpoints` finds all of it or nothing.

    Args:
        root: folder of all checkpoints.
        step: its number.
        save_adapter: writes the adapter's files into a folder.
        state: tensors for a resume.
        meta: plain data to record beside them.
    """
    final = root / f"checkpoint-{step:06d}"
    half = root / f".{final.name}.half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    save_adapter(half)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, half / STATE)
    files = {path.name: file_hash(path) for path in sorted(half.iterdir())}
    (half / META).write_text(json.dumps({"step": step, **meta, "files": files}, indent=1), encoding="utf-8")
    for path in half.iterdir():
        _sync(path)
    (half / MARKER).write_text(file_hash(half / META), encoding="utf-8")
    _sync(half / MARKER)
    _sync(half)
    if final.exists():
        shutil.rmtree(final)
    os.replace(half, final)
    _sync(root)
    return Checkpoint(step, final)


def list_checkpoints(root: str | Path) -> list[Checkpoint]:
    """Every complete checkpoint, by step; damaged ones are left out (see `damage`)."""
    found = [
        Checkpoint(int(path.name.rpartition("-")[2]), path)
        for path in Path(root).glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    return sorted(c for c in found if not damage(c.path))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if every file is there and has its recorded hash."""
    if not (path / MARKER).is_file():
        return f"{path.name} has no {MARKER} marker: its writing was interrupted"
    if not (path / META).is_file():
        return f"{path.name}/{META} is missing"
    if (path / MARKER).read_bytes() != file_hash(path / META).encode():
        return f"{path.name}/{META} or {MARKER} is damaged: the marker is not the hash of {META}"
    files = read_json(path / META)["files"]
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{path.name}/{name} is missing"
        if file_hash(path / name) != digest:
            return f"{path.name}/{name} is damaged: its hash is not the recorded one"
    return None


def set_damaged_aside(root: Path) -> list[str]:
    """Rename damaged checkpoints to `damaged-…`, so that a resume skips them; returns what was wrong."""
    found = []
    for path in sorted(root.glob("checkpoint-*")):
        problem = damage(path)
        if problem:
            target = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
            found.append(f"{problem}; set aside as {target.name}")
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""What a run folder says of itself: its JSON objects, and versions, machine, revision and command for its manifest."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from elm_interp.errors import RunFolderError
from elm_interp.files import read_json

PACKAGES = ("elm-interp", "torch", "transformers", "peft", "accelerate", "numpy", "pandas", "scikit-learn")


def surroundings() -> dict[str, Any]:
    """Date, versions, machine, git revision and command."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "git": _git_revision(),
        # the program's name alone: a manifest may be published, the user's folders need not be
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def read_object(path: Path, lost: str) -> dict[str, Any]:
    """The object in a JSON file of a run folder.

    Args:
        path: the file.
        lost: what would be lost with it, for the message.

    Raises:
        RunFolderError: the file is broken; the message says what may be done.
    """
    try:
        found: dict[str, Any] = read_json(path, dict)
    except ValueError as error:
        raise RunFolderError(f"{error} If you delete it, {lost}.") from error
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    try:
        said = subprocess.run(command, cwd=here, capture_output=True, timeout=10, check=True)
        return said.stdout.decode("utf-8", "replace").strip()
    except (OSError, subprocess.SubprocessError):
        return None

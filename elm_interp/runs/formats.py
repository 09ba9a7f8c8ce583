"""Formats of the run folder: config.json of an older format is read as the format of today.

Format 1 had no format number; the adapter's settings stood among the objective's, batch sizes of ELM's own pools in the
training, and an adopted run said in adopted.json which method had made it. Its concept hash came from a Python repr and
cannot be compared.

In formats 1 and 2, ELM could train on answers to the concept's questions, and its fluency texts began with questions.
Such runs open and report; they cannot go on, since elm_interp no longer does that (`retired`).

    raw = read_config(folder)     # plain data for `RunConfig.from_dict`
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from elm_interp.errors import RunFolderError
from elm_interp.files import read_json
from elm_interp.training import Adapter

FORMAT = 3
"""Format that this version writes."""
OFF = {
    "eta_start": None,
    "temperature": 1.0,
    "cut": False,
    "hard_labels": False,
    "prompts": "concept",
    "fluency_eta": None,
}
"""Options of ELM in format 1 that only the released code uses, as they were by default."""
GONE = ("answers_weight", "answer_names", "answers_batch", "pairs")
"""Settings up to format 2 for training on answers to questions: of ELM, and "pairs" of RepNoise."""


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run folder of any format, as plain data of today's.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is broken.
        RunFolderError: it holds no settings, or comes from a later version.
    """
    raw = _read(folder)
    number = raw.get("format", 1)
    raw = _from_format_1(raw, folder) if number == 1 else raw
    if number < FORMAT and isinstance(raw.get("objective"), dict):
        raw = {**raw, "objective": {k: v for k, v in raw["objective"].items() if k not in GONE}}
    return raw


def retired(folder: Path) -> str:
    """Why a run's training cannot go on though it can be read, in words; "" if it can."""
    if not (folder / "config.json").is_file():  # another process is about to write it
        return ""
    raw = _read(folder)
    objective = raw.get("objective")
    if raw.get("format", 1) == FORMAT or not isinstance(objective, dict):
        return ""
    method, answers = raw.get("method", "elm"), "trained on answers to the concept's questions"
    asked = {}
    if method in ("elm", "elm-released"):
        fluency = "began each second of its fluency texts with a question in the template of the evaluation"
        asked = {"answers_weight": answers, "fluency_weight": fluency}
    elif method == "repnoise" and objective.get("pairs", "questions") != "passages":
        asked = {"pairs": answers}
    reasons = [f"{how} ({name} {objective.get(name)})" for name, how in asked.items() if objective.get(name)]
    if not reasons:
        return ""
    return (
        f"{folder} {' and '.join(reasons)}, and so on what is measured; elm_interp no longer does this. The run can be "
        "opened, measured and reported; to train, choose another folder."
    )


def _read(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise RunFolderError(f"{folder}/config.json holds {type(raw).__name__}, expected an object of settings.")
    number = raw.get("format", 1)
    if number not in range(1, FORMAT + 1):
        raise RunFolderError(
            f"{folder} has format {number}; this version of elm_interp reads 1 to {FORMAT}. Update elm_interp."
        )
    return raw


def _from_format_1(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    if not all(isinstance(raw.get(part, {}), dict) for part in ("objective", "training")):
        return raw  # `RunConfig.from_dict` says what is wrong
    objective, training = dict(raw.get("objective", {})), dict(raw.get("training", {}))
    adapter = {f.name: objective.pop(f.name) for f in fields(Adapter) if f.name in objective}
    sizes = {name: training.pop(name) for name in ("fluency_batch", "answers_batch") if name in training}
    if (folder / "adopted.json").is_file():
        made_by = str(read_json(folder / "adopted.json", dict).get("method", "unknown"))
        return {**raw, "method": "adopted", "objective": {"made_by": made_by, "adapter": adapter}, "training": training}
    method = str(raw.get("method", "elm"))
    if method == "elm":
        objective |= sizes
        method = _elm_of(objective)
    return {**raw, "method": method, "objective": {**objective, "adapter": adapter}, "training": training}


def _elm_of(objective: dict[str, Any]) -> str:
    """Name of the ELM class that settings of format 1 need; options of the released code that were off are dropped."""
    options = {name: value for name, value in objective.items() if name in OFF}
    if any(value != OFF[name] for name, value in options.items()):
        return "elm-released"
    for name in options:
        objective.pop(name)
    return "elm"

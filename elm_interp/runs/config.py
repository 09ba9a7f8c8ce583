"""What a run is asked to do, as plain data and back, with everything that cannot work named at once.

config = RunConfig.preset("smollm2-135m", concept="my_concept/")
config.check()      # reads the concept and the model's depth, loads no model
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from elm_interp.data import Concept, load_concept
from elm_interp.erase.elm import ELM
from elm_interp.erase.methods import METHODS, Method, preset
from elm_interp.errors import ConfigError, raise_all, unknown
from elm_interp.models.loading import model_depth, resolve_device, resolve_dtype
from elm_interp.training.trainer import Training


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is asked to do."""

    model: str = "smollm2-135m"
    """An alias, a folder or a hub id."""
    concept: str = "harry-potter"
    """A pack or a folder of JSON Lines files; several as a=5+b=1, which are trained on in that ratio."""
    objective: Method = field(default_factory=lambda: ELM.preset("smollm2-135m"))
    """The method and its hyper-parameters."""
    training: Training = field(default_factory=lambda: Training.preset("smollm2-135m"))
    """Steps, batches, learning rate."""
    seed: int = 0
    """Of the adapter's start, the order of samples and the text that is written."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the base's weights."""
    device: str = "auto"
    """Where to run."""

    @classmethod
    def preset(cls, name: str, method: str = "elm", **values: Any) -> "RunConfig":
        """The method's and the training's preset of one name.

        Raises:
            UnknownNameError: no such method or preset; with the closest.
        """
        objective, training = preset(method, name)
        return cls(objective=objective, training=training, **values)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "RunConfig":
        """Read back what `to_dict` gave.

        Raises:
            ConfigError: unknown settings, all listed.
        """
        raw = dict(raw)
        method = raw.pop("method", "elm")
        if method not in METHODS:
            raise ConfigError(f"the configuration cannot be used: {unknown('method', str(method), METHODS)}")
        problems: list[str] = []
        parts: dict[str, Any] = {}
        kinds: tuple[tuple[str, Any], ...] = (("objective", METHODS[method]), ("training", Training))
        for name, kind in kinds:
            given = raw.pop(name, {})
            if not isinstance(given, dict):
                problems.append(f"{name} is {type(given).__name__}, expected an object of settings")
                continue
            known = {f.name for f in fields(kind)}
            problems += _wrong_types(kind, given, f"{name}.")
            problems += [f"unknown {name} setting {key!r}" for key in given if key not in known]
            parts[name] = kind(
                **{key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in known}
            )
        known = {f.name for f in fields(cls)}
        problems += [f"unknown setting {key!r}" for key in raw if key not in known]
        problems += _wrong_types(cls, raw)
        raise_all(problems, ConfigError, "the configuration cannot be used:")
        return cls(**raw, **parts)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for config.json."""
        return json.loads(json.dumps({"method": self.objective.name, **asdict(self)}))

    def check(self) -> Concept:
        """Check everything that can be checked before a model is loaded; returns the concept.

        Raises:
            ConfigError: lists every problem.
        """
        problems: list[str] = []
        depth, concept = None, None
        try:
            depth = model_depth(self.model)
        except ValueError as error:
            problems.append(str(error))
        try:
            concept = load_concept(self.concept)
        except ValueError as error:
            problems.append(str(error).replace("\n", "\n  "))
        problems += self.objective.problems(depth) + self.training.problems()
        if concept is not None:
            problems += [
                f"the concept has no {kind} passage in its training part"
                for kind in ("forget", "retain")
                if not concept.passages(kind)
            ]
        try:
            resolve_dtype(self.dtype, resolve_device(self.device))
        except ValueError as error:
            problems.append(str(error))
        if not 0 <= self.seed < 2**31:
            problems.append(f"seed is {self.seed}; expected 0 to {2**31 - 1}")
        raise_all(problems, ConfigError, "these settings cannot work:")
        return concept  # type: ignore[return-value]


def differences(known: dict, given: dict, path: str = "") -> list[str]:
    """Settings that two configurations, as plain data, do not share, in words."""
    found: list[str] = []
    for key in sorted(known.keys() | given.keys()):
        a, b = known.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: the run has {a!r}, now given {b!r}")
    return found


def _wrong_types(kind: Any, given: dict, prefix: str = "") -> list[str]:
    """Settings of another kind than their default: words for numbers, a number for a list."""
    found = []
    for f in fields(kind):
        value, default = given.get(f.name, f.default), f.default
        if isinstance(default, bool | int | float | str | tuple) and value is not None:
            expected = (
                (int, float)
                if isinstance(default, float)
                else (list, tuple)
                if isinstance(default, tuple)
                else type(default)
            )
            if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
                found.append(f"{prefix}{f.name} is {value!r}, expected {type(default).__name__}")
    return found

"""What a run is asked to do, as plain data and back; everything that cannot work is named at once.

config = RunConfig.preset("smollm2-135m", concept="my_concept/")
config.check()      # reads the concept and the model's depth, loads no model
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from elm_interp.data import Concept, load_concept
from elm_interp.errors import ConfigError, raise_all
from elm_interp.models.loading import model_depth, resolve_device, resolve_dtype
from elm_interp.organisms.world import WorldConfig
from elm_interp.registry import METHODS
from elm_interp.training import Objective, Training

OWN_CONCEPT = "run:concept"
"""Name of a concept that was given in memory and is kept in the run folder, in `concept/`."""
DEFAULT_MODEL, DEFAULT_CONCEPT, DEFAULT_METHOD = "planted:original", "planted:marsh-animals", "elm"
NATURAL = ("smollm2-135m", "harry-potter")
"""The default model and concept that nothing was planted in; the model's name is also that of its preset."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is asked to do."""

    model: str = DEFAULT_MODEL
    """An alias, a folder or a hub id."""
    concept: str = DEFAULT_CONCEPT
    """A pack or a folder of JSON Lines files; several as a=5+b=1 are trained in that ratio."""
    objective: Objective = field(default_factory=lambda: METHODS[DEFAULT_METHOD].preset("planted"))
    """The method and its hyper-parameters."""
    training: Training = field(default_factory=lambda: METHODS[DEFAULT_METHOD].training_preset("planted"))
    """Steps, batches, learning rate."""
    seed: int = 0
    """Seed of the adapter's initial weights, the order of samples and the generated text."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the base's weights."""
    device: str = "auto"
    """Device to run on."""
    thorough: bool = False
    """Measure everything, and not what fits into minutes on a CPU; see `runs.quick`."""

    @classmethod
    def preset(cls, name: str | None = None, method: str = DEFAULT_METHOD, **values: Any) -> "RunConfig":
        """The presets of a method's objective and of its training.

        Args:
            name: of the preset; None takes the one made for `values["model"]`, see `preset_for`.
            method: name of the method.
            values: other fields, or settings of the objective, its adapter or the training by their own names
                (`eta=10, rank=8, steps=60`). Of model and concept, one that is missing is chosen to go with the other.

        Raises:
            UnknownNameError: no such method, preset or setting; with the closest.
        """
        kind = METHODS[method]
        values |= dict(zip(("model", "concept"), usual(values.get("model"), values.get("concept")), strict=True))
        name = preset_for(values["model"], method) if name is None else name
        own = {f.name for f in fields(cls)}
        config = cls(
            objective=kind.preset(name),
            training=kind.training_preset(name),
            **{key: value for key, value in values.items() if key in own},
        )
        return config.changed({key: value for key, value in values.items() if key not in own})

    def changed(self, settings: Mapping[str, Any]) -> "RunConfig":
        """The configuration with settings of its objective, adapter or training replaced, by their own names.

        Raises:
            UnknownNameError: a setting that none of the three has; with the closest.
        """
        training = {f.name for f in fields(self.training)}
        own = {name: value for name, value in settings.items() if name in training}
        rest = {name: value for name, value in settings.items() if name not in training}
        return replace(self, objective=self.objective.with_settings(**rest), training=replace(self.training, **own))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "RunConfig":
        """Read back what `to_dict` gave.

        Raises:
            ConfigError: unknown settings and settings of another type, all listed.
        """
        raw = dict(raw)
        raw.pop("format", None)
        problems: list[str] = []
        try:
            kind = METHODS[str(raw.pop("method", DEFAULT_METHOD))]
        except ValueError as error:
            raise ConfigError(f"the configuration cannot be used: {error}") from error
        parts = {
            name: _read(part, raw.pop(name, {}), f"{name}.", problems)
            for name, part in (("objective", kind), ("training", Training))
        }
        config: RunConfig = _read(cls, raw, "", problems)
        raise_all(problems, ConfigError, "the configuration cannot be used:")
        return replace(config, **parts)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for config.json."""
        plain: dict[str, Any] = json.loads(json.dumps({"method": self.objective.name, **asdict(self)}))
        return plain

    def own_concept(self, folder: Path) -> Concept | None:
        """The concept kept in a run folder, where the run has one of its own."""
        return load_concept(folder / "concept") if self.concept == OWN_CONCEPT and folder.is_dir() else None

    def check(self, *, n_layers: int | None = None, concept: Concept | None = None) -> Concept:
        """Check everything that can be checked before a model is loaded.

        Args:
            n_layers: depth of a model that is loaded already; by default it is read from the model's files.
            concept: what to erase, if it is in memory already; by default it is loaded by name.

        Returns:
            The concept.

        Raises:
            ConfigError: lists every problem.
        """
        problems: list[str] = [] if isinstance(self.concept, str) else [_not_a_name(self.concept)]
        if n_layers is None:
            n_layers = _attempt(problems, model_depth, self.model)
        if concept is None and not problems:
            concept = _attempt(problems, load_concept, self.concept)
        mistyped = _wrong_types(self.objective) + _wrong_types(self.training)
        problems += mistyped or [*self.objective.problems(n_layers), *self.training.problems()]
        if concept is not None:
            problems += [
                f"the concept has no {kind} passage in its training part"
                for kind in ("forget", "retain")
                if not concept.passages(kind)
            ]
        _attempt(problems, lambda: resolve_dtype(self.dtype, resolve_device(self.device)))
        if not 0 <= self.seed < 2**31:
            problems.append(f"seed is {self.seed}; expected 0 to {2**31 - 1}")
        raise_all(problems, ConfigError, "these settings cannot work:")
        return concept  # type: ignore[return-value]


def usual(model: str | None = None, concept: str | None = None) -> tuple[str, str]:
    """A model and a concept; of one that is missing, that which goes with the other.

    usual() is ("planted:original", "planted:marsh-animals"), usual(concept="astronomy") is ("smollm2-135m",
    "astronomy"), and usual("organism:original@1") is ("organism:original@1", "organism:spellcraft@1").
    """
    given = str(model or concept or DEFAULT_MODEL)  # a folder may be a Path
    source, seed = given.partition(":")[0], f"@{given.partition('@')[2]}" if "@" in given else ""
    pairs = {
        "planted": (DEFAULT_MODEL, DEFAULT_CONCEPT),
        "organism": (f"organism:original{seed}", f"organism:{WorldConfig().erased}{seed}"),
    }
    ours = pairs.get(source if ":" in given else "", NATURAL)
    return model or ours[0], concept or ours[1]


def preset_for(model: str, method: str) -> str:
    """The preset of a method that suits a model: `organism` or `planted` for these, else that of the default model.

    A method without one for planted models takes that of the default model; without that, its first preset.
    """
    known = list(METHODS[method].presets)
    source = str(model).partition(":")[0]
    wanted = [NATURAL[0]] if source not in ("organism", "planted") else [source]
    wanted += [NATURAL[0]] if source == "planted" else []
    return next((name for name in wanted if name in known), known[0])


def differences(known: Mapping[str, Any], given: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings in which two configurations, as plain data, differ; one sentence each."""
    found: list[str] = []
    for key in sorted(known.keys() | given.keys()):
        a, b = known.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: the run has {a!r}, now given {b!r}")
    return found


def _attempt(problems: list[str], call: Any, *args: Any) -> Any:
    """What the call returns; its ValueError goes to the problems."""
    try:
        return call(*args)
    except ValueError as error:
        problems.append(str(error).replace("\n", "\n  "))
        return None


def _not_a_name(concept: Any) -> str:
    return (
        f"concept is {type(concept).__name__}, expected the name of a pack or folder; "
        "erase a concept from memory by erase_concept(lm, concept, out=...)"
    )


def _read(kind: Any, given: Any, prefix: str, problems: list[str]) -> Any:
    """A dataclass from plain data; unknown settings and wrong types go to the problems."""
    if not isinstance(given, dict):
        problems.append(f"{prefix.rstrip('.')} is {type(given).__name__}, expected an object of settings")
        return None
    known = {f.name: f for f in fields(kind)}
    problems += [f"unknown {prefix.replace('.', ' ')}setting {key!r}" for key in given if key not in known]
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            continue
        if is_dataclass(types.get(name)):
            values[name] = _read(types[name], value, f"{prefix}{name}.", problems)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
            problems += _wrong_type(f"{prefix}{name}", value, known[name].default)
    return None if problems else kind(**values)


def _wrong_types(settings: Any) -> list[str]:
    """What is wrong with the types of a dataclass's settings, and of the settings inside them."""
    found: list[str] = []
    for one in fields(settings):
        value = getattr(settings, one.name)
        found += _wrong_types(value) if is_dataclass(value) else _wrong_type(one.name, value, one.default)
    return found


def _wrong_type(name: str, value: Any, default: Any) -> list[str]:
    """What is wrong with a value whose default has another type: words for numbers, a number for a list."""
    if value is None or not isinstance(default, bool | int | float | str | tuple):
        return []
    expected: Any = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
    if isinstance(value, expected) and (isinstance(default, bool) or not isinstance(value, bool)):
        return []
    return [f"{name} is {value!r}, expected {type(default).__name__}"]

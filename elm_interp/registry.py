"""The registry: what is declared where it is defined, and found by whoever asks.

A method, metric, figure, probe task, site, back end, attack or model source is declared by a decorator in its own file.
There is no other list of names. A look-up that misses, or a listing, first imports every module of elm_interp and the
plug-ins of other distributions (entry-point group `elm_interp.plugins`).

    METRICS = Registry("metric")
    METRICS.add("innocence.four_choice_pmi", function)
    METRICS["innocence.four_choice_pmi"]
    list(METRICS)                                # every name, in order of declaration
"""

import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, Generic, TypeVar

from elm_interp.errors import ConfigError, UnknownModelError, UnknownNameError, UnknownSiteError, unknown

T = TypeVar("T")
PLUGINS = "elm_interp.plugins"
"""Entry-point group: each entry names a module, which declares when it is imported."""
_lock = RLock()
_done: list[bool] = []
_registries: "list[Registry[Any]]" = []


class Registry(Mapping[str, T], Generic[T]):
    """Declared things of one kind, by name.

    Args:
        kind: what one is called in messages, such as "metric".
        error: raised for a name that does not exist.
    """

    def __init__(self, kind: str, error: type[UnknownNameError] = UnknownNameError) -> None:
        self.kind, self._error = kind, error
        self._found: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}
        _registries.append(self)

    def add(self, name: str, thing: T, *, origin: Any = None) -> None:
        """Declare a thing under a name.

        Args:
            name: unique among things of this kind.
            thing: what is found under the name.
            origin: the class or function that was decorated, if it is not the thing itself. The same origin may be
                declared again, as when its module is reloaded.

        Raises:
            ConfigError: the name is taken.
        """
        where = _where(thing if origin is None else origin)
        known = self._origins.get(name)
        if known is not None and known != where:
            raise ConfigError(
                f"{self.kind} {name!r} of {where[0]} is declared already, by {known[0]}; choose another name."
            )
        self._found[name], self._origins[name] = thing, where

    def __getitem__(self, name: str) -> T:
        """The thing of this name.

        Raises:
            UnknownNameError: there is none; the message gives the closest name.
        """
        if name not in self._found:
            discover()
        if name not in self._found:
            raise unknown(self.kind, str(name), self._found, self._error)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._found:
            discover()
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        discover()
        return iter(list(self._found))

    def __len__(self) -> int:
        discover()
        return len(self._found)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"


def discover() -> None:
    """Import every module of elm_interp and every plug-in, once, so that all declarations are made.

    A plug-in that cannot be imported is left out with a warning, with all that it declared before it failed.
    """
    with _lock:
        if _done:
            return
        _done.append(True)  # a module that asks while it is imported sees what is there
        try:
            for module in pkgutil.walk_packages(import_module("elm_interp").__path__, "elm_interp."):
                if module.name not in ("elm_interp.cli", "elm_interp.__main__"):
                    import_module(module.name)
        except BaseException:
            _done.clear()
            raise
        for entry in entry_points(group=PLUGINS):
            before = [(one, dict(one._found), dict(one._origins)) for one in _registries]
            try:
                entry.load()
            except Exception as error:
                for one, found, origins in before:
                    one._found, one._origins = found, origins
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(f"plug-in {entry.name} ({entry.value}) was left out: {reason}", stacklevel=2)


def _where(thing: Any) -> tuple[str, str]:
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))


METHODS: Registry[Any] = Registry("method")
"""Classes of objectives; see `elm_interp.training.objective.method`."""
METRICS: Registry[Any] = Registry("metric")
"""See `elm_interp.metrics.metric`."""
PROBE_TASKS: Registry[Any] = Registry("probe task")
"""See `elm_interp.probes.tasks.probe_task`."""
FIGURES: Registry[Any] = Registry("figure")
"""See `elm_interp.plots.figures.figure`."""
ATTACKS: Registry[Any] = Registry("attack")
"""See `elm_interp.attack.contract.attack`."""
SITES: Registry[Any] = Registry("site", UnknownSiteError)
"""See `elm_interp.models.sites.site`."""
BACKENDS: Registry[Any] = Registry("back end")
"""See `elm_interp.models.backends.contract.backend`."""
SAMPLE_KINDS: Registry[type] = Registry("kind of sample")
"""Dataclasses that the target cache can write; see `elm_interp.training.objective.sample_kind`."""
ORGANISMS: Registry[Any] = Registry("organism", UnknownModelError)
"""See `elm_interp.organisms.library.organism_kind`."""
MODEL_SOURCES: Registry[Any] = Registry("model source", UnknownModelError)
"""Prefix of a model's name -> function from what follows the colon to a folder."""
CONCEPT_SOURCES: Registry[Any] = Registry("concept source")
"""Prefix of a concept's name -> function from what follows the colon to a `Concept`."""

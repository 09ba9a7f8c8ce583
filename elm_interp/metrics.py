"""The one shape of every measurement: a registered function from a Subject to tidy rows.

    @metric("innocence.two_choice_pmi", better="down", chance=0.5)
    def two_choice_pmi(subject: Subject) -> pd.DataFrame | list[dict]: ...

    table = measure(subject, ["innocence.*"])

A Subject is one model in one state with its concept: the base, or a run at step 240. Progression is metrics × checkpoints, a
sweep is metrics × cells; neither knows any metric by name, so a new metric is one function and appears everywhere.
"""

import fnmatch
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.store import ActivationStore
from elm_interp.data import Concept, texts
from elm_interp.errors import ConfigError, unknown
from elm_interp.models import HookedLM
from elm_interp.results import frame, stack

T = TypeVar("T")
Rows = pd.DataFrame | Sequence[Mapping[str, Any]]


@dataclass
class Subject:
    """One model in one state, with its concept and what metrics share."""

    lm: HookedLM
    concept: Concept
    adapter: str | Path | None = None
    """The adapter folder of this state; None is the base."""
    method: str = "base"
    step: int | None = None
    seed: int = 0
    base: "Subject" = None  # type: ignore[assignment]
    """The untouched model, on the same weights or, where what was erased is a model of its own, on others; the base is its
    own base."""
    judge: HookedLM | None = None
    """An independent model that scores generated text, where one is given."""
    store: ActivationStore | None = None
    """Activations that were collected before; what is not there is computed."""
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.base is None:
            is_base = self.adapter is None
            self.base = (
                self if is_base else Subject(self.lm, self.concept, judge=self.judge, seed=self.seed, store=self.store)
            )

    @property
    def is_base(self) -> bool:
        """Whether this is the untouched model, and so has nothing to be compared with."""
        return self.base is self

    @contextmanager
    def on(self) -> Iterator[HookedLM]:
        """The model in this state; whatever was on before comes back after."""
        with self.lm.adapter(self.adapter):
            yield self.lm

    def at(self, adapter: str | Path | None, *, method: str = "base", step: int | None = None) -> "Subject":
        """The same model and concept in another state; the base's shared results are kept."""
        if adapter is None:
            return self.base
        return Subject(self.lm, self.concept, adapter, method, step, self.seed, self.base, self.judge, self.store)

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed once for this state, so that metrics share scores, texts and activations."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def activations(
        self,
        text: str,
        *,
        split: str = "held_out",
        site: str = "resid_post",
        positions: str | int = "mean",
        skip: int = 0,
    ) -> Float[Tensor, "example layer d_model"]:
        """Activations at every layer on passages of the concept ("forget" or "retain"), float32, on the CPU.

        `skip` leaves out each text's first tokens (the first draws attention from everywhere and has a huge norm).
        """
        from elm_interp.activations.collect import collect_texts

        def compute() -> Tensor:
            with self.on() as lm:
                return collect_texts(
                    lm, texts(self.concept.passages(text, split)), site=site, positions=positions, skip=skip
                )

        return self.memo(("activations", text, split, site, str(positions), skip), compute)


@dataclass(frozen=True)
class Metric:
    """A registered measurement."""

    name: str
    compute: Callable[[Subject], Rows]
    better: Literal["up", "down", "neither"]
    """What is good for the eraser."""
    chance: float | None
    """The level of knowing nothing."""
    unit: str
    protocol: str
    """How the number was made, in a few words."""
    cost: Literal["cheap", "dear"]
    """"dear" metrics write text; progression can leave them out."""
    needs_base: bool
    """Compares with the base, so it says nothing about the base itself."""
    shows: str = "describes"
    on_card: bool | None = None

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.compute.__doc__ or "").strip().splitlines()[0]


_REGISTRY: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    better: Literal["up", "down", "neither"],
    chance: float | None = None,
    unit: str = "",
    protocol: str = "",
    cost: Literal["cheap", "dear"] = "cheap",
    needs_base: bool = False,
    shows: str = "describes",
    on_card: bool | None = None,
) -> Callable[[Callable[[Subject], Rows]], Callable[[Subject], Rows]]:
    """Register a function from a Subject to rows (dicts of `results.measurements`, or a frame) under a name.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def register(function: Callable[[Subject], Rows]) -> Callable[[Subject], Rows]:
        known = _REGISTRY.get(name)
        if known and (known.compute.__module__, known.compute.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ConfigError(f"metric {name!r} is registered already, by {known.compute.__module__}.")
        _REGISTRY[name] = Metric(name, function, better, chance, unit, protocol, cost, needs_base, shows, on_card)
        return function

    return register


def metrics(patterns: Iterable[str] | str = "*") -> list[Metric]:
    """The registered metrics that match any of the patterns (shell wildcards), in order of registration.

    Raises:
        UnknownNameError: a pattern that matches nothing; with the closest name.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(_REGISTRY, pattern):
            raise unknown("metric", pattern, _REGISTRY)
    return [m for name, m in _REGISTRY.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def measure(
    subject: Subject, patterns: Iterable[str] | str = "*", *, cost: str = "dear", progress: bool = False
) -> pd.DataFrame:
    """Measure a subject: tidy rows of every metric that matches.

    Args:
        subject: the model in one state.
        patterns: metric names with shell wildcards.
        cost: "cheap" leaves out metrics that write text.
        progress: show a bar.
    """
    chosen = [
        m for m in metrics(patterns) if (cost == "dear" or m.cost == "cheap") and not (m.needs_base and subject.is_base)
    ]
    tables = []
    for m in tqdm(chosen, desc=f"measuring {subject.method}", leave=False, disable=not progress):
        table = frame(m.compute(subject))
        defaults = {
            "model": subject.lm.name, "method": subject.method, "step": subject.step, "seed": subject.seed,
            "chance": m.chance, "direction": m.better, "protocol": m.protocol,
        }  # fmt: skip
        for column, value in defaults.items():
            if value is not None:
                table[column] = table[column].fillna(value)
        tables.append(table)
    return stack(tables)

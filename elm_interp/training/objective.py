"""Objective: what a method of erasure is to the trainer. A method is one file with one subclass.

    @method("mine", presets={"paper": Preset({"strength": 2.0, "rank": 8}, training={"steps": 100, "lr": 1e-4})})
    @dataclass(frozen=True)
    class Mine(Objective):
        strength: float = 1.0

        def prepare(self, lm, concept, *, seed=0, progress=False): ...     # {"erase": [...], "retain": [...]}
        def loss(self, lm, samples): ...                                   # {"erase": tensor, "retain": tensor}

    METHODS["mine"].preset("paper", rank=4)          # the objective
    METHODS["mine"].training_preset("paper")         # its training

`prepare` computes once what depends on frozen weights alone. `loss` gives named terms for a few samples; the trainer
weights, logs and checks each. Nothing here knows of files, schedules or optimisers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.data import Concept
from elm_interp.errors import unknown
from elm_interp.models import HookedLM
from elm_interp.registry import METHODS, SAMPLE_KINDS
from elm_interp.training.adapter import Adapter
from elm_interp.training.passages import passage_counts
from elm_interp.training.settings import Training

T = TypeVar("T", bound=type)


class Example(Protocol):
    """What the trainer reads from a sample of any kind.

    A kind whose loss is a mean over fewer positions than it has tokens says how many, as `positions`.
    """

    @property
    def term(self) -> str:
        """The loss term it belongs to."""
        ...

    @property
    def id(self) -> str:
        """Where it came from, for error messages."""
        ...

    def __len__(self) -> int:
        """Number of tokens."""
        ...


def sample_kind(kind: T) -> T:
    """Class decorator: declare a dataclass that the target cache can write and read, by its fields.

    Fields hold tensors, numbers, texts, tuples of these, or other sample kinds. Samples of a kind that is not declared
    are prepared anew for each run.
    """
    SAMPLE_KINDS.add(kind.__name__, kind)
    return kind


@sample_kind
@dataclass(frozen=True)
class Sample:
    """One text to train on, with the target distribution of its next tokens."""

    term: str
    """The loss term it belongs to, such as "erase"."""
    id: str
    """The passage or prompt it came from, for error messages."""
    ids: tuple[int, ...]
    """Token ids; the target at index t is for the token after `ids[t]`."""
    start: int
    """First index with a target; earlier tokens are context only."""
    target: "TopK | Teacher"
    """Target distributions at indices start .. len(ids) - 1 (or len(ids) - 2 where the last token predicts nothing)."""

    def __post_init__(self) -> None:
        if not len(self.target) or self.start < 0 or self.start + len(self.target) > len(self.ids):
            raise ValueError(
                f"sample {self.id!r} of term {self.term!r} has {len(self.ids)} tokens and {len(self.target)} targets "
                f"from index {self.start}; expected at least one target, and none after the last token."
            )

    @property
    def positions(self) -> int:
        """Number of indices with a target."""
        return len(self.target)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def where(self) -> slice | list[int]:
        """The indices that have a target."""
        return slice(self.start, self.start + len(self.target))


@sample_kind
@dataclass(frozen=True)
class TopK:
    """A distribution at each position: k tokens one by one; the rest of the vocabulary holds what is missing to 1."""

    tokens: Int[Tensor, "pos k"]
    probs: Float[Tensor, "pos k"]
    base: Float[Tensor, "pos k"] | None = None
    """The base's probability of the same tokens, for logit matching."""

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, rows: slice) -> "TopK":
        """The distributions at some positions."""
        return TopK(self.tokens[rows], self.probs[rows], None if self.base is None else self.base[rows])

    @classmethod
    def joined(cls, parts: "Sequence[TopK]") -> "TopK":
        """The distributions of several texts, one after the other."""
        bases = [part.base for part in parts if part.base is not None]
        base = torch.cat(bases) if len(bases) == len(parts) else None
        return cls(torch.cat([part.tokens for part in parts]), torch.cat([part.probs for part in parts]), base)


@sample_kind
@dataclass(frozen=True)
class Teacher:
    """A distribution at each position, kept as the frozen model's hidden state before the unembedding: exact, small."""

    hidden: Float[Tensor, "pos d_model"]

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class Preset:
    """Named settings of an objective and of its training; what is not named keeps its default."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the objective; those of its adapter stand among them by their own names."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `Training`."""


@dataclass(frozen=True)
class Objective(ABC):
    """A method of erasure: frozen hyper-parameters, targets and losses. Subclasses are frozen dataclasses."""

    adapter: Adapter = field(default=Adapter())
    """Which weights are trained."""

    name: ClassVar[str] = ""
    """Set by `method`."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Set by `method`."""
    not_in_targets: ClassVar[frozenset[str]] = frozenset({"adapter"})
    """Settings that the prepared samples do not depend on; a change of these finds them in the cache."""
    additive: ClassVar[bool] = False
    """Whether each loss term is the mean over samples, weighted by `counts`, so that any may share a pass."""
    forget_pools: ClassVar[frozenset[str]] = frozenset({"erase"})
    """Pools whose samples train to forget."""

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return self.name

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words; `n_layers` is None while the model's depth is not known."""
        return self.adapter.problems(n_layers)

    def pools(self, training: Training) -> dict[str, int]:
        """Samples of each pool that a step takes, in the order in which they stand in the step."""
        return {"erase": training.forget_batch, "retain": training.retain_batch}

    def weights(self) -> dict[str, float]:
        """The weight of each term; a term that is not named here has weight 1."""
        return {}

    @abstractmethod
    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> Mapping[str, Sequence[Any]]:
        """The samples of every pool, with targets from the frozen base.

        Args:
            lm: the model; it is left as it was.
            concept: only its training part is read.
            seed: of whatever is drawn.
            progress: show bars.
        """

    def in_miniature(self, share: float) -> "Objective":
        """The method making this share of what it makes besides the targets of passages, for estimates of its time."""
        return self

    def tokenised(self, lm: HookedLM, concept: Concept, *, seed: int = 0) -> dict[str, Any]:
        """What tokenising the training passages cuts and leaves out, for the manifest; {} without `max_tokens`."""
        most = getattr(self, "max_tokens", None)
        return {kind: passage_counts(lm, concept.passages(kind), most) for kind in ("forget", "retain")} if most else {}

    def ask_target(self, lm: HookedLM, concept: Concept, *, progress: bool = False) -> pd.DataFrame | None:
        """What the target of training would itself answer, as tidy rows; None for a method without such a target."""
        return None

    def counts(self, sample: Any) -> float:
        """How much a sample weighs in its term's mean: its target positions, unless the mean is over something else."""
        return getattr(sample, "positions", len(sample))

    @abstractmethod
    def loss(self, lm: HookedLM, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Mean loss of each term, unweighted. All samples are of one Python class, such as `Teacher`."""

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """An objective from flat settings: the adapter's stand among the others, or under "adapter" as a mapping.

        Raises:
            UnknownNameError: a setting that does not exist; the message gives the closest.
        """
        given = settings.pop("adapter", cls.adapter)
        if isinstance(given, Mapping):
            settings, given = {**given, **settings}, cls.adapter
        own = {f.name for f in fields(cls)}
        shared = [f.name for f in fields(Adapter) if f.name not in own]
        for name in settings:
            if name not in own and name not in shared:
                raise unknown(f"setting of method {cls.name}", name, [*sorted(own), *shared])
        adapter = replace(given, **{name: settings.pop(name) for name in shared if name in settings})
        return cls(adapter=adapter, **settings)

    def with_settings(self, **changes: Any) -> Self:
        """A copy with some settings changed; names are flat, as for `from_settings`."""
        return self.from_settings(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The objective of a preset, with some settings changed; names are flat, as for `from_settings`.

        A preset of a subclass that is a method itself gives that subclass.

        Raises:
            UnknownNameError: no such preset or setting; the message gives the closest.
        """
        kind = cls._with_preset(name)
        return kind.from_settings(**kind.presets[name].settings).with_settings(**changes)

    @classmethod
    def training_preset(cls, name: str) -> Training:
        """The training of a preset.

        Raises:
            UnknownNameError: no such preset; the message gives the closest.
        """
        return Training(**cls._with_preset(name).presets[name].training)

    @classmethod
    def _with_preset(cls, name: str) -> type[Self]:
        if name in cls.presets:
            return cls
        kinds: list[type[Self]] = [kind for kind in METHODS.values() if issubclass(kind, cls)]
        for kind in kinds:
            if name in kind.presets:
                return kind
        raise unknown(
            f"preset of method {cls.name}", name, dict.fromkeys(n for kind in (cls, *kinds) for n in kind.presets)
        )


def method(name: str, *, presets: Mapping[str, Preset] | None = None) -> Callable[[T], T]:
    """Class decorator: declare an `Objective` as the method of this name.

    Args:
        name: as in `--method` and in result tables.
        presets: named settings, of the objective and of its training; by default one, "default", of the defaults.
    """

    def declare(kind: T) -> T:
        kind.name, kind.presets = name, dict(presets or {"default": Preset()})  # type: ignore[attr-defined]
        METHODS.add(name, kind)
        return kind

    return declare

"""What a method of erasure is to the trainer: frozen hyper-parameters with `prepare` and `loss`.

`prepare` computes everything that depends on frozen weights alone, once and in large batches. `loss` gives named terms for
a few samples; the trainer weighs, logs and checks each. Nothing here knows of files, schedules or optimisers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.data import Concept
from elm_interp.models import HookedLM


class Example(Protocol):
    """What the trainer knows of a sample, of whatever kind.

    A kind whose mean loss runs over fewer positions than it has tokens says how many, as `positions`.
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
        """Tokens."""
        ...


@dataclass(frozen=True)
class Sample:
    """One text to train on, with what the model should predict along it."""

    term: str
    """The loss term it belongs to: "erase", "retain", "fluency"."""
    id: str
    """Which passage or prompt it came from, for error messages."""
    ids: tuple[int, ...]
    """Token ids; the target at index t is for the token after `ids[t]`."""
    start: int
    """First index with a target: what stands before is context only."""
    target: "TopK | Teacher"
    """The target distribution at indices start .. len(ids) - 1 (or len(ids) - 2 where the last token predicts nothing)."""

    @property
    def positions(self) -> int:
        """Indices with a target."""
        return len(self.target)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def where(self) -> slice | list[int]:
        """The indices that have a target."""
        return slice(self.start, self.start + len(self.target))


@dataclass(frozen=True)
class TopK:
    """A distribution at each position: k tokens one by one, the rest of the vocabulary as the one sum that is missing to 1."""

    tokens: Int[Tensor, "pos k"]
    probs: Float[Tensor, "pos k"]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Teacher:
    """A distribution at each position, as the frozen model's own hidden state before the head: exact, and small."""

    hidden: Float[Tensor, "pos d_model"]

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class Options:
    """A prompt with texts that may follow it, and how likely the model should find each of their tokens."""

    term: str
    """The loss term it belongs to: "answers", "kept_answers"."""
    id: str
    """Which question it came from, for error messages."""
    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    options: tuple[tuple[int, ...], ...]
    """Token ids of each text that may follow."""
    goal: Float[Tensor, " token"]
    """Log-probability (nats) that each token of each option should have, flat."""

    @property
    def positions(self) -> int:
        """Tokens with a goal."""
        return len(self.goal)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.goal)


class Objective(Protocol):
    """A method of erasure."""

    name: str

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words; `n_layers` is None while the model's depth is not known."""
        ...

    def adapter(self, lm: HookedLM) -> Any:
        """The LoRA to train."""
        ...

    def prepare(self, lm: HookedLM, concept: Concept, *, seed: int, progress: bool) -> Mapping[str, Sequence[Example]]:
        """The samples of every term, with targets from the frozen base; of a kind of the method's own, if need be."""
        ...

    def loss(self, lm: HookedLM, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Mean loss of each term, unweighted, on samples of one kind; the terms need not be the pools' names."""
        ...

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        ...


def layer_problems(layers: Sequence[int], n_layers: int | None) -> list[str]:
    """What is wrong with a choice of blocks, in words."""
    found = []
    if not layers:
        found.append("layers is empty; name at least one block")
    if len(set(layers)) != len(layers) or any(layer < 0 for layer in layers):
        found.append(f"layers are {list(layers)}; expected different indices from 0")
    if n_layers is not None and any(layer >= n_layers for layer in layers):
        found.append(f"layers go to {max(layers)}, but the model has layers 0 to {n_layers - 1}")
    return found


def number_problems(settings: Any, least: Mapping[str, float]) -> list[str]:
    """Which fields are below the least they can be, or not finite, in words; None passes."""
    given = {name: getattr(settings, name) for name in least}
    return [
        f"{name} is {value}; expected a finite number of at least {least[name]}"
        for name, value in given.items()
        if value is not None and not least[name] <= value < math.inf
    ]

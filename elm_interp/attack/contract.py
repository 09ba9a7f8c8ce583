"""What an attack is: a frozen set of settings that turns a subject into an attacked subject.

An attack changes weights (another adapter), activations (`edits`) or prompts (`prompt`) of a `Subject`, so every metric
measures every attack without a line of its own.

    @attack("hello")
    @dataclass(frozen=True)
    class Hello(Attack):
        words: str = "Hello. "

        def run(self, subject: Subject) -> Subject:
            return subject.with_(prompt=lambda text: self.words + text)

    table = measure_attack(ATTACKS["hello"](), run.subject(), "innocence.*")
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import ClassVar, TypeVar

import pandas as pd

from elm_interp.errors import ConfigError
from elm_interp.files import hash_of
from elm_interp.metrics import Subject, measure
from elm_interp.registry import ATTACKS
from elm_interp.results import stack


@dataclass(frozen=True)
class Budget:
    """What an attack may spend; None is no limit."""

    steps: int | None = None
    """Optimisation or search steps."""
    tokens: int | None = None
    """Tokens that the model reads and generates."""
    seconds: float | None = None
    """Wall-clock seconds."""


@dataclass(frozen=True)
class Attack(ABC):
    """A way to bring erased knowledge back; subclasses are frozen dataclasses of settings."""

    name: ClassVar[str] = ""
    budget: Budget = field(default_factory=Budget)
    """What it may spend."""
    seed: int = 0
    """Seed of whatever it draws."""

    @abstractmethod
    def run(self, subject: Subject) -> Subject:
        """The attacked subject; the given one stays as it is."""

    @property
    def key(self) -> str:
        """A hash of all settings, which tells the rows of two settings apart."""
        return hash_of({"attack": self.name, **asdict(self)}, digits=8)


A = TypeVar("A", bound=type[Attack])


def attack(name: str) -> Callable[[A], A]:
    """Declare an attack under a name.

    Raises:
        ConfigError: the class is no `Attack`, or the name is taken.
    """

    def declare(kind: A) -> A:
        if not (isinstance(kind, type) and issubclass(kind, Attack)):
            raise ConfigError(f"{kind!r} is declared as attack {name!r}; expected a subclass of Attack.")
        kind.name = name
        ATTACKS.add(name, kind)
        return kind

    return declare


def measure_attack(
    attack: Attack, subject: Subject, patterns: Iterable[str] | str = "innocence.*", *, progress: bool = False
) -> pd.DataFrame:
    """Metrics before and after an attack.

    Args:
        attack: the settings.
        subject: what is attacked.
        patterns: metric names with shell wildcards.
        progress: show bars.

    Returns:
        Tidy rows; `method` is the subject's own before the attack and "METHOD+ATTACK" after it, where `protocol` ends
        in the hash of the attack's settings.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    before = measure(subject, patterns, progress=progress)
    after = measure(attack.run(subject), patterns, progress=progress)
    how = f"after {attack.name} ({attack.key})"
    protocol = after["protocol"].map(lambda said: how if pd.isna(said) else f"{said}; {how}")
    return stack([before, after.assign(method=f"{subject.method}+{attack.name}", protocol=protocol)])

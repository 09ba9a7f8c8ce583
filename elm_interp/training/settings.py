"""Training: how an objective is optimised, and the check of numbers that all settings share.

training = Training(steps=120, lr=1e-3)
training.problems()                      # [], or what cannot work
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup": 0, "weight_decay": 0.01}
"""AdamW as scripts of papers use it: a constant rate and PyTorch's default weight decay."""
Schedule = Literal["cosine", "linear", "constant"]
UNCLIPPED = {"max_grad_norm": 1e9}
"""No clipping: a norm that no gradient reaches."""


@dataclass(frozen=True)
class Training:
    """How an objective is optimised with AdamW; batch sizes of a method's own terms are settings of the method."""

    steps: int = 120
    """Optimiser steps."""
    forget_batch: int = 4
    """Forget passages a step."""
    retain_batch: int = 4
    """Retain passages a step."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """After the warm-up: fall along a cosine to a tenth of the peak, or along a line to 0, or stay at the peak."""
    warmup: int = 10
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    accumulate: int = 1
    """Passes that a step's samples are split into: less memory, the same gradient. Doubles when memory runs out."""
    checkpoints: int | None = 10
    """Checkpoints that are saved, the last step among them."""
    save_every: int | None = None
    """Steps between checkpoints, in place of a number of them; the last step is always saved."""
    checkpoint_spacing: Literal["linear", "log"] = "linear"
    """How `checkpoints` are spaced: evenly, or by a constant factor, dense where training begins."""
    norms_every: int = 20
    """Steps between measurements of each weighted term's gradient norm, which take one more backward pass a term."""

    def problems(self) -> list[str]:
        """Settings that cannot work, in words."""
        ones = ("steps", "forget_batch", "accumulate", "checkpoints", "save_every", "norms_every")
        zeros = ("retain_batch", "warmup")
        found = whole_problems(self, dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0))
        found += number_problems(self, {"weight_decay": 0})
        found += positive_problems(self, ("lr", "max_grad_norm"))
        if self.schedule not in get_args(Schedule):
            found.append(f"schedule is {self.schedule!r}; expected one of {', '.join(map(repr, get_args(Schedule)))}")
        if self.checkpoint_spacing not in ("linear", "log"):
            found.append(f'checkpoint_spacing is {self.checkpoint_spacing!r}; expected "linear" or "log"')
        if self.checkpoints is None and self.save_every is None:
            found.append("neither checkpoints nor save_every is given; expected one of them")
        if self.checkpoint_spacing == "log" and self.save_every is not None:
            found.append("save_every spaces checkpoints evenly, checkpoint_spacing by a factor; leave one of them out")
        return found

    def saves(self) -> list[int]:
        """The steps after which a checkpoint is saved; fewer than `checkpoints` if training is that short."""
        last, n = self.steps, self.checkpoints or 1
        if self.save_every is not None:
            return sorted({*range(self.save_every, last + 1, self.save_every), last})
        if self.checkpoint_spacing == "linear" or n == 1:
            return sorted({max(1, round(last * i / n)) for i in range(1, n + 1)})
        found: list[int] = []
        for i in range(n):  # each at least one step after the one before
            ideal = round(last ** (i / (n - 1)))
            found.append(max(ideal, found[-1] + 1) if found else ideal)
        return sorted({*(step for step in found if step < last), last})

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "linear":  # the last step still moves
            return self.lr * (1 - (step - self.warmup - 1) / max(1, self.steps - self.warmup))
        return self.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def number_problems(settings: Any, least: Mapping[str, float]) -> list[str]:
    """Fields that are below their least value or not finite, in words; None is allowed."""
    given = {name: getattr(settings, name) for name in least}
    return [
        f"{name} is {value}; expected a finite number of at least {least[name]}"
        for name, value in given.items()
        if value is not None and not least[name] <= value < math.inf
    ]


def whole_problems(settings: Any, least: Mapping[str, int]) -> list[str]:
    """Fields that are no whole number, or below their least value, in words; None is allowed."""
    return [
        f"{name} is {value!r}; expected a whole number of at least {low}"
        for name, low in least.items()
        if (value := getattr(settings, name)) is not None and (not isinstance(value, int) or value < low)
    ]


def positive_problems(settings: Any, names: tuple[str, ...]) -> list[str]:
    """Fields that are not finite numbers above 0, in words."""
    given = {name: getattr(settings, name) for name in names}
    return [
        f"{name} is {value}; expected a finite number above 0"
        for name, value in given.items()
        if not 0 < value < math.inf
    ]

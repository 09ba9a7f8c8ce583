"""The training loop: readable, exact on resume, and ignorant of any method.

Which samples a step sees is a pure function of (seed, step), so the data cursor is the step itself; the optimiser's
moments and the random state come back from the checkpoint. k steps and a resume equal n steps bit for bit on a CPU.

    train(lm, objective, samples, Training(steps=120), Path("runs/x"))
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from elm_interp.erase.checkpoints import Checkpoint, checkpoints, set_damaged_aside, write_checkpoint
from elm_interp.erase.objective import Objective
from elm_interp.errors import unknown
from elm_interp.models import HookedLM


class NotFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the last checkpoint is still good."""


@dataclass(frozen=True)
class Training:
    """How an objective is optimised (AdamW)."""

    steps: int = 120
    """Optimiser steps."""
    forget_batch: int = 4
    """Forget passages a step."""
    retain_batch: int = 4
    """Retain passages a step."""
    fluency_batch: int = 2
    """Self-written texts a step."""
    answers_batch: int = 8
    """Questions with answers a step, of the concept and as many of what is kept (methods that have such a term)."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: fall along a cosine to a tenth, or stay."""
    warmup: int = 10
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    save_every: int = 20
    """Steps between checkpoints; the last step is always saved."""

    @classmethod
    def preset(cls, name: str) -> "Training":
        """Settings that go with the preset of the same name of the method.

        Raises:
            UnknownNameError: no such preset; with the closest.
        """
        if name not in PRESETS:
            raise unknown("training preset", name, PRESETS)
        return cls(**PRESETS[name])

    def problems(self) -> list[str]:
        """Settings that cannot work, in words."""
        least = {
            "steps": 1,
            "forget_batch": 1,
            "retain_batch": 0,
            "fluency_batch": 0,
            "answers_batch": 0,
            "warmup": 0,
            "weight_decay": 0,
            "save_every": 1,
        }
        found = [
            f"{name} is {getattr(self, name)}; expected at least {low}"
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        found += [
            f"{name} is {getattr(self, name)}; expected a finite number above 0"
            for name in ("lr", "max_grad_norm")
            if not 0 < getattr(self, name) < math.inf
        ]
        if self.schedule not in ("cosine", "constant"):
            found.append(f'schedule is {self.schedule!r}; expected "cosine" or "constant"')
        return found

    def batch_sizes(self) -> dict[str, int]:
        """Samples of each term a step."""
        asked = {"answers": self.answers_batch, "kept_answers": self.answers_batch}
        return {"erase": self.forget_batch, "retain": self.retain_batch, "fluency": self.fluency_batch, **asked}

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


PRESETS: dict[str, dict] = {
    # the authors' code: lr 5e-5 constant, one sample a micro-step, accumulation 4, PyTorch's default weight decay
    "paper": {"steps": 750, "lr": 5e-5, "schedule": "constant", "warmup": 0, "weight_decay": 0.01, "fluency_batch": 4},
    "smollm2-135m": {
        "steps": 75,
        "forget_batch": 1,
        "retain_batch": 1,
        "lr": 4e-3,
        "save_every": 25,
    },
}
"""What each preset sets beside the defaults."""


def train(
    lm: HookedLM,
    objective: Objective,
    samples: dict[str, list[Any]],
    training: Training,
    folder: Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Checkpoint:
    """Train the objective's adapter, going on from the newest whole checkpoint in the folder, if any.

    The adapter is taken off again at the end; the global random state is untouched.

    Args:
        lm: the model; its base is frozen and stays so.
        objective: gives the adapter, the loss terms and their weights.
        samples: what `objective.prepare` made.
        training: steps, batches, learning rate.
        folder: gets checkpoints/ and metrics.jsonl.
        seed: of the adapter's start, the order of the samples and dropout.
        progress: show a bar.

    Returns:
        The last checkpoint.

    Raises:
        NotFiniteError: a loss term or the gradient is NaN or infinite; names term, step and samples.
    """
    root = folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    warnings = set_damaged_aside(root)
    accelerator = Accelerator(cpu=lm.device.type == "cpu")
    with torch.random.fork_rng(), _plain_attention(lm):
        torch.manual_seed(seed)
        parameters = lm.adapters.attach(objective.adapter(lm))
        masters = _Masters(parameters)
        optimizer = torch.optim.AdamW(masters.weights, lr=training.lr, weight_decay=training.weight_decay)
        done = _resume(lm, optimizer, masters, root)
        log = _Log(folder / "metrics.jsonl", done, warnings)
        bar = tqdm(
            range(done + 1, training.steps + 1),
            desc="erasing",
            initial=done,
            total=training.steps,
            disable=not progress,
        )
        try:
            for step in bar:
                began = time.perf_counter()
                batch = [
                    s
                    for term, size in training.batch_sizes().items()
                    for s in draw(samples.get(term, []), size, step, seed)
                ]
                terms: dict[str, Tensor] = {}
                weights = objective.weights()
                # a pass for each kind of sample: their graphs need not be alive at once
                for kind in dict.fromkeys(map(type, batch)):
                    part = [sample for sample in batch if type(sample) is kind]
                    losses = objective.loss(lm, part)
                    _check_finite(losses, step, part)
                    total = sum(weights[term] * loss for term, loss in losses.items())
                    if isinstance(total, Tensor):
                        accelerator.backward(total)
                    terms |= {term: loss.detach() for term, loss in losses.items()}
                masters.take_gradients()
                norm = float(nn.utils.clip_grad_norm_(masters.weights, training.max_grad_norm))
                _check_finite({"gradient": torch.tensor(norm)}, step, batch)
                for group in optimizer.param_groups:
                    group["lr"] = training.lr_at(step)
                optimizer.step()
                optimizer.zero_grad()
                masters.give_weights()
                values = {term: float(loss) for term, loss in terms.items()}
                log.write(
                    step=step,
                    **values,
                    grad_norm=norm,
                    lr=training.lr_at(step),
                    tokens=sum(map(len, batch)),
                    samples=len(batch),
                    seconds=time.perf_counter() - began,
                )
                bar.set_postfix({term: f"{loss:.3f}" for term, loss in values.items()})
                if step % training.save_every == 0 or step == training.steps:
                    state = _state(optimizer, masters)
                    write_checkpoint(
                        root,
                        step,
                        lm.adapters.save,
                        state,
                        {"losses": values, "training": asdict(training), "seed": seed},
                    )
        finally:
            lm.adapters.release()
    return checkpoints(root)[-1]


def draw(pool: Sequence[Any], size: int, step: int, seed: int) -> list[Any]:
    """The samples of a step (from 1): the pool is walked in a new random order each time round."""
    if not pool:
        return []
    chosen: list[Any] = []
    for index in range((step - 1) * size, step * size):
        turn, place = divmod(index, len(pool))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        chosen.append(pool[int(torch.randperm(len(pool), generator=generator)[place])])
    return chosen


class _Log:
    """metrics.jsonl: one line a step; lines after the checkpoint that a resume starts from are dropped."""

    def __init__(self, path: Path, done: int, warnings: list[str]) -> None:
        self._path = path
        kept = [line for line in path.read_text().splitlines() if _step(line) <= done] if path.exists() else []
        path.write_text("".join(line + "\n" for line in kept))
        for warning in warnings:
            self.write(step=done, warning=warning)

    def write(self, **values: float | str) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line torn by a crash


def _check_finite(terms: dict[str, Tensor], step: int, batch: Sequence[Any]) -> None:
    for term, loss in terms.items():
        if not bool(torch.isfinite(loss)):
            named = [sample for sample in batch if sample.term == term] or batch
            ids = sorted({sample.id for sample in named})
            raise NotFiniteError(
                f"the {term} is {float(loss.detach())} at step {step}, on samples {', '.join(ids)}; try a lower learning rate or float32. The last checkpoint is whole."
            )


class _Masters:
    """Float32 copies of the adapter's weights for the optimiser: in bfloat16, small updates would be rounded away.

    Weights that are float32 already are their own masters.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]

    def take_gradients(self) -> None:
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None

    @torch.no_grad()
    def give_weights(self) -> None:
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def _state(optimizer: torch.optim.Optimizer, masters: _Masters) -> dict[str, Tensor]:
    state = {"rng": torch.get_rng_state()}
    for i, weight in enumerate(masters.weights):
        state[f"{i}.weight"] = weight.detach()
        state |= {f"{i}.{name}": value for name, value in optimizer.state[weight].items()}
    return state


def _resume(lm: HookedLM, optimizer: torch.optim.Optimizer, masters: _Masters, root: Path) -> int:
    found = checkpoints(root)
    if not found:
        return 0
    newest = found[-1]
    lm.adapters.load(newest.path, trainable=True)
    state = newest.state()
    torch.set_rng_state(state.pop("rng"))
    for i, weight in enumerate(masters.weights):
        with torch.no_grad():
            weight.copy_(state[f"{i}.weight"])
        names = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[weight] = {
            name: state[f"{i}.{name}"].to(weight.device if name != "step" else "cpu") for name in names
        }
    masters.give_weights()
    return newest.step


@contextmanager
def _plain_attention(lm: HookedLM) -> Iterator[None]:
    """On a CPU, the fused attention's backward pass is slower than plain attention at passage lengths (a third of a step)."""
    before = lm.model.config._attn_implementation
    plain = lm.device.type == "cpu" and before == "sdpa"
    if plain:
        lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if plain:
            lm.model.set_attn_implementation(before)

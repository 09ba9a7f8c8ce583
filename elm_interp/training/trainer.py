"""The training loop: readable, exact on resume, and ignorant of any method.

Which samples a step sees is a pure function of (seed, step), so the data cursor is the step itself; the optimiser's
moments and the random states come back from the checkpoint. k steps and a resume equal n steps bit for bit on a CPU.

    train(lm, objective, samples, Training(steps=120), Path("runs/x"))

Under `accelerate launch` each process takes its part of every step, and the adapter is that of one process, to rounding;
with configs/fsdp.yaml they hold a model together that is too big for one device.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from elm_interp.errors import ConfigError, unknown
from elm_interp.models import HookedLM
from elm_interp.models.distributed import sharded
from elm_interp.results import write
from elm_interp.training.checkpoints import Checkpoint, list_checkpoints, set_damaged_aside, write_checkpoint
from elm_interp.training.gradients import NotFiniteError, Passes, not_finite
from elm_interp.training.master_weights import Masters, random_state, set_random_state
from elm_interp.training.memory import trim
from elm_interp.training.objective import Example, Objective, number_problems
from elm_interp.training.sampling import draw
from elm_interp.training.weight_change import moved, named, unmoved

TRIM = 5
"""Steps after which freed memory goes back to the system: steps of ever other shapes would leave gigabytes of it in pieces."""
SKIPS = 3
"""Steps that may be left out because a loss or gradient was not finite; one more ends the training."""


class UnmovedError(ArithmeticError):
    """Training ended with a targeted layer that nothing was learned in."""


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
    accumulate: int = 1
    """Passes that a step's samples are split into: less memory, the same gradient. Doubled by itself when memory runs out."""
    save_every: int = 20
    """Steps between checkpoints; the last step is always saved."""
    norms_every: int = 20
    """The first of so many steps also logs the length of each weighted term's own gradient, for a backward pass more a term."""

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
        ones, zeros = (
            ("steps", "forget_batch", "accumulate", "save_every", "norms_every"),
            ("retain_batch", "fluency_batch", "answers_batch", "warmup", "weight_decay"),
        )
        found = number_problems(self, {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0)})
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
    # the same with 12,000 micro-steps and no clipping
    "released-code": {
        "steps": 3000,
        "lr": 5e-5,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 1e9,
        "fluency_batch": 4,
    },
    "smollm2-135m": {
        "steps": 75,
        "forget_batch": 1,
        "retain_batch": 1,
        "lr": 4e-3,
        "save_every": 25,
    },
    "organism": {
        "steps": 150,
        "retain_batch": 8,
        "answers_batch": 16,
        "lr": 8e-3,
        "save_every": 50,
    },
}
"""What each preset sets beside the defaults."""


def train(
    lm: HookedLM,
    objective: Objective,
    samples: Mapping[str, Sequence[Example]],
    training: Training,
    folder: Path,
    *,
    seed: int = 0,
    evaluate: Callable[[HookedLM], Mapping[str, float]] | None = None,
    evaluate_every: int = 10,
    progress: bool = True,
) -> Checkpoint:
    """Train the objective's adapter, going on from the newest whole checkpoint in the folder, if any.

    The adapter is taken off again at the end; the global random state is untouched.

    Args:
        lm: the model; its base is frozen and stays so.
        objective: gives the adapter, the loss terms and their weights.
        samples: what `objective.prepare` made.
        training: steps, batches, learning rate.
        folder: gets checkpoints/, metrics.jsonl and results/moved.parquet.
        seed: of the adapter's start, the order of the samples and dropout.
        evaluate: called with the half-trained model; what it returns stands in the log under "evaluation".
        evaluate_every: steps between such calls.
        progress: show a bar.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError: an adapter is on; training starts from the bare base.
        NotFiniteError: a loss term or the gradient was NaN or infinite in more than `SKIPS` steps or in the last; names term, step and samples.
        UnmovedError: a targeted layer was not moved; names it.
        torch.OutOfMemoryError: not even one sample a pass fits.
    """
    if lm.adapters.current is not None:
        raise ConfigError(
            f"adapter {lm.adapters.current} is on; train outside of `lm.adapter(...)`, from the bare base."
        )
    root = folder / "checkpoints"
    accelerator = Accelerator(cpu=lm.device.type == "cpu")
    first = accelerator.is_main_process
    warnings = []
    if first:
        root.mkdir(parents=True, exist_ok=True)
        warnings = set_damaged_aside(root)
    accelerator.wait_for_everyone()
    with torch.random.fork_rng(_cuda(lm)), _plain_attention(lm):
        torch.manual_seed(seed)
        parameters = lm.adapters.attach(objective.adapter(lm))
        start = named(lm, parameters)
        masters = Masters(parameters)
        optimizer = torch.optim.AdamW(masters.weights, lr=training.lr, weight_decay=training.weight_decay)
        if not first and not sharded():
            torch.manual_seed(seed + accelerator.process_index)  # or all would drop the same units
        done, accumulate, skipped = _resume(accelerator, optimizer, masters, root, training)
        log = _Log(folder / "metrics.jsonl" if first else None, done, warnings)
        passes = Passes(lm, objective, accelerator, log.warn, accumulate)
        bar = tqdm(
            range(done + 1, training.steps + 1),
            desc="erasing",
            initial=done,
            total=training.steps,
            disable=not (progress and first),
        )
        try:
            for step in bar:
                began = time.perf_counter()
                batch = [
                    s
                    for term, size in training.batch_sizes().items()
                    for s in draw(samples.get(term, []), size, step, seed)
                ]
                values: dict[str, float] = {}
                try:
                    apart = (step - 1) % training.norms_every == 0
                    values, norms = passes.gradients(batch, step, masters, apart=apart)
                    norm = nn.utils.clip_grad_norm_(masters.weights, training.max_grad_norm)
                    broken = not_finite({"gradient": norm}, step, batch)
                    if broken:
                        raise NotFiniteError(broken)
                except NotFiniteError as error:
                    skipped += 1
                    log.warn(step, f"{error} Left out: {skipped} of {SKIPS} steps that may be.")
                    if skipped > SKIPS or step == training.steps:  # what has diverged is no last checkpoint
                        raise
                else:
                    for group in optimizer.param_groups:
                        group["lr"] = training.lr_at(step)
                    optimizer.step()
                    masters.give_weights()
                    log.write(
                        step=step,
                        **values,
                        grad_norm=float(norm),
                        **({"grad_norms": norms} if norms else {}),
                        lr=training.lr_at(step),
                        tokens=sum(map(len, batch)),
                        samples=len(batch),
                        seconds=time.perf_counter() - began,
                    )
                    bar.set_postfix({term: f"{loss:.3f}" for term, loss in values.items()})
                masters.drop_gradients()
                if evaluate and (first or sharded()) and (step % evaluate_every == 0 or step == training.steps):
                    with torch.random.fork_rng(_cuda(lm)), lm.adapters.at_rest():
                        log.write(step=step, evaluation=dict(evaluate(lm)))
                if step % training.save_every == 0 or step == training.steps:
                    state = masters.state(optimizer) | _random_states(accelerator, lm)
                    meta = {"losses": values, "training": asdict(training), "seed": seed}
                    meta |= {"accumulate": passes.accumulate, "skipped": skipped}
                    if first:
                        write_checkpoint(root, step, lm.adapters.save, state, meta)
                if step % TRIM == 0:
                    trim()
            accelerator.wait_for_everyone()
            table = moved(start, named(lm, parameters))
            if first:
                write(table, folder / "results" / "moved.parquet")
            targeted, still = table["layer"].unique().tolist(), unmoved(start, named(lm, parameters))
        finally:
            lm.adapters.release()
    if still:
        raise UnmovedError(
            f"training did not move layer {', '.join(map(str, still))} of {targeted}: no gradient came there. Does every loss weight that should reach it stand above 0? The checkpoints are whole."
        )
    return list_checkpoints(root)[-1]


class _Log:
    """metrics.jsonl: one line a step; lines after the checkpoint that a resume starts from are dropped.

    Without a path (every process but the first) nothing is written.
    """

    def __init__(self, path: Path | None, done: int, warnings: Sequence[str]) -> None:
        self._path = path
        if path and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= done]
            half = path.with_name(f".{path.name}.half")
            half.write_text("".join(line + "\n" for line in kept))
            half.replace(path)
        for warning in warnings:
            self.warn(done, warning)

    def warn(self, step: int, warning: str) -> None:
        self.write(step=step, warning=warning)

    def write(self, **values: object) -> None:
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line torn by a crash


def _resume(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, masters: Masters, root: Path, training: Training
) -> tuple[int, int, int]:
    """Put back the newest whole checkpoint, if any; steps done, passes a step, steps left out."""
    found = list_checkpoints(root)
    if not found:
        return 0, training.accumulate, 0
    newest, device = found[-1], accelerator.device
    state = newest.state()
    mine = {key: state.pop(key) for key in list(state) if key.startswith("random.")}
    prefix = f"random.{accelerator.process_index}."
    # a process that was not there before draws from its own seed
    if any(key.startswith(prefix) for key in mine):
        set_random_state({k.removeprefix(prefix): v for k, v in mine.items() if k.startswith(prefix)}, device)
    masters.load(optimizer, state)
    meta = newest.meta
    return newest.step, meta["accumulate"], meta["skipped"]


def _random_states(accelerator: Accelerator, lm: HookedLM) -> dict[str, Tensor]:
    """The random states of every process."""
    found: dict[str, Tensor] = {}
    for name, own in random_state(lm.device).items():
        every = accelerator.gather(own.to(accelerator.device)[None]) if accelerator.num_processes > 1 else own[None]
        found |= {f"random.{i}.{name}": state.cpu() for i, state in enumerate(every)}
    return found


def _cuda(lm: HookedLM) -> list[torch.device]:
    return [lm.device] if lm.device.type == "cuda" else []


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

"""The training loop: one for all methods, exact on resume, ignorant of their terms.

The objective says which pools a step draws from. Which samples it draws is a pure function of seed and step, and the
checkpoint holds the optimiser's moments and the random states. So k steps and a resume equal n steps bit for bit on a
CPU.

    train(lm, objective, samples, Training(steps=120), Path("runs/x"))

Under `accelerate launch` the processes share the samples of every step and train one adapter, the same up to rounding.
With configs/fsdp.yaml they hold a model together that does not fit on one device.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from elm_interp.errors import ConfigError, NotFiniteError, raise_all
from elm_interp.models import HookedLM
from elm_interp.models.distributed import sharded
from elm_interp.results import write
from elm_interp.training.checkpoints import Checkpoint, list_checkpoints, set_damaged_aside, write_checkpoint
from elm_interp.training.gradients import Passes, not_finite
from elm_interp.training.log import TrainingLog
from elm_interp.training.master_weights import Masters, random_state, set_random_state
from elm_interp.training.memory import trim
from elm_interp.training.objective import Example, Objective
from elm_interp.training.sampling import draw
from elm_interp.training.settings import Training
from elm_interp.training.weight_change import snapshot, unmoved_layers, weight_changes

TRIM_EVERY = 5
"""Steps between returns of freed memory to the system; steps of different shapes would pile up gigabytes of it."""
MAX_SKIPPED = 3
"""Steps that may be left out because a loss or gradient was not finite; one more ends the training."""

Evaluate = Callable[[HookedLM], Mapping[str, float]]


class UnmovedError(ArithmeticError):
    """Training ended and some trained layer learned nothing."""


def train(
    lm: HookedLM,
    objective: Objective,
    samples: Mapping[str, Sequence[Example]],
    training: Training,
    folder: Path,
    *,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 10,
    progress: bool = True,
) -> Checkpoint:
    """Train the objective's adapter, from the newest complete checkpoint in the folder if there is one.

    The adapter is taken off again at the end; the global random state is untouched.

    Args:
        lm: the model; its base is frozen and stays so.
        objective: gives the adapter, the pools, the loss terms and their weights.
        samples: what `objective.prepare` returned.
        training: steps, batches, learning rate.
        folder: gets checkpoints/, metrics.jsonl and results/moved.parquet.
        seed: of the adapter's initial weights, the order of the samples, and dropout.
        evaluate: called with the half-trained model; what it returns is logged under "evaluation".
        evaluate_every: steps between such calls.
        progress: show a bar.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError: an adapter is on, or a pool that the objective asks for is empty.
        NotFiniteError: a loss term or the gradient was NaN or infinite in more than `MAX_SKIPPED` steps or in the last;
            names term, step and samples.
        UnmovedError: a trained layer learned nothing; names it.
        torch.OutOfMemoryError: not even one sample a pass fits.
    """
    if lm.adapters.current is not None:
        raise ConfigError(f"adapter {lm.adapters.current} is on; train outside of `lm.adapter(...)`, on the bare base.")
    _check_pools(objective, samples, training)
    with torch.random.fork_rng(_cuda(lm)), _plain_attention(lm):
        torch.manual_seed(seed)
        parameters = lm.adapters.attach(objective.adapter.config(lm))
        try:
            start = snapshot(lm, parameters)
            loop = _Loop(lm, objective, samples, training, folder, seed, Masters(parameters))
            loop.run(evaluate, evaluate_every, progress)
            end = snapshot(lm, parameters)
            table = weight_changes(start, end)
            if loop.first:
                write(table, folder / "results" / "moved.parquet")
        finally:
            lm.adapters.release()
    if still := unmoved_layers(start, end):
        raise UnmovedError(
            f"training did not move layer {', '.join(map(str, still))} of {table['layer'].unique().tolist()}: no "
            "gradient reached it. Is every loss weight that should reach it above 0? The checkpoints are complete."
        )
    return list_checkpoints(folder / "checkpoints")[-1]


def _check_pools(objective: Objective, samples: Mapping[str, Sequence[Example]], training: Training) -> None:
    problems = [
        f'method {objective.name} asks for {size} samples of pool "{pool}" a step, but it is empty; the training part '
        "of the concept has nothing to make them of. Add passages or questions to the concept, or ask for 0 samples."
        for pool, size in objective.pools(training).items()
        if size > 0 and not samples.get(pool)
    ]
    raise_all(problems, ConfigError, "these samples cannot be trained on:")


class _Loop:
    """One training, with an adapter attached; goes on from the newest complete checkpoint."""

    def __init__(
        self,
        lm: HookedLM,
        objective: Objective,
        samples: Mapping[str, Sequence[Example]],
        training: Training,
        folder: Path,
        seed: int,
        masters: Masters,
    ) -> None:
        self.lm, self.samples, self.training, self.seed, self.masters = lm, samples, training, seed, masters
        self.pools = objective.pools(training)
        self.root = folder / "checkpoints"
        self.accelerator = Accelerator(cpu=lm.device.type == "cpu")
        self.first = self.accelerator.is_main_process
        warnings = self._clean()
        self.optimizer = torch.optim.AdamW(masters.weights, lr=training.lr, weight_decay=training.weight_decay)
        if not self.first and not sharded():
            torch.manual_seed(seed + self.accelerator.process_index)  # or all processes would drop the same units
        self.done, accumulate, self.skipped = self._resume()
        self.log = TrainingLog(folder / "metrics.jsonl" if self.first else None, self.done, warnings)
        self.passes = Passes(lm, objective, self.accelerator, self.log.warn, accumulate)

    def run(self, evaluate: Evaluate | None, evaluate_every: int, progress: bool) -> None:
        """Take the remaining steps."""
        last, saves, hidden = self.training.steps, set(self.training.saves()), not (progress and self.first)
        bar = tqdm(range(self.done + 1, last + 1), desc="training", initial=self.done, total=last, disable=hidden)
        for step in bar:
            losses = self.step(step)
            bar.set_postfix({term: f"{loss:.3f}" for term, loss in losses.items()})
            if evaluate and (self.first or sharded()) and (step % evaluate_every == 0 or step == last):
                with torch.random.fork_rng(_cuda(self.lm)), self.lm.adapters.at_rest():
                    self.log.write(step=step, evaluation=dict(evaluate(self.lm)))
            if step in saves:
                self.save(step, losses)
            if step % TRIM_EVERY == 0:
                trim()
        self.accelerator.wait_for_everyone()

    def step(self, step: int) -> dict[str, float]:
        """Take one step and log it, or leave it out if something is not finite; returns the unweighted losses."""
        began, training = time.perf_counter(), self.training
        batch = [
            sample
            for pool, size in self.pools.items()
            for sample in draw(self.samples.get(pool, []), size, step, self.seed)
        ]
        losses: dict[str, float] = {}
        try:
            measured = (step - 1) % training.norms_every == 0
            losses, norms = self.passes.gradients(batch, step, self.masters, term_norms=measured)
            norm = nn.utils.clip_grad_norm_(self.masters.weights, training.max_grad_norm)
            broken = not_finite({"gradient": norm}, step, batch)
            if broken:
                raise NotFiniteError(broken)
        except NotFiniteError as error:
            self.skipped += 1
            self.log.warn(step, f"{error} Left out: {self.skipped} of at most {MAX_SKIPPED} steps.")
            if (
                self.skipped > MAX_SKIPPED or step == training.steps
            ):  # a diverged model must not become the last checkpoint
                raise
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = training.lr_at(step)
            self.optimizer.step()
            self.masters.give_weights()
            self.log.write(
                step=step,
                **losses,
                grad_norm=float(norm),
                **({"grad_norms": norms} if norms else {}),
                lr=training.lr_at(step),
                tokens=sum(map(len, batch)),
                samples=len(batch),
                seconds=time.perf_counter() - began,
            )
        self.masters.drop_gradients()
        return losses

    def save(self, step: int, losses: Mapping[str, float]) -> None:
        """Write a checkpoint; every process must call this."""
        state = self.masters.state(self.optimizer) | self._random_states()
        meta = {"losses": losses, "training": asdict(self.training), "seed": self.seed}
        meta |= {"accumulate": self.passes.accumulate, "skipped": self.skipped}
        if self.first:
            write_checkpoint(self.root, step, self.lm.adapters.save, state, meta)

    def _clean(self) -> list[str]:
        """Set damaged checkpoints aside, in the first process; returns what was wrong."""
        warnings = []
        if self.first:
            self.root.mkdir(parents=True, exist_ok=True)
            warnings = set_damaged_aside(self.root)
        self.accelerator.wait_for_everyone()
        return warnings

    def _resume(self) -> tuple[int, int, int]:
        """Restore the newest complete checkpoint, if any; returns steps done, passes a step, steps left out."""
        found = list_checkpoints(self.root)
        if not found:
            return 0, self.training.accumulate, 0
        state, meta = found[-1].state(), found[-1].meta
        random_states = {key: state.pop(key) for key in list(state) if key.startswith("random.")}
        prefix = f"random.{self.accelerator.process_index}."
        own = {key.removeprefix(prefix): v for key, v in random_states.items() if key.startswith(prefix)}
        if own:  # a process that did not exist before draws from its own seed
            set_random_state(own, self.accelerator.device)
        self.masters.load(self.optimizer, state)
        return found[-1].step, meta["accumulate"], meta["skipped"]

    def _random_states(self) -> dict[str, Tensor]:
        """The random states of every process."""
        found: dict[str, Tensor] = {}
        for name, own in random_state(self.lm.device).items():
            several = self.accelerator.num_processes > 1
            every = self.accelerator.gather(own.to(self.accelerator.device)[None]) if several else own[None]
            found |= {f"random.{i}.{name}": state.cpu() for i, state in enumerate(every)}
        return found


def _cuda(lm: HookedLM) -> list[torch.device]:
    return [lm.device] if lm.device.type == "cuda" else []


@contextmanager
def _plain_attention(lm: HookedLM) -> Iterator[None]:
    """Use plain attention on a CPU: the fused kernel's backward pass would add a third to a step at passage lengths."""
    before = lm.model.config._attn_implementation
    plain = lm.device.type == "cpu" and before == "sdpa"
    if plain:
        lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if plain:
            lm.model.set_attn_implementation(before)

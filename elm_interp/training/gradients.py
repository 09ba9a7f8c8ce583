"""The gradient of one training step, in as many passes as memory asks for, shared among processes.

A step's samples are dealt to processes × `accumulate` passes. Every pass weighs its mean loss by its share of the step's
target positions, so that the gradients add up to that of the unsplit batch. Out of memory doubles `accumulate` and takes
the step again from the same random state.

    passes = Passes(lm, objective, accelerator, warn)
    terms, _ = passes.gradients(batch, step, masters)     # {"erase": 3.1, ...}; the gradients stand in masters.weights
    terms, norms = passes.gradients(batch, step, masters, apart=True)      # {"erase": 0.7, ...}: how hard each term pulls
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor, nn

from elm_interp.models import HookedLM
from elm_interp.models.distributed import sharded
from elm_interp.training.master_weights import Masters, random_state, set_random_state
from elm_interp.training.objective import Example, Objective


class NotFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the last checkpoint is still good."""


@dataclass
class Passes:
    """How the samples of a step are split; `accumulate` grows when memory runs out, and stays so."""

    lm: HookedLM
    objective: Objective
    accelerator: Accelerator
    warn: Callable[[int, str], None]
    """Told the step and what happened there."""
    accumulate: int = 1
    """Passes that the samples of each kind are split into, in each process."""

    def gradients(
        self, batch: Sequence[Example], step: int, masters: Masters, *, apart: bool = False
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Leave the gradient of the weighted loss in the masters.

        Args:
            batch: the samples of the step.
            step: its number, for messages.
            masters: get the gradient.
            apart: measure the gradient of each term by itself too, in a backward pass of its own, unless memory runs out. What
                is left in the masters is the same to the bit.

        Returns:
            The mean of each term over the step, unweighted; and the length of each weighted term's gradient, where measured.

        Raises:
            NotFiniteError: a loss term is NaN or infinite; names term, step and samples.
            torch.OutOfMemoryError: not even one sample a pass fits.
        """
        while True:
            before = random_state(self.lm.device)
            own: dict[str, Tensor] | None = {} if apart else None
            terms, full, broken = self._attempt(batch, step, masters, own)
            # every process must learn of what went wrong in one of them, or the others would wait for it for ever
            any_full, any_broken = self._summed(torch.tensor([full != "", broken != ""]).float()).tolist()
            if any_full:
                masters.drop_gradients()
                if own is None:
                    self._split_finer(len(batch), step, full)
                apart = False
                set_random_state(before, self.lm.device)
            elif any_broken:
                masters.drop_gradients()
                raise NotFiniteError("; ".join(filter(None, self._gathered(broken))))
            else:
                break
        if self.accelerator.num_processes > 1:
            masters.sum_gradients(self._summed)
            names = sorted(self.objective.weights())
            values = self._summed(torch.tensor([[terms.get(name, 0.0), float(name in terms)] for name in names]))
            terms = {name: float(value) for name, (value, seen) in zip(names, values, strict=True) if seen}
        if own is None:
            return terms, {}
        none = torch.zeros(sum(w.numel() for w in masters.weights), device=masters.weights[0].device)
        return terms, {term: float(self._summed(own.get(term, none)).norm()) for term in terms}

    def _attempt(
        self, batch: Sequence[Example], step: int, masters: Masters, own: dict[str, Tensor] | None
    ) -> tuple[dict[str, float], str, str]:
        """This process's passes: its part of each term, and in words what did not fit and what was not finite.

        `own`, where there is one, gets its part of each weighted term's gradient.
        """
        terms: dict[str, float] = {}
        weights = self.objective.weights()
        processes, first = self._dealt_to()
        n = processes * self.accumulate
        try:
            # a pass for each kind of sample: their graphs need not be alive at once
            for kind in dict.fromkeys(map(type, batch)):
                whole = [sample for sample in batch if type(sample) is kind]
                for part in (whole[i::n] for i in range(first, n, processes)):
                    losses = self.objective.loss(self.lm, part) if part else {}
                    broken = not_finite(losses, step, part)
                    if broken:
                        return terms, "", broken
                    repeats = self.accelerator.num_processes // processes
                    shared = {term: _share(term, part, whole) / repeats * loss for term, loss in losses.items()}
                    weighted = {term: weights[term] * loss for term, loss in shared.items()}
                    if own is not None:
                        for term, loss in weighted.items():
                            own[term] = own.get(term, 0.0) + gradient(loss, masters.parameters)
                    total = sum(weighted.values())
                    if isinstance(total, Tensor):
                        self.accelerator.backward(total)
                        masters.take_gradients()
                    terms |= {term: terms.get(term, 0.0) + float(loss.detach()) for term, loss in shared.items()}
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise
            return terms, str(error).partition("\n")[0] or "out of memory", ""
        return terms, "", ""

    def _dealt_to(self) -> tuple[int, int]:
        """Over how many processes samples are dealt, and which of them this is."""
        return (1, 0) if sharded() else (self.accelerator.num_processes, self.accelerator.process_index)

    def _split_finer(self, samples: int, step: int, why: str) -> None:
        if self._dealt_to()[0] * self.accumulate >= samples:
            raise torch.OutOfMemoryError(
                f"step {step} does not fit into memory with one sample a pass ({why}); cut the texts shorter (max_tokens), or take a smaller dtype or model."
            )
        self.accumulate *= 2
        clear_device_cache(garbage_collection=True)
        self.warn(step, f"out of memory; from here on the samples of a step are split into {self.accumulate} passes")

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum")  # type: ignore[return-value]

    def _gathered(self, words: str) -> list[str]:
        return gather_object([words]) if self.accelerator.num_processes > 1 else [words]


def gradient(loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> Float[Tensor, " n"]:
    """The gradient at all parameters, flat, in float32; the graph and the parameters' own gradients stay as they are."""
    moving = [p for p in parameters if p.requires_grad]
    grads = iter(torch.autograd.grad(loss, moving, retain_graph=True, allow_unused=True))
    found = [next(grads) if p.requires_grad else None for p in parameters]
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).float().flatten() for p, g in zip(parameters, found, strict=True)]
    )


def not_finite(terms: dict[str, Tensor], step: int, batch: Sequence[Example]) -> str:
    """Which term is NaN or infinite, at which step and on which samples; "" where all is well."""
    for term, loss in terms.items():
        if not bool(torch.isfinite(loss).all()):
            ids = sorted({sample.id for sample in batch if sample.term == term} or {sample.id for sample in batch})
            return f"the {term} is {float(loss.detach())} at step {step}, on samples {', '.join(ids)}; try a lower learning rate or float32. The last checkpoint is whole."
    return ""


def _share(term: str, part: Sequence[Example], whole: Sequence[Example]) -> float:
    """The pass's share of the positions of a term (of all positions, where the method names no sample after the term)."""
    chosen = [sample for sample in whole if sample.term == term] or whole
    kept = [sample for sample in part if sample.term == term] or part
    return sum(map(_positions, kept)) / sum(map(_positions, chosen))


def _positions(sample: Example) -> int:
    return getattr(sample, "positions", len(sample))

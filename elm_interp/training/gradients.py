"""The gradient of one training step, in as many passes as memory needs, shared among processes.

A step's samples are split into processes × `accumulate` passes. Every pass weights its mean loss by its share of what
that mean is over (`Objective.counts`), so that the gradients add up to that of the whole batch. When memory runs out,
`accumulate` doubles and the step starts again from the same random state.

    passes = Passes(lm, objective, accelerator, warn)
    losses, _ = passes.gradients(batch, step, masters)          # {"erase": 3.1, ...}; masters.weights hold the gradient
    losses, norms = passes.gradients(batch, step, masters, term_norms=True)      # {"erase": 0.7, ...}: each term's norm
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor, nn

from elm_interp.errors import NotFiniteError
from elm_interp.models import HookedLM
from elm_interp.models.distributed import sharded
from elm_interp.training.master_weights import Masters, random_state, set_random_state
from elm_interp.training.objective import Example, Objective

ALIKE, FEWEST_TOKENS = 0.8, 192
"""When samples share a pass on a CPU; see `of_similar_length`."""


@dataclass
class Passes:
    """How the samples of a step are split; `accumulate` grows when memory runs out, and stays so."""

    lm: HookedLM
    objective: Objective
    accelerator: Accelerator
    warn: Callable[[int, str], None]
    """Called with the step and what happened there."""
    accumulate: int = 1
    """Passes that the samples of each class are split into, in each process."""

    def gradients(
        self, batch: Sequence[Example], step: int, masters: Masters, *, term_norms: bool = False
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Compute the gradient of the weighted loss and leave it in the masters.

        Args:
            batch: the samples of the step.
            step: its number, for messages.
            masters: receive the gradient.
            term_norms: also measure the gradient of each term, in a backward pass of its own, unless memory runs out.
                The gradient in the masters is the same to the bit.

        Returns:
            The mean of each term over the step, unweighted; and the norm of each weighted term's gradient, if measured.

        Raises:
            NotFiniteError: a loss term is NaN or infinite; names term, step and samples.
            torch.OutOfMemoryError: not even one sample a pass fits.
        """
        while True:
            before = random_state(self.lm.device)
            own: dict[str, Tensor] | None = {} if term_norms else None
            losses, full, broken = self._attempt(batch, step, masters, own)
            # every process must learn of a failure in one of them, or the others would wait for ever
            any_full, any_broken = self._summed(torch.tensor([full != "", broken != ""]).float()).tolist()
            if not any_full and not any_broken:
                break
            masters.drop_gradients()
            if not any_full:
                raise NotFiniteError("; ".join(filter(None, self._gathered([broken]))))
            if own is None:
                self._split_finer(len(batch), step, full)
            term_norms = False
            set_random_state(before, self.lm.device)
        if self.accelerator.num_processes > 1:
            masters.sum_gradients(self._summed)
            names = sorted(set(self._gathered(list(losses))))
            sums = self._summed(torch.tensor([losses.get(name, 0.0) for name in names]))
            losses = dict(zip(names, sums.tolist(), strict=True))
        if own is None:
            return losses, {}
        zeros = torch.zeros(sum(w.numel() for w in masters.weights), device=masters.weights[0].device)
        return losses, {term: float(self._summed(own.get(term, zeros)).norm()) for term in losses}

    def _attempt(
        self, batch: Sequence[Example], step: int, masters: Masters, own: dict[str, Tensor] | None
    ) -> tuple[dict[str, float], str, str]:
        """This process's passes: its part of each term; what did not fit and what was not finite, in words.

        `own`, if given, receives this process's part of each weighted term's gradient.
        """
        terms: dict[str, float] = {}
        processes, first = self._split_over()
        n = processes * self.accumulate
        try:
            # a pass for each class of samples, so that their graphs are not alive at once
            for kind in dict.fromkeys(map(type, batch)):
                whole = [sample for sample in batch if type(sample) is kind]
                for part in self._parts(whole, first, n, processes):
                    losses = self.objective.loss(self.lm, part) if part else {}
                    broken = not_finite(losses, step, part)
                    if broken:
                        return terms, "", broken
                    repeats = self.accelerator.num_processes // processes
                    shared = {term: self._share(term, part, whole) / repeats * loss for term, loss in losses.items()}
                    self._backward(shared, masters, own)
                    terms |= {term: terms.get(term, 0.0) + float(loss.detach()) for term, loss in shared.items()}
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise
            return terms, str(error).partition("\n")[0] or "out of memory", ""
        return terms, "", ""

    def _parts(self, whole: list[Example], first: int, n: int, processes: int) -> list[list[Example]]:
        """What each pass takes of a class of samples. On a CPU, those of unlike length go apart, if they may."""
        parts = [whole[i::n] for i in range(first, n, processes)]
        together = self.lm.device.type != "cpu" or not self.objective.additive
        return parts if together else [alike for part in parts for alike in of_similar_length(part)]

    def _backward(self, shared: dict[str, Tensor], masters: Masters, own: dict[str, Tensor] | None) -> None:
        """Add the gradient of one pass to the masters, and that of each term to `own`."""
        weights = self.objective.weights()
        weighted = {term: weights.get(term, 1.0) * loss for term, loss in shared.items()}
        if own is not None:
            for term, loss in weighted.items():
                own[term] = own.get(term, 0.0) + gradient(loss, masters.parameters)
        total = sum(weighted.values())
        if isinstance(total, Tensor):
            self.accelerator.backward(total)
            masters.take_gradients()

    def _share(self, term: str, part: Sequence[Example], whole: Sequence[Example]) -> float:
        """The pass's share of what a term is the mean over; of all samples if none is named after the term."""
        chosen = [sample for sample in whole if sample.term == term] or whole
        kept = [sample for sample in part if sample.term == term] or part
        return sum(map(self.objective.counts, kept)) / sum(map(self.objective.counts, chosen))

    def _split_over(self) -> tuple[int, int]:
        """Number of processes that samples are split over, and the index of this one."""
        return (1, 0) if sharded() else (self.accelerator.num_processes, self.accelerator.process_index)

    def _split_finer(self, samples: int, step: int, why: str) -> None:
        if self._split_over()[0] * self.accumulate >= samples:
            raise torch.OutOfMemoryError(
                f"step {step} does not fit into memory with one sample a pass ({why}); cut the texts shorter "
                "(max_tokens), or take a smaller dtype or model."
            )
        self.accumulate *= 2
        clear_device_cache(garbage_collection=True)
        self.warn(step, f"out of memory; from here on the samples of a step are split into {self.accumulate} passes")

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total

    def _gathered(self, words: list[str]) -> list[str]:
        """The words of all processes."""
        return gather_object(words) if self.accelerator.num_processes > 1 else words


def of_similar_length(samples: Sequence[Example]) -> list[list[Example]]:
    """The samples in groups, so that little time is spent on padding: the shortest has `ALIKE` of the longest's tokens.

    A group below `FEWEST_TOKENS` tokens takes shorter ones too, since small passes are slow.
    """
    groups: list[list[Example]] = []
    for sample in sorted(samples, key=len, reverse=True):
        if groups and (
            len(sample) >= ALIKE * len(groups[-1][0]) or len(groups[-1]) * len(groups[-1][0]) < FEWEST_TOKENS
        ):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def gradient(loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> Float[Tensor, " n"]:
    """The gradient at all parameters, flat, in float32; graph and stored gradients stay as they are."""
    moving = [p for p in parameters if p.requires_grad]
    grads = iter(torch.autograd.grad(loss, moving, retain_graph=True, allow_unused=True))
    found = [next(grads) if p.requires_grad else None for p in parameters]
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).float().flatten() for p, g in zip(parameters, found, strict=True)]
    )


def not_finite(terms: dict[str, Tensor], step: int, batch: Sequence[Example]) -> str:
    """Which term is NaN or infinite, at which step and on which samples, in words; "" if none is."""
    for term, loss in terms.items():
        if not bool(torch.isfinite(loss).all()):
            ids = sorted({sample.id for sample in batch if sample.term == term} or {sample.id for sample in batch})
            return (
                f"the {term} is {float(loss.detach())} at step {step}, on samples {', '.join(ids)}; try a lower "
                "learning rate or float32. The last checkpoint is complete."
            )
    return ""

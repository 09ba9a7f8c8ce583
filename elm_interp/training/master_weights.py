"""What the optimiser works on, and what a resume needs of it: master weights, moments, random states.

Adapters of a bfloat16 base are bfloat16 (see `AdapterSlots.attach`), where a small update would be rounded away; the
optimiser therefore moves float32 copies, and gradients of several passes add up in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Masters:
    """Float32 copies of the adapter's weights; weights that are float32 already are their own masters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]

    def take_gradients(self) -> None:
        """Add the gradients of a backward pass to those of the masters."""
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                grad, parameter.grad = parameter.grad.float(), None
                master.grad = grad if master.grad is None else master.grad.add_(grad)

    def drop_gradients(self) -> None:
        """Forget every gradient, also one of an unfinished pass."""
        for weight in (*self.weights, *self.parameters):
            weight.grad = None

    def sum_gradients(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Replace every gradient by its sum over processes, all in one message."""
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        flat = summed(torch.cat([grad.flatten() for grad in grads]))
        for weight, grad in zip(self.weights, flat.split([g.numel() for g in grads]), strict=True):
            weight.grad = grad.view_as(weight)

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters into the adapter."""
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Weights and moments under flat names, for a checkpoint."""
        state = {}
        for i, weight in enumerate(self.weights):
            state[f"{i}.weight"] = weight.detach()
            state |= {f"{i}.{name}": value for name, value in optimizer.state[weight].items()}
        return state

    def load(self, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for i, weight in enumerate(self.weights):
            found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{i}.")}
            with torch.no_grad():
                weight.copy_(found.pop("weight"))
            # a weight that never had a gradient has no moments; the count of steps stays on the CPU
            if found:
                optimizer.state[weight] = {k: v if k == "step" else v.to(weight.device) for k, v in found.items()}
        self.give_weights()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states that dropout and other draws go on from."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)

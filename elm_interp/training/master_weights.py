"""Float32 master weights of an adapter, and the random states that a resume needs.

Adapters of a bfloat16 base are bfloat16 (see `AdapterSlots.attach`), which would round small updates away. So the
optimiser updates float32 copies, and gradients of several passes add up in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Masters:
    """Float32 copies of an adapter's weights; weights that are float32 already are their own masters.

    Args:
        parameters: the adapter's weights.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]

    def take_gradients(self) -> None:
        """Move the gradients of a backward pass from the adapter to the masters, adding up."""
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                grad, parameter.grad = parameter.grad.float(), None
                master.grad = grad if master.grad is None else master.grad.add_(grad)

    def drop_gradients(self) -> None:
        """Delete every gradient, including one of an unfinished pass."""
        for weight in (*self.weights, *self.parameters):
            weight.grad = None

    def sum_gradients(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Replace every gradient by its sum over processes, in one message."""
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        flat = summed(torch.cat([grad.flatten() for grad in grads]))
        for weight, grad in zip(self.weights, torch.split(flat, [g.numel() for g in grads]), strict=True):
            weight.grad = grad.view_as(weight)

    @torch.no_grad()
    def give_weights(self) -> None:
        """Copy the masters into the adapter, rounded to its dtype."""
        for master, parameter in zip(self.weights, self.parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Weights and optimiser moments under flat names, for a checkpoint."""
        state = {}
        for i, weight in enumerate(self.weights):
            state[f"{i}.weight"] = weight.detach()
            state |= {f"{i}.{name}": value for name, value in optimizer.state[weight].items()}
        return state

    def load(self, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for i, weight in enumerate(self.weights):
            found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{i}.")}
            with torch.no_grad():
                weight.copy_(found.pop("weight"))
            # a weight that never had a gradient has no moments; the count of steps stays on the CPU
            if found:
                optimizer.state[weight] = {k: v if k == "step" else v.to(weight.device) for k, v in found.items()}
        self.give_weights()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global random generators."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)

"""Several processes of one `accelerate launch`: which one writes, on which device, and whether they share one model.

Under FSDP (configs/fsdp.yaml) the weights of every block are spread over the processes and gathered when it runs. All
processes must then run the same blocks at the same time, so each works on every sample: they share memory, not work.
"""

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM


def first_process() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def several_processes() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def sharded() -> bool:
    """Whether the weights of one model are spread over the processes."""
    return several_processes() and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def own_gpu() -> str:
    """The GPU of this process."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if several_processes() else "cuda"


def shard(lm: "HookedLM", device: str) -> None:
    """Spread the blocks of a model on the CPU over all processes; each process gets all other weights on its device."""
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = torch.device(device).type
    state = PartialState(cpu=kind == "cpu")
    mesh = init_device_mesh(kind, (state.num_processes,))
    for block in lm.blocks:
        # by default, a block without a sharded parent keeps its gathered weights after a pass
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    inside = {id(p) for p in lm.blocks.parameters()}
    for tensor in (*lm.model.parameters(), *lm.model.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)

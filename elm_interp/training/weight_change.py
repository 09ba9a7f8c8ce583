"""How far training moved each parameter, by layer and module. A layer whose adapter learned nothing erased nothing.

table = weight_changes(start, end)      # tidy rows: layer, site, value = length of the change
unmoved_layers(start, end)              # [], or the layers without any effect
"""

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from elm_interp.errors import not_finite
from elm_interp.models import HookedLM
from elm_interp.results import frame, measurements


def snapshot(lm: HookedLM, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Float32 copies of parameters by name; a name starts at its block, as in "4.mlp.up_proj.lora_A"."""
    wanted = {id(p) for p in parameters}
    blocks = re.escape(lm.layout.blocks)
    found = {}
    for name, parameter in lm.model.named_parameters():
        if id(parameter) in wanted:
            within = re.sub(rf"^.*?{blocks}\.(?=\d)", "", name)
            found[re.sub(r"(?:\.slot\d+)?\.weight$", "", within)] = parameter.detach().clone().float()
    return found


def weight_changes(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> pd.DataFrame:
    """Euclidean length of the change of each parameter, between two snapshots; `n` is its number of entries.

    Raises:
        NotFiniteError: a parameter is NaN or infinite; names it.
    """
    for name, after in end.items():
        if not bool(after.isfinite().all()):
            raise not_finite(f"the trained weights of {name}")
    return frame(
        [
            measurements(
                "training.moved",
                float((end[name] - before).norm()),
                layer=_layer(name),
                site=name.partition(".")[2],
                n=before.numel(),
                protocol="Euclidean length of the change",
            )
            for name, before in start.items()
        ]
    )


def unmoved_layers(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> list[int]:
    """Layers in which no parameter that decides the adapter's effect changed, between two snapshots.

    For a LoRA only the B matrices decide. They start at zero, while weight decay moves the A matrices even without
    learning.
    """
    found = []
    for layer in sorted({_layer(name) for name in start}):
        names = [name for name in start if _layer(name) == layer]
        deciding = [name for name in names if not start[name].any()] or names
        if not any(bool((end[name] != start[name]).any()) for name in deciding):
            found.append(layer)
    return found


def _layer(name: str) -> int:
    return int(name.partition(".")[0])

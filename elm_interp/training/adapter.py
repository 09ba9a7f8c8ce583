"""Adapter: which weights a method trains, in which form. One class and one check serve all methods.

adapter = Adapter(layers=(4, 5, 6, 7), rank=4)
adapter.problems(n_layers=32)                   # [], or what cannot work
lm.adapters.attach(adapter.config(lm))
"""

from dataclasses import dataclass

from peft import LoraConfig

from elm_interp.models import HookedLM
from elm_interp.training.settings import number_problems, positive_problems

MODULES = ("attn", "mlp", "attn+mlp", "mlp-out")
"""What `Adapter.modules` may be."""


@dataclass(frozen=True)
class Adapter:
    """The trained part of a model: a LoRA, or whole weights, of some projections of some blocks."""

    layers: tuple[int, ...] | None = None
    """0-based blocks that are trained; None trains all."""
    rank: int | None = None
    """Rank of the LoRA; None trains the weights whole."""
    alpha: float = 16.0
    """A LoRA's update is scaled by alpha / rank; whole weights have no scale."""
    modules: str = "attn+mlp"
    """Which projections: "attn", "mlp", "attn+mlp" or "mlp-out" (the MLP's last)."""
    dropout: float = 0.0
    """On a LoRA's input while training; whole weights take none."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # a list or range is fine too

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words; `n_layers` is None while the model's depth is not known."""
        found = [] if self.layers is None else _layer_problems(self.layers, n_layers)
        found += number_problems(self, {"rank": 1}) + positive_problems(self, ("alpha",))
        if self.modules not in MODULES:
            found.append(f"modules is {self.modules!r}; expected one of {', '.join(MODULES)}")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout}; expected 0 to below 1")
        elif self.rank is None and self.dropout:
            found.append(f"dropout is {self.dropout}, but whole weights (rank None) take none; set it to 0")
        return found

    def config(self, lm: HookedLM) -> LoraConfig:
        """The peft configuration for a model, for `lm.adapters.attach`."""
        layers = range(lm.n_layers) if self.layers is None else self.layers
        return lm.lora(layers, rank=self.rank, alpha=self.alpha, modules=self.modules, dropout=self.dropout)


def _layer_problems(layers: tuple[int, ...], n_layers: int | None) -> list[str]:
    found = []
    if not layers:
        found.append("layers is empty; name at least one block")
    if len(set(layers)) != len(layers) or any(layer < 0 for layer in layers):
        found.append(f"layers are {list(layers)}; expected different indices from 0")
    if n_layers is not None and any(layer >= n_layers for layer in layers):
        found.append(f"layers go to {max(layers)}, but the model has layers 0 to {n_layers - 1}")
    return found

"""What `run_with_cache` returns: activations under TransformerLens's names, or stacked over layers under short names."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import UnknownSiteError, unknown
from elm_interp.models.batch import Batch, Positions
from elm_interp.models.sites import Site


class ActivationCache(Mapping[str, Tensor]):
    """Read-only mapping from site names to activations.

    A full name (`blocks.7.hook_resid_post`) gives (batch, [pos,] d_model); a short name (`resid_post`) stacks that site's
    layers, ascending, to (batch, layer, [pos,] d_model).
    """

    def __init__(self, values: dict[Site, Tensor], batch: Batch, positions: Positions) -> None:
        self._values = values
        self.lengths: Int[Tensor, " batch"] = batch.lengths
        """Real tokens of each row: with positions="all", what lies beyond is zero."""
        self.positions = positions

    def layers(self, name: str) -> list[int]:
        """The layers held for a short site name, ascending: the order of the layer axis."""
        return sorted(site.layer for site in self._values if site.name == name)

    def __getitem__(self, name: str) -> Float[Tensor, "batch ..."]:
        for site, value in self._values.items():
            if name == site.full_name:
                return value
        layers = self.layers(name.removeprefix("hook_"))
        if not layers:
            shorts = dict.fromkeys(site.name for site in self._values)
            raise unknown("cache entry", name, [*shorts, *self], UnknownSiteError)
        return torch.stack([self._values[Site(layer, name.removeprefix("hook_"))] for layer in layers], dim=1)

    def __iter__(self) -> Iterator[str]:
        return (site.full_name for site in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        names = dict.fromkeys(site.name for site in self._values)
        parts = []
        for name in names:
            value = self[name]
            parts.append(
                f"{name} {tuple(value.shape)}"
                + (f" layers {self.layers(name)[0]}-{self.layers(name)[-1]}" if name != "embed" else "")
            )
        return f"ActivationCache({'; '.join(parts)}; positions={self.positions!r})"

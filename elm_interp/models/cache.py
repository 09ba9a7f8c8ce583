"""The cache that `run_with_cache` returns: activations by full name, or by short name with all layers stacked."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elm_interp.errors import UnknownSiteError, unknown
from elm_interp.models.batch import Batch, Positions
from elm_interp.models.sites import Site


class ActivationCache(Mapping[str, Tensor]):
    """Read-only mapping from site names to activations.

    A full name (`blocks.7.hook_resid_post`) gives (batch, [pos,] d_model). A short name (`resid_post`) stacks the
    layers of that site, ascending: (batch, layer, [pos,] d_model).
    """

    def __init__(self, values: dict[Site, Tensor], batch: Batch, positions: Positions) -> None:
        self._values = values
        self.lengths: Int[Tensor, " batch"] = batch.lengths
        """Number of real tokens of each row. With positions="all", values after a row's end are zero."""
        self.positions = positions

    def layers(self, name: str) -> list[int]:
        """The layers of a short site name, ascending: the order of the layer axis."""
        return sorted(site.layer for site in self._values if site.name == name)

    def __getitem__(self, name: str) -> Float[Tensor, "batch ..."]:
        for site, value in self._values.items():
            if name == site.full_name:
                return value
        short = name.removeprefix("hook_")
        layers = self.layers(short)
        if not layers:
            raise unknown("cache entry", name, [*self._shorts(), *self], UnknownSiteError)
        return torch.stack([self._values[Site(layer, short)] for layer in layers], dim=1)

    def __iter__(self) -> Iterator[str]:
        return (site.full_name for site in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        parts = "; ".join(" ".join(part) for part in self._described())
        return f"ActivationCache({parts}; positions={self.positions!r})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in part)}</tr>" for part in self._described())
        titles = "<tr><th>site</th><th>shape</th><th>layers</th></tr>"
        return f"<table>{titles}{rows}<caption>ActivationCache, positions={self.positions!r}</caption></table>"

    def _shorts(self) -> list[str]:
        return list(dict.fromkeys(site.name for site in self._values))

    def _described(self) -> Iterator[tuple[str, str, str]]:
        """Name, shape and layers of each site."""
        for name in self._shorts():
            layers = self.layers(name)
            span = "" if layers[-1] < 0 else f"layers {layers[0]}-{layers[-1]}"
            yield name, str(tuple(self[name].shape)), span

"""Views of a store: a tidy frame of its contents, how it prints, and a labelled array that reads lazily.

store.frame()
store.xarray("truth").sel(checkpoint="base", layer=7)
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elm_interp.activations.index import COLUMNS, Entry, Index
from elm_interp.errors import StoreError

if TYPE_CHECKING:
    from xarray import DataArray


def frame(index: Index) -> pd.DataFrame:
    """One row for each entry; see `ActivationStore.frame`."""
    return pd.DataFrame([entry.row for entry in index.entries.values()], columns=COLUMNS)


def summary(folder: Path, index: Index) -> str:
    """One line: each dataset with its number of checkpoints and examples, and the size of the store."""
    held = []
    for dataset in index.tables:
        entries = list(index.of(dataset).values())
        checkpoints, sites = {e.checkpoint for e in entries}, {e.site for e in entries}
        at = f" at {len(sites)} sites" if len(sites) > 1 else ""
        held.append(f"{dataset}: {len(checkpoints)} checkpoints{at} of {entries[0].n} examples")
    size = sum(entry.bytes for entry in index.entries.values())
    return f"ActivationStore({str(folder)!r}: {'; '.join(held) or 'empty'}; {size / 1e6:.1f} MB)"


def html(folder: Path, index: Index) -> str:
    """The summary and, below it, the frame as a table."""
    head = f"<p><code>{escape(summary(folder, index))}</code></p>"
    return head + frame(index).to_html(index=False, max_rows=20) if index.entries else head


def labelled(entries: Sequence[Entry], examples: pd.DataFrame, read: Callable[..., Any]) -> "DataArray":
    """Entries of one dataset as one array; see `ActivationStore.xarray`.

    Args:
        entries: one for each checkpoint, all of one site.
        examples: of the dataset.
        read: from (dataset, checkpoint, layers, site=) to (example, layer, d_model).

    Raises:
        ImportError: xarray is not installed.
        StoreError: checkpoints of other sites, layers or widths.
    """
    try:
        import xarray
        from xarray.backends import BackendArray
        from xarray.core import indexing
    except ImportError as error:
        raise ImportError(f'xarray could not be imported ({error}); run: pip install "elm-interp[xarray]"') from error
    like = entries[0]
    other = [e.checkpoint for e in entries if (e.site, e.layers, e.d_model) != (like.site, like.layers, like.d_model)]
    if other:
        raise StoreError(
            f"checkpoints of {like.dataset!r} have other sites, layers or widths than {like.checkpoint!r}: "
            f"{', '.join(other)}."
        )

    class Lazy(BackendArray):
        shape = (len(entries), like.n, like.layers, like.d_model)
        dtype = np.dtype("float32")

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            checkpoints, layers = (np.atleast_1d(np.arange(self.shape[axis])[key[axis]]) for axis in (0, 2))
            found = np.empty((len(checkpoints), like.n, len(layers), like.d_model), self.dtype)
            for place, number in enumerate(checkpoints if len(layers) else ()):
                entry = entries[number]
                found[place] = read(entry.dataset, entry.checkpoint, layers.tolist(), site=entry.site).float().numpy()
            # a single index drops its axis; begin at the last axis, so that earlier axes keep their place
            whole = [0 if isinstance(k, int | np.integer) else slice(None) for k in key]
            rest = [whole[0], key[1], whole[2], key[3]]
            for axis in (3, 2, 1, 0):
                found = found[(slice(None),) * axis + (rest[axis],)]
            return found

    coordinates = {column: ("example", examples[column].to_numpy()) for column in examples}
    data = xarray.Variable(("checkpoint", "example", "layer", "d_model"), indexing.LazilyIndexedArray(Lazy()))
    labels = {"checkpoint": [e.checkpoint for e in entries], "layer": np.arange(like.layers)}
    about = {"dataset": like.dataset, "site": like.site, "positions": like.positions}
    return xarray.DataArray(data, coords={**labels, **coordinates}, name=like.dataset, attrs=about)

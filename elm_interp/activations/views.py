"""Views of a store: a tidy frame of what it holds, how it prints, and a labelled array that reads what is looked at.

store.frame()
store.xarray("truth").sel(checkpoint="base", layer=7)
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elm_interp.activations.index import Entry, Index
from elm_interp.errors import StoreError

if TYPE_CHECKING:
    from xarray import DataArray

COLUMNS = [
    "dataset",
    "checkpoint",
    "site",
    "positions",
    "layers",
    "examples",
    "d_model",
    "dtype",
    "model",
    "adapter",
    "fingerprint",
    "bytes",
]


def frame(index: Index) -> pd.DataFrame:
    """One row an entry; see `ActivationStore.frame`."""
    rows = [{**vars(e), "examples": e.n, "bytes": e.bytes} for e in index.entries.values()]
    return pd.DataFrame([{column: row[column] for column in COLUMNS} for row in rows], columns=COLUMNS)


def summary(folder: Path, index: Index) -> str:
    """One line: the datasets, with how many checkpoints and examples each has, and the size."""
    held = []
    for dataset in index.tables:
        entries = list(index.of(dataset).values())
        checkpoints, sites = {e.checkpoint for e in entries}, {e.site for e in entries}
        at = f" at {len(sites)} sites" if len(sites) > 1 else ""
        held.append(f"{dataset}: {len(checkpoints)} checkpoints{at} of {entries[0].n} examples")
    size = sum(entry.bytes for entry in index.entries.values())
    return f"ActivationStore({str(folder)!r}: {'; '.join(held) or 'empty'}; {size / 1e6:.1f} MB)"


def html(folder: Path, index: Index) -> str:
    """The line and, below it, the frame as a table."""
    head = f"<p><code>{escape(summary(folder, index))}</code></p>"
    return head + frame(index).to_html(index=False, max_rows=20) if index.entries else head


def labelled(entries: Sequence[Entry], examples: pd.DataFrame, read: Callable[..., Any]) -> "DataArray":
    """Entries of one dataset as one array; see `ActivationStore.xarray`.

    Args:
        entries: one a checkpoint, of one site.
        examples: of the dataset.
        read: (dataset, checkpoint, layers, site=) to (example, layer, d_model).
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
            f"checkpoints of {like.dataset!r} have other sites, layers or widths than {like.checkpoint!r}: {', '.join(other)}."
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
            # one number drops its axis; from the last axis on, so that those before stay where they are
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

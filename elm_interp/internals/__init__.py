"""Looking inside: norms and geometry of activations. Importing this declares the metrics."""

from elm_interp.internals.geometry import (
    cka,
    cosine,
    difference,
    effective_rank,
    pca_shift,
    separation,
    subspace_angle,
)
from elm_interp.internals.norms import outlier_dimensions, token_norms

__all__ = [
    "cka",
    "cosine",
    "difference",
    "effective_rank",
    "outlier_dimensions",
    "pca_shift",
    "separation",
    "subspace_angle",
    "token_norms",
]

"""Geometry: how far an erased model's activations moved from the base's on the same texts, by layer.

An eraser that acts on the concept alone moves forget text and leaves retain text where it was. One that pushes
activations off course (RMU) moves them at its layer and keeps them there; one that edits the output distribution (ELM)
should let them come back.

Per text: the length of the difference as a share of the base's, and the cosine. Of the whole set: CKA, PCA shift,
subspace angle, effective rank, and how well a direction separates forget from retain text. These are marked
"descriptive": in published tests they hardly tell erased from ignorant models, so no conclusion should rest on them.

Shapes: activations are (example, layer, d_model), each text's mean over tokens without the first; results are (layer,).

    table = measure(erased, "geometry.*")
    cka(x, base)
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from elm_interp.errors import DataError, not_finite
from elm_interp.internals.norms import layer_rows, mean_activations, mean_rows
from elm_interp.metrics import Rows, Subject, metric

COMPONENTS = 8
"""Directions of a text set's main subspace."""
Activations = Float[Tensor, "example layer d_model"]
ByLayer = Float[Tensor, " layer"]


def difference(x: Activations, base: Activations) -> Float[Tensor, "example layer"]:
    """Length of the difference, as a share of the base's length.

    Raises:
        DataError: activations of the base that are all zeros, or sets that do not pair.
        NotFiniteError: activations that are NaN or infinite; names example and layer. So do all functions here.
    """
    _check_pair(x, base)
    length = base.norm(dim=-1)
    if not bool(length.all()):
        layer, example = (length == 0).T.nonzero()[0].tolist()
        raise DataError(f"the base's activation of example {example} at layer {layer} is all zeros; was it masked out?")
    share: Tensor = (x - base).norm(dim=-1) / length
    return share


def cosine(x: Activations, base: Activations) -> Float[Tensor, "example layer"]:
    """Cosine of the angle between the two."""
    _check_pair(x, base)
    return torch.nn.functional.cosine_similarity(x, base, dim=-1)


def cka(x: Activations, base: Activations) -> ByLayer:
    """Linear centred kernel alignment, debiased (Song et al. 2012; Nguyen et al. 2021).

    1 is the same up to rotation and scale. The usual estimate is near 1 for any two sets with fewer examples than
    dimensions; this one is near 0 for unrelated sets.

    Raises:
        DataError: fewer than four examples, or sets that do not pair.
    """
    _check_pair(x, base, least=4)
    a, b = (_centred(part).double() for part in (x, base))
    a, b = a @ a.mT, b @ b.mT
    return _hsic(a, b) / (_hsic(a, a) * _hsic(b, b)).sqrt()


def pca_shift(x: Activations, base: Activations) -> ByLayer:
    """How far the mean moved along the base's first principal component, in the base's standard deviations there."""
    _check_pair(x, base)
    _, s, v = torch.linalg.svd(_centred(base), full_matrices=False)
    moved = (x - base).mean(0)
    found: Tensor = (moved * v[:, 0]).sum(-1).abs() / (s[:, 0] / len(base) ** 0.5)
    return found


def subspace_angle(x: Activations, base: Activations, *, components: int = COMPONENTS) -> ByLayer:
    """Mean principal angle between the spans of the first principal components, in degrees: 0 same, 90 unrelated."""
    _check_pair(x, base, least=components + 1)
    parts = (_centred(part).double() for part in (x, base))
    first, second = (torch.linalg.svd(part, full_matrices=False)[2][:, :components] for part in parts)
    cosines = torch.linalg.svdvals(first @ second.mT).clamp(max=1)
    return torch.rad2deg(cosines.arccos()).mean(-1)


def effective_rank(x: Activations) -> ByLayer:
    """How many directions are in use: exponential of the singular values' entropy (Roy & Vetterli 2007)."""
    _check_finite(x)
    s = torch.linalg.svdvals(_centred(x).double())
    shares = s / s.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy.exp()


def separation(forget: Activations, retain: Activations) -> ByLayer:
    """AUC of telling forget from retain text along the difference of means, fitted to one half, read on the other."""
    _check_finite(forget, retain)
    scores = []
    for own, other in ((0, 1), (1, 0)):
        way = forget[own::2].mean(0) - retain[own::2].mean(0)
        a, b = ((part[other::2] * way).sum(-1) for part in (forget, retain))
        wins = torch.sign(a[:, None] - b[None])
        scores.append((wins.mean((0, 1)) + 1) / 2)
    return torch.stack(scores).mean(0)


_SHARED: Any = {"shows": "describes", "better": "neither", "on_card": False}
_MEANS = "mean over tokens, first left out"


@metric("geometry.forget.difference", unit="× base", needs_base=True, **_SHARED)
def forget_difference(subject: Subject) -> Rows:
    """How far activations on passages of the concept moved, as a share of their length in the base, by layer."""
    return mean_rows("geometry.forget.difference", difference(*_pair(subject, "forget")), protocol=_MEANS)


@metric("geometry.retain.difference", unit="× base", needs_base=True, **_SHARED)
def retain_difference(subject: Subject) -> Rows:
    """How far activations on passages to keep moved, as a share of their length in the base, by layer."""
    return mean_rows("geometry.retain.difference", difference(*_pair(subject, "retain")), protocol=_MEANS)


@metric("geometry.forget.cosine", needs_base=True, **_SHARED)
def forget_cosine(subject: Subject) -> Rows:
    """Cosine between erased and base activations on the same passage of the concept, by layer."""
    return mean_rows("geometry.forget.cosine", cosine(*_pair(subject, "forget")), protocol=_MEANS)


@metric("geometry.retain.cosine", needs_base=True, **_SHARED)
def retain_cosine(subject: Subject) -> Rows:
    """Cosine between erased and base activations on the same passage to keep, by layer."""
    return mean_rows("geometry.retain.cosine", cosine(*_pair(subject, "retain")), protocol=_MEANS)


@metric("geometry.compared", protocol="descriptive", needs_base=True, cost="dear", **_SHARED)
def compared(subject: Subject) -> Rows:
    """Descriptive: CKA, PCA shift and subspace angle to the base, on forget and on retain text, by layer."""
    rows: list[dict[str, Any]] = []
    for kind in ("forget", "retain"):
        pair = _pair(subject, kind)
        for name, function in (("cka", cka), ("pca_shift", pca_shift), ("subspace_angle", subspace_angle)):
            rows += layer_rows(f"geometry.{kind}.{name}", function(*pair), len(pair[0]))
    return rows


@metric("geometry.shape", protocol="descriptive", cost="dear", **_SHARED)
def shape(subject: Subject) -> Rows:
    """Descriptive: effective rank of forget and retain text, and the AUC of telling one from the other, by layer."""
    forget, retain = (mean_activations(subject, kind) for kind in ("forget", "retain"))
    return [
        *layer_rows("geometry.forget.effective_rank", effective_rank(forget), len(forget)),
        *layer_rows("geometry.retain.effective_rank", effective_rank(retain), len(retain)),
        *layer_rows("geometry.separation", separation(forget, retain), len(forget) + len(retain), chance=0.5),
    ]


def _pair(subject: Subject, kind: str) -> tuple[Activations, Activations]:
    return mean_activations(subject, kind), mean_activations(subject.base, kind)


def _centred(x: Activations) -> Float[Tensor, "layer example d_model"]:
    return (x - x.mean(0)).transpose(0, 1)


def _hsic(a: Float[Tensor, "layer n n"], b: Float[Tensor, "layer n n"]) -> ByLayer:
    """The unbiased estimate of the Hilbert-Schmidt criterion, up to a factor that cancels in CKA."""
    n = a.shape[-1]
    # leave out each example's product with itself
    a, b = (part - torch.diag_embed(part.diagonal(dim1=1, dim2=2)) for part in (a, b))
    together = (a * b).sum((1, 2)) + a.sum((1, 2)) * b.sum((1, 2)) / ((n - 1) * (n - 2))
    return together - 2 / (n - 2) * (a.sum(1) * b.sum(1)).sum(-1)


def _check_finite(*parts: Activations) -> None:
    for x in parts:
        if not bool(x.isfinite().all()):
            layer, example = (~x.isfinite().all(-1)).T.nonzero()[0].tolist()
            raise not_finite(f"activation of example {example} at layer {layer}", x.dtype)


def _check_pair(x: Activations, base: Activations, least: int = 1) -> None:
    if x.shape != base.shape or x.ndim != 3 or len(x) < least:
        raise DataError(
            f"activations of shape {tuple(x.shape)} and {tuple(base.shape)} cannot be compared; expected "
            f"(example, layer, d_model) of the same {least} or more examples."
        )
    _check_finite(x, base)

"""Norms: how long the residual stream is, by layer, on text of the concept and on other text.

A method that pushes activations far off course (RMU) changes the norm at its layer. One that edits the output
distribution (ELM) should keep norms as they were, above all on retain text. The first token is left out: other
tokens attend to it strongly, and its norm is often hundreds of times that of the others.

Shapes: (example, layer): the mean over a text's tokens of the L2 norm (not the norm of their mean).

    norms = token_norms(lm, texts)
    table = measure(subject, "norm.*")
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.collect import check_finite, collect_texts, prepare_batches, reduce_layers
from elm_interp.data.batching import PASS_TOKENS
from elm_interp.errors import DataError, not_finite
from elm_interp.metrics import Rows, Subject, metric
from elm_interp.models import HookedLM
from elm_interp.models.tokens import fitting
from elm_interp.probes.datasets import passage_dataset
from elm_interp.results import bootstrap, measurements

PROTOCOL = "mean token norm, first token left out"
OUTLIER = 10.0
"""An outlier is this many times the median dimension; in small models a few are far above, all others far below."""


@metric("norm.forget", shows="describes", better="neither", unit="L2 norm", protocol=PROTOCOL, on_card=False)
def forget(subject: Subject) -> Rows:
    """Mean L2 norm of the residual stream on passages of the concept, by layer."""
    return mean_rows("norm.forget", _norms(subject, "forget"))


@metric("norm.retain", shows="describes", better="neither", unit="L2 norm", protocol=PROTOCOL, on_card=False)
def retain(subject: Subject) -> Rows:
    """Mean L2 norm of the residual stream on passages to keep, by layer."""
    return mean_rows("norm.retain", _norms(subject, "retain"))


_RATIO: Any = {"shows": "describes", "better": "neither", "unit": "× base", "needs_base": True, "on_card": False}


@metric("norm.forget.ratio", protocol=PROTOCOL, **_RATIO)
def forget_ratio(subject: Subject) -> Rows:
    """Norm on passages of the concept as a multiple of the base's on the same passage, by layer."""
    return mean_rows("norm.forget.ratio", _norms(subject, "forget") / _norms(subject.base, "forget"))


@metric("norm.retain.ratio", protocol=PROTOCOL, **_RATIO)
def retain_ratio(subject: Subject) -> Rows:
    """Norm on passages to keep as a multiple of the base's on the same passage, by layer."""
    return mean_rows("norm.retain.ratio", _norms(subject, "retain") / _norms(subject.base, "retain"))


@metric(
    "geometry.outliers",
    shows="describes",
    better="neither",
    unit="dimensions",
    protocol="root mean square over texts, of token means",
    on_card=False,
)
def outliers(subject: Subject) -> Rows:
    """Dimensions of the residual stream many times as large as the median one, on passages to keep, by layer."""
    x = mean_activations(subject, "retain")
    return layer_rows("geometry.outliers", outlier_dimensions(x).sum(-1), len(x))


def outlier_dimensions(
    x: Float[Tensor, "example layer d_model"], *, times: float = OUTLIER
) -> Bool[Tensor, "layer d_model"]:
    """Which dimensions have a root mean square over examples above so many times that of the median dimension.

    A handful of such dimensions can carry most of a norm or a cosine: look here before believing either.
    """
    if not bool(x.isfinite().all()):
        raise not_finite("the activations", x.dtype)
    size = x.square().mean(0).sqrt()
    return size > times * size.median(-1, keepdim=True).values


def mean_activations(subject: Subject, kind: str) -> Float[Tensor, "example layer d_model"]:
    """Mean over tokens, without the first, of the activations on "forget" or "retain" passages; read once."""
    return _read(subject, kind, collect_texts, positions="mean")


def token_norms(
    lm: HookedLM,
    texts: Sequence[str],
    *,
    skip: int = 1,
    site: str = "resid_post",
    max_tokens: int = PASS_TOKENS,
    progress: bool = False,
) -> Float[Tensor, "example layer"]:
    """Mean over a text's tokens of the L2 norm of their activations, at every layer.

    Args:
        lm: the model, in the state to read.
        texts: each needs more than `skip` tokens.
        skip: first tokens to leave out.
        site: short name, see `elm_interp.models.sites`.
        max_tokens: padded tokens of a pass; every layer of them is in memory at once.
        progress: show a bar.

    Raises:
        DataError: a text with too few tokens; the message names it.
        NotFiniteError: a norm is NaN or infinite; the message names layer and text.
    """
    out = torch.empty(len(texts), 0)
    batches = prepare_batches(lm, texts, skip=skip, max_tokens=max_tokens)
    for rows, batch in tqdm(batches, desc="norms", leave=False, disable=not progress):
        found = reduce_layers(lm, batch, _mean_norm, site=site, skip=skip).cpu()
        check_finite(found, [texts[row] for row in rows], site, lm, "norm of ")
        if not out.numel():
            out = torch.empty(len(texts), found.shape[1])
        out[rows] = found
    return out


def mean_rows(name: str, values: Float[Tensor, "example layer"], **columns: Any) -> list[dict[str, Any]]:
    """A row for each layer: the mean over examples, with a bootstrap interval.

    Raises:
        NotFiniteError: a value is NaN or infinite; the message names layer and example.
    """
    if not bool(values.isfinite().all()):
        layer, example = (~values.isfinite()).T.nonzero()[0].tolist()
        raise not_finite(f"{name} of example {example} at layer {layer}")
    shared = {"site": "resid_post", "position": "mean", "n": len(values), **columns}
    by_layer = enumerate(values.double().T.numpy())
    return [measurements(name, v.mean(), layer=layer, ci=bootstrap(v), **shared) for layer, v in by_layer]


def layer_rows(name: str, values: Float[Tensor, " layer"], n: int, **columns: Any) -> list[dict[str, Any]]:
    """A row for each layer: one number of a whole set of n texts, without an interval."""
    shared = {"site": "resid_post", "position": "mean", "n": n, **columns}
    return [measurements(name, value, layer=layer, **shared) for layer, value in enumerate(values.tolist())]


def _mean_norm(values: Float[Tensor, "batch pos d_model"], inside: Tensor) -> Float[Tensor, " batch"]:
    norms: Tensor = values.norm(dim=-1)
    return (norms * inside).sum(1) / inside.sum(1)


def _norms(subject: Subject, kind: str) -> Float[Tensor, "example layer"]:
    return _read(subject, kind, token_norms)


def _read(subject: Subject, kind: str, reader: Callable[..., Tensor], **options: Any) -> Tensor:
    """What a reader gives on "forget" or "retain" passages, once for each state."""
    dataset = passage_dataset(subject.concept, kind)
    if dataset is None:
        raise DataError(f"{subject.concept.name} has no {kind} passages to read activations on.")

    def read() -> Tensor:
        with subject.on() as lm:
            fits = fitting(lm, dataset.texts, f"{kind} passages")
            if not fits:
                raise DataError(
                    f"no {kind} passage of {subject.concept.name} fits into {lm.n_ctx} tokens, the context."
                )
            return reader(lm, [dataset.texts[i] for i in fits], skip=dataset.skip, **options)

    return subject.memo((reader.__name__, kind), read)

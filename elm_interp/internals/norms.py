"""Norms: how long the residual stream is, layer by layer, on text of the concept and on other text.

A method that pushes activations far off (RMU) shows it as a changed norm at its layer; one that edits what is said (ELM) should
keep norms where they were, on retained text above all. The first token is left out: it draws attention from everywhere, and
its norm is often hundreds of times that of the others.

Shapes: (example, layer): the mean over a text's tokens of the L2 norm (not the norm of their mean).

    norms = token_norms(lm, texts)
    table = measure(subject, "norm.*")
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.collect import collect_texts, prepare_batches, reduce_layers
from elm_interp.data.batching import PASS_TOKENS
from elm_interp.metrics import Subject, metric
from elm_interp.models import HookedLM
from elm_interp.probes.datasets import concept_datasets
from elm_interp.results import bootstrap, measurements

PROTOCOL = "mean token norm, first token left out"
OUTLIER = 10.0
"""Times the median dimension: in small models a few dimensions stand far above this, and the bulk far below."""


@metric("norm.forget", shows="describes", better="neither", unit="L2 norm", protocol=PROTOCOL)
def forget(subject: Subject) -> list[dict[str, Any]]:
    """Mean L2 norm of the residual stream on passages of the concept, by layer."""
    return _rows("norm.forget", _norms(subject, "forget"))


@metric("norm.retain", shows="describes", better="neither", unit="L2 norm", protocol=PROTOCOL)
def retain(subject: Subject) -> list[dict[str, Any]]:
    """Mean L2 norm of the residual stream on passages to keep, by layer."""
    return _rows("norm.retain", _norms(subject, "retain"))


@metric("norm.forget.ratio", shows="describes", better="neither", unit="× base", protocol=PROTOCOL, needs_base=True)
def forget_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Norm on passages of the concept as a multiple of the base's on the same passage, by layer."""
    return _rows("norm.forget.ratio", _norms(subject, "forget") / _norms(subject.base, "forget"))


@metric("norm.retain.ratio", shows="describes", better="neither", unit="× base", protocol=PROTOCOL, needs_base=True)
def retain_ratio(subject: Subject) -> list[dict[str, Any]]:
    """Norm on passages to keep as a multiple of the base's on the same passage, by layer."""
    return _rows("norm.retain.ratio", _norms(subject, "retain") / _norms(subject.base, "retain"))


@metric(
    "geometry.outliers",
    shows="describes",
    better="neither",
    unit="dimensions",
    protocol="root mean square over texts, of token means",
)
def outliers(subject: Subject) -> list[dict[str, Any]]:
    """Dimensions of the residual stream that are many times as large as the median one, on passages to keep, by layer."""
    x = mean_activations(subject, "retain")
    shared = {"site": "resid_post", "position": "mean", "n": len(x)}
    counts = outlier_dimensions(x).sum(-1).tolist()
    return [measurements("geometry.outliers", count, layer=layer, **shared) for layer, count in enumerate(counts)]


def outlier_dimensions(
    x: Float[Tensor, "example layer d_model"], *, times: float = OUTLIER
) -> Bool[Tensor, "layer d_model"]:
    """Which dimensions have a root mean square over examples of more than so many times the median dimension's.

    A handful of such dimensions can carry most of a norm or a cosine: look here before believing either.
    """
    size = x.square().mean(0).sqrt()
    return size > times * size.median(-1, keepdim=True).values


def mean_activations(subject: Subject, kind: str) -> Float[Tensor, "example layer d_model"]:
    """The mean over tokens, without the first, of the subject's activations on "forget" or "retain" passages; read once."""
    dataset = concept_datasets(subject.concept, [f"{kind}_text"])[f"{kind}_text"]

    def read() -> Tensor:
        with subject.on() as lm:
            return collect_texts(lm, dataset.texts, positions="mean", skip=dataset.skip)

    return subject.memo(("mean activations", kind), read)


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
    """
    out = torch.empty(len(texts), 0)
    batches = prepare_batches(lm, texts, skip=skip, max_tokens=max_tokens)
    for rows, batch in tqdm(batches, desc="norms", leave=False, disable=not progress):
        found = reduce_layers(lm, batch, _mean_norm, site=site, skip=skip).cpu()
        if not out.numel():
            out = torch.empty(len(texts), found.shape[1])
        out[rows] = found
    return out


def _mean_norm(values: Float[Tensor, "batch pos d_model"], inside: Tensor) -> Float[Tensor, " batch"]:
    return (values.norm(dim=-1) * inside).sum(1) / inside.sum(1)


def _norms(subject: Subject, kind: str) -> Float[Tensor, "example layer"]:
    dataset = concept_datasets(subject.concept, [f"{kind}_text"])[f"{kind}_text"]

    def read() -> Tensor:
        with subject.on() as lm:
            return token_norms(lm, dataset.texts, skip=dataset.skip)

    return subject.memo(("token norms", kind), read)


def _rows(name: str, values: Float[Tensor, "example layer"]) -> list[dict[str, Any]]:
    shared = {"site": "resid_post", "position": "mean", "n": len(values)}
    columns = values.double().T.numpy()
    return [measurements(name, v.mean(), layer=layer, ci=bootstrap(v), **shared) for layer, v in enumerate(columns)]

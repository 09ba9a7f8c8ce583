"""Collecting activations: texts pass through the model in batches of similar length; only some positions are kept.

The unembedding never runs. Checkpoints are adapters that are swapped on one base, and blocks below the lowest adapted
one run once for all of them.

Shapes: (example, layer, d_model) in the order of the texts; layer l is read after block l, before the final norm.

    x = collect_texts(lm, ["Harry lives in", "Owls carry"], positions="last")
    store = ActivationStore("runs/demo/activations")
    collect_datasets(lm, store, {"truth": dataset}, {"base": None, "step-000060": folder})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.dataset import Dataset, check_positions
from elm_interp.activations.fingerprints import fingerprints, origin
from elm_interp.activations.index import Key, for_examples, not_further, other_examples
from elm_interp.activations.shards import ShardWriter
from elm_interp.activations.store import ActivationStore
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.errors import BackendError, DataError, not_finite
from elm_interp.models import Batch, HookedLM
from elm_interp.models.batch import real_tokens
from elm_interp.models.scoring import split_continuations
from elm_interp.models.shared_blocks import reuse_blocks, shared_below
from elm_interp.models.sites import resolve_sites
from elm_interp.models.tokens import fitting

SITE = "resid_post"
SHARED_BYTES = 128 * 2**20
"""Memory for outputs of shared blocks."""
Reduce = Callable[[Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]], Tensor]
"""From activations aligned to the left and the mask of the tokens that count to what is kept of a layer."""
Batches = list[tuple[list[int], Batch]]
"""Indices of texts, and their tokens."""


def collect_texts(
    lm: HookedLM,
    texts: Sequence[str],
    *,
    site: str = SITE,
    positions: str | int = "last",
    skip: int = 0,
    max_tokens: int = PASS_TOKENS,
    progress: bool = False,
) -> Float[Tensor, "example layer d_model"]:
    """Activations of texts at every layer, float32, on the CPU, in the order of the texts.

    Args:
        lm: the model, in the state to read.
        texts: each needs more than `skip` tokens.
        site: short name, see `elm_interp.models.sites`.
        positions: "last", "mean", or an index among a text's own tokens.
        skip: number of first tokens that the mean leaves out (the first token draws attention from everywhere, and its
            norm would drown the rest).
        max_tokens: padded tokens of a forward pass.
        progress: show a bar.

    Raises:
        DataError: a text with too few tokens; the message names it.
        NotFiniteError: an activation is NaN or infinite; the message names site, layer and text.
        ValueError: a text beyond the context.
        UnknownSiteError: no such site.
    """
    check_positions(positions, skip)
    batches = prepare_batches(lm, texts, skip=skip, max_tokens=max_tokens)
    out = torch.empty(0, lm.n_layers, lm.d_model)
    for rows, batch in tqdm(batches, desc="reading", leave=False, disable=not progress):
        found = _read(lm, batch, site, positions, skip).float().cpu()
        check_finite(found, [texts[row] for row in rows], site, lm)
        if not len(out):
            out = torch.empty(len(texts), *found.shape[1:])
        out[rows] = found
    return out


def check_finite(
    values: Float[Tensor, "example layer ..."], texts: Sequence[str], site: str, lm: HookedLM, what: str = ""
) -> None:
    """Check that what was read of texts is finite.

    Args:
        values: for each text and layer.
        texts: what was read.
        site: where.
        lm: the model, whose dtype decides the advice.
        what: of the activations, such as "norm of ".

    Raises:
        NotFiniteError: something is NaN or infinite; names the lowest layer and the text.
    """
    broken = ~values.flatten(2).isfinite().all(-1) if values.ndim > 2 else ~values.isfinite()
    if bool(broken.any()):
        layer, row = broken.T.nonzero()[0].tolist()
        raise not_finite(f"{what}{site} of the text {texts[row][:40]!r} at layer {layer}", lm.dtype)


def paired(
    values: Float[Tensor, "example layer d_model"], directions: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example layer d_model"]:
    """Activations, scaled to unit root mean square, times the direction of their example; in their own dtype.

    A linear probe of the product weighs, dimension by dimension, how far the state points along the direction. With the
    final norm's gains as weights it is the logit lens (of an RMSNorm); with learned weights it tests whether state and
    answer belong together.
    """
    x = values.float()
    x = x * x.square().mean(-1, keepdim=True).add(1e-12).rsqrt()
    return (x * directions[:, None].to(x)).to(values.dtype)


def answer_directions(lm: HookedLM, answers: Sequence[str]) -> Float[Tensor, "example d_model"]:
    """Mean of the base's unembedding rows over the tokens of each answer, as it follows a prompt; float32, on the CPU.

    Raises:
        BackendError: the weights of the unembedding are on another machine.
        ValueError: an answer without a token.
    """
    if lm.is_remote:
        raise BackendError("a remote model's unembedding is not here; leave out datasets with answers, such as truth.")
    rows = {a: split_continuations(lm, "Answer:", [f" {a.strip()}"]).rests[0] for a in dict.fromkeys(answers)}
    with lm.adapter(None):  # all states are paired with the same directions
        found = {answer: lm.unembedding.weight[ids].float().mean(0).cpu() for answer, ids in rows.items()}
    return torch.stack([found[answer] for answer in answers])


def collect_datasets(
    lm: HookedLM,
    store: ActivationStore,
    datasets: Mapping[str, Dataset],
    checkpoints: Mapping[str, str | Path | None],
    *,
    site: str = SITE,
    max_tokens: int = PASS_TOKENS,
    progress: bool = False,
) -> ActivationStore:
    """Write the activations of every dataset at every checkpoint to a store, batch by batch.

    Single tokens are stored in the model's dtype, means in float32. Entries that were made from the same texts and
    weights are not read again. If a dataset continues the stored one, at the same checkpoints, only the new texts are
    read.

    Args:
        lm: the base. Each checkpoint's adapter is put on it; the adapter that was on comes back at the end.
        store: where to write.
        datasets: by the name under which each is stored.
        checkpoints: name to adapter folder; None is the bare base.
        site: short name, see `elm_interp.models.sites`.
        max_tokens: padded tokens of a forward pass.
        progress: show a bar.

    Returns:
        The store. It holds no text beyond the model's context, see `within_context`.

    Raises:
        AdapterError: a checkpoint that cannot be used; all are checked before the first pass.
        DataError: a text with too few tokens.
        NotFiniteError: an activation is NaN or infinite; names site, layer and text. Finished checkpoints are kept.
        StoreError: the store holds a dataset of this name with other examples.
    """
    datasets = {name: kept for name, of in datasets.items() if (kept := within_context(lm, of)) is not None}
    origins = {checkpoint: origin(lm, folder) for checkpoint, folder in checkpoints.items()}
    made_from = {c: fingerprints(lm, datasets, weights, site=site) for c, weights in origins.items()}
    further = {
        name: rest
        for name, dataset in datasets.items()
        if (rest := _further(store, name, dataset, {(name, c, site): of[name] for c, of in made_from.items()}))
    }
    plans = _plans(lm, store, {**datasets, **further}, made_from, max_tokens)
    total = sum(len(plan.batches) * len(plan.checkpoints) for plan in plans)
    with tqdm(total=total, desc="collecting", leave=False, disable=not progress) as bar, ExitStack() as stack:
        appended = {n: stack.enter_context(store.append(n, rest.stored_examples)) for n, rest in further.items()}

        def writer(name: str, checkpoint: str) -> AbstractContextManager[ShardWriter]:
            if name in appended:
                return nullcontext(appended[name][checkpoint, site])
            dataset, found = datasets[name], made_from[checkpoint][name]
            meta = {"site": site, "positions": str(dataset.positions), "fingerprint": found, "skip": dataset.skip}
            meta |= origins[checkpoint]._asdict()
            return store.writer(name, checkpoint, examples=dataset.stored_examples, meta=meta)

        for plan in plans:
            _carry_out(lm, plan, {c: checkpoints[c] for c in plan.checkpoints}, writer, site, bar)
    return store


def within_context(lm: HookedLM, dataset: Dataset) -> Dataset | None:
    """The dataset without the texts beyond the model's context, which a warning lists; None if no text is left."""
    named = [str(name) for name in dataset.examples["id"]] if "id" in dataset.examples else ()
    fits = fitting(lm, dataset.texts, f"texts of dataset {dataset.name!r}", names=named)
    return dataset if len(fits) == len(dataset.texts) else dataset.only(fits)


def checkpoint_name(step: int | None) -> str:
    """The name under which a step's activations are stored; "base" for None."""
    return "base" if step is None else f"step-{step:06d}"


@dataclass(frozen=True)
class _Plan:
    """The passes over datasets that are read at the same positions and missing at the same checkpoints.

    A text of several datasets is read once.
    """

    datasets: dict[str, Dataset]
    checkpoints: list[str]
    texts: list[str]
    batches: Batches
    rows: dict[str, dict[int, list[int]]]
    """For each dataset, the rows of each text in it."""
    directions: dict[str, Tensor | None]
    """For each dataset, what its activations are multiplied with."""

    @property
    def like(self) -> Dataset:
        """Any of the datasets; all have its positions."""
        return next(iter(self.datasets.values()))

    def hand_out(
        self, texts: list[int], values: Float[Tensor, "batch layer d_model"], writers: Mapping[str, ShardWriter]
    ) -> None:
        """Give each dataset's writer the activations of its texts."""
        for name, writer in writers.items():
            places = [(k, row) for k, text in enumerate(texts) for row in self.rows[name].get(text, ())]
            if places:
                taken, rows = zip(*places, strict=True)
                found, directions = values[list(taken)], self.directions[name]
                writer.add(rows, found if directions is None else paired(found, directions[list(rows)]))


def _further(store: ActivationStore, name: str, dataset: Dataset, wanted: Mapping[Key, str]) -> Dataset | None:
    """The texts after those that the store has at all these places; None if the dataset does not continue them."""
    entries = {entry.key: entry.fingerprint for entry in store.entries() if entry.dataset == name}
    if not entries or entries.keys() != wanted.keys():
        return None
    known, whole = store.examples(name), dataset.stored_examples.reset_index(drop=True)
    n = len(known)
    made_from_others = any(entries[key] != for_examples(found, known) for key, found in wanted.items())
    if made_from_others or other_examples(name, known, whole[:n]) or not_further(name, known, whole[n:]):
        return None
    answers = dataset.answers and dataset.answers[n:]
    return replace(dataset, texts=dataset.texts[n:], examples=dataset.examples[n:], answers=answers)


def _plans(
    lm: HookedLM,
    store: ActivationStore,
    datasets: Mapping[str, Dataset],
    made_from: Mapping[str, Mapping[str, str]],
    max_tokens: int,
) -> list[_Plan]:
    """Passes that read what the store lacks, each text tokenised once for all checkpoints."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for checkpoint, found in made_from.items():
        groups: dict[tuple[str | int, int], list[str]] = {}
        for name, dataset in datasets.items():
            if not store.has(name, checkpoint, found[name]):
                groups.setdefault((dataset.positions, dataset.skip), []).append(name)
        for names in groups.values():
            lacking.setdefault(tuple(names), []).append(checkpoint)
    return [_plan(lm, {n: datasets[n] for n in names}, states, max_tokens) for names, states in lacking.items()]


def _plan(lm: HookedLM, datasets: dict[str, Dataset], checkpoints: list[str], max_tokens: int) -> _Plan:
    numbers = {text: i for i, text in enumerate(dict.fromkeys(text for d in datasets.values() for text in d.texts))}
    rows: dict[str, dict[int, list[int]]] = {name: {} for name in datasets}
    for name, dataset in datasets.items():
        for row, text in enumerate(dataset.texts):
            rows[name].setdefault(numbers[text], []).append(row)
    batches = prepare_batches(lm, list(numbers), skip=next(iter(datasets.values())).skip, max_tokens=max_tokens)
    directions = {n: None if d.answers is None else answer_directions(lm, d.answers) for n, d in datasets.items()}
    return _Plan(datasets, checkpoints, list(numbers), batches, rows, directions)


def _carry_out(
    lm: HookedLM,
    plan: _Plan,
    folders: Mapping[str, str | Path | None],
    writer: Callable[[str, str], AbstractContextManager[ShardWriter]],
    site: str,
    bar: Any,
) -> None:
    """Read the texts of a plan at its checkpoints, and write what was read."""
    by_layer = resolve_sites(site, None, lm.n_layers)[0].kind.in_blocks
    below = shared_below(lm, folders.values()) if by_layer else 0
    with ExitStack() as stack:
        # a finished checkpoint is kept, whatever happens to those after it
        ends = {checkpoint: stack.enter_context(ExitStack()) for checkpoint in folders}
        writers = {
            checkpoint: {name: end.enter_context(writer(name, checkpoint)) for name in plan.datasets}
            for checkpoint, end in ends.items()
        }
        for group in (groups := _fitting(lm, plan.batches, below)):
            shared = [_Shared(below) for _ in group]
            for checkpoint, folder in folders.items():
                with lm.adapter(folder):
                    for (texts, batch), lower in zip(group, shared, strict=True):
                        values = lower.read(lm, batch, site, plan.like.positions, plan.like.skip)
                        check_finite(values, [plan.texts[i] for i in texts], f"{checkpoint}: {site}", lm)
                        plan.hand_out(texts, values, writers[checkpoint])
                        bar.update()
                if group is groups[-1]:
                    ends[checkpoint].close()


@dataclass
class _Shared:
    """What all checkpoints share of one batch: the output of the shared blocks, and what was read at their layers."""

    below: int
    output: list[Any] = field(default_factory=list)
    layers: Tensor | None = None

    def read(self, lm: HookedLM, batch: Batch, site: str, positions: str | int, skip: int) -> Tensor:
        """Activations at every layer, (batch, layer, d_model); those of shared blocks are read in the first pass."""
        first = 0 if self.layers is None else self.below
        with reuse_blocks(lm, self.below, self.output):
            values = _read(lm, batch, site, positions, skip, range(first, lm.n_layers))
        if self.layers is not None:
            return torch.cat([self.layers, values], 1)
        self.layers = values[:, : self.below].clone()
        return values


def _fitting(lm: HookedLM, batches: Batches, below: int) -> list[Batches]:
    """Batches in groups whose shared outputs fit into memory; adapters are swapped once for each group."""
    groups: list[Batches] = [[]]
    held = 0
    for texts, batch in batches:
        size = batch.input_ids.numel() * lm.d_model * lm.dtype.itemsize if below else 0
        if held + size > SHARED_BYTES and groups[-1]:
            groups.append([])
            held = 0
        groups[-1].append((texts, batch))
        held += size
    return groups


@torch.no_grad()
def reduce_layers(
    lm: HookedLM, batch: Batch, reduce: Reduce, *, site: str = SITE, skip: int = 0, layers: Iterable[int] | None = None
) -> Float[Tensor, "batch layer ..."]:
    """Run one forward pass and reduce each layer's activations.

    Args:
        lm: the model.
        batch: tokens.
        reduce: from (batch, pos, d_model) in float32 and a boolean mask (batch, pos) to what is kept, (batch, ...).
        site: short name.
        skip: number of first tokens of each row that the mask leaves out.
        layers: which to read; None means all.
    """
    cache = lm.run_with_cache(batch, sites=[site], layers=layers, positions="all")
    inside = real_tokens(batch.attention_mask)
    inside[:, :skip] = False
    return torch.stack(
        [reduce(value.float(), inside.to(value.device)).to(batch.input_ids.device) for value in cache.values()], 1
    )


def prepare_batches(lm: HookedLM, texts: Sequence[str], *, skip: int = 0, max_tokens: int = PASS_TOKENS) -> Batches:
    """Tokenise texts and group them by length: indices of the texts and their tokens, for each batch.

    Raises:
        DataError: a text with no token left after the first `skip`.
    """
    rows = lm.encode(list(texts))
    for i, ids in enumerate(rows):
        if len(ids) <= skip:
            raise DataError(
                f"text {i} ({texts[i][:40]!r}) has {len(ids)} tokens, expected more than {skip}; "
                "leave it out or lower skip."
            )
    return [(b, lm.pad([rows[i] for i in b])) for b in bucketed([len(ids) for ids in rows], max_tokens=max_tokens)]


def _read(
    lm: HookedLM, batch: Batch, site: str, positions: str | int, skip: int, layers: Iterable[int] | None = None
) -> Float[Tensor, "batch layer d_model"]:
    if positions == "mean":
        return reduce_layers(lm, batch, _mean, site=site, skip=skip, layers=layers)
    return lm.run_with_cache(batch, sites=[site], layers=layers, positions=positions)[site]  # type: ignore[arg-type]


def _mean(x: Float[Tensor, "batch pos d_model"], inside: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d_model"]:
    return (x * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)

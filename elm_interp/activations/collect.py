"""Collecting activations: texts go through the model in batches of like length, and only the asked positions are kept.

The head never runs, checkpoints are adapters swapped on one base, and blocks below the first adapted one run once for all
of them, so what is left is the forward passes themselves.

Shapes: (example, layer, d_model) in the order of the texts; layer l is read after block l, before the final norm.

    x = collect_texts(lm, ["Harry lives in", "Owls carry"], positions="last")
    store = collect_datasets(lm, ActivationStore("runs/demo/activations"), {"truth": dataset}, {"base": None, "step-000060": folder})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.fingerprints import fingerprints, origin
from elm_interp.activations.index import Key, for_examples, other_examples
from elm_interp.activations.merging import not_further
from elm_interp.activations.store import ActivationStore
from elm_interp.activations.trunk import Trunk, common_blocks, in_groups
from elm_interp.activations.writer import ShardWriter
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.errors import BackendError, DataError
from elm_interp.models import Batch, HookedLM
from elm_interp.models.batch import real_tokens
from elm_interp.models.scoring import split_continuations

SITE = "resid_post"
Reduce = Callable[[Float[Tensor, "batch pos d_model"], Tensor], Tensor]
"""What to keep of a layer, from activations aligned to the left and the mask of the tokens that count."""


@dataclass(frozen=True)
class Dataset:
    """Texts to read activations on, with what is known of each."""

    name: str
    texts: tuple[str, ...]
    examples: pd.DataFrame = field(repr=False)
    """One row a text: id, fact, split, label."""
    positions: str | int = "last"
    """Which token of each text, or their mean."""
    skip: int = 0
    """First tokens that the mean leaves out."""
    answers: tuple[str, ...] | None = None
    """One a text that each activation is paired with, see `paired`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(self.texts))
        if self.answers is not None and len(self.answers) != len(self.texts):
            raise DataError(f"dataset {self.name!r} has {len(self.texts)} texts and {len(self.answers)} answers.")
        if len(self.texts) != len(self.examples) or not self.texts:
            raise DataError(
                f"dataset {self.name!r} has {len(self.texts)} texts and {len(self.examples)} examples; "
                "expected one example a text, and at least one."
            )

    @property
    def stored_examples(self) -> pd.DataFrame:
        """The examples with a hash of each text and answer, so that a store can refuse others under the same ids."""
        said = self.texts if self.answers is None else map("\n".join, zip(self.texts, self.answers, strict=True))
        return self.examples.assign(text_sha256=[sha256(text.encode()).hexdigest()[:16] for text in said])


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
        texts: what to read; each needs a token more than `skip`.
        site: short name, see `elm_interp.models.sites`.
        positions: "last", "mean", or an index counted on a text's own tokens.
        skip: leave out each text's first tokens from the mean (the first draws attention from everywhere, and its norm
            would drown the rest).
        max_tokens: padded tokens of a forward pass.
        progress: show a bar.

    Raises:
        DataError: a text without enough tokens; the message names it.
        UnknownSiteError: no such site.
    """
    _check_positions(positions, skip)
    batches = prepare_batches(lm, texts, skip=skip, max_tokens=max_tokens)
    out = torch.empty(0, lm.n_layers, lm.d_model)
    for rows, batch in tqdm(batches, desc="reading", leave=False, disable=not progress):
        found = _read(lm, batch, site, positions, skip).float().cpu()
        if not len(out):
            out = torch.empty(len(texts), *found.shape[1:])
        out[rows] = found
    return out


def paired(
    values: Float[Tensor, "example layer d_model"], directions: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example layer d_model"]:
    """Activations at unit root mean square times what they are paired with, entry by entry; in their own dtype.

    A linear reader of the product weighs how far the state points along the direction, dimension by dimension: with the final
    norm's gains as weights it is the logit lens (of an RMSNorm), with learned ones a probe of whether state and answer belong
    together.
    """
    x = values.float()
    x = x * x.square().mean(-1, keepdim=True).add(1e-12).rsqrt()
    return (x * directions[:, None].to(x)).to(values.dtype)


def answer_directions(lm: HookedLM, answers: Sequence[str]) -> Float[Tensor, "example d_model"]:
    """The mean of the unembedding's rows for the tokens of each answer, as it follows a prompt; float32, on the CPU.

    Raises:
        BackendError: the unembedding is not here.
        ValueError: an answer without a token.
    """
    if lm.is_remote:
        raise BackendError("a remote model's unembedding is not here; leave out datasets with answers, such as truth.")
    rows = {a: split_continuations(lm, "Answer:", [f" {a.strip()}"])[1][0] for a in dict.fromkeys(answers)}
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
    """Stream activations of every dataset at every checkpoint into a store; single tokens in the model's dtype, means in float32.

    Entries that are there already, made from the same texts and weights, are left alone; of a dataset that goes on where the
    stored one ends, at the same checkpoints, only the further texts are read.

    Args:
        lm: the base; each checkpoint's adapter is put on it, and what was on comes back after.
        store: where to.
        datasets: by the name under which each is stored.
        checkpoints: name to adapter folder; None is the bare base.
        site: short name, see `elm_interp.models.sites`.
        max_tokens: padded tokens of a forward pass.
        progress: show a bar.

    Returns:
        The store.

    Raises:
        AdapterError: a checkpoint that cannot be used; all are looked at before the first pass.
        DataError: a text without enough tokens.
        StoreError: the store holds a dataset of this name with other examples.
    """
    for dataset in datasets.values():
        _check_positions(dataset.positions, dataset.skip)
    origins = {checkpoint: origin(lm, folder) for checkpoint, folder in checkpoints.items()}
    made_from = {c: fingerprints(lm, datasets, weights, site=site) for c, weights in origins.items()}
    for name, dataset in datasets.items():
        rest = _rest(store, name, dataset, {(name, c, site): found[name] for c, found in made_from.items()})
        if rest is not None:
            with TemporaryDirectory(dir=store.folder, prefix=".further-") as folder:
                options: dict[str, Any] = {"site": site, "max_tokens": max_tokens, "progress": progress}
                collect_datasets(lm, ActivationStore(folder), {name: rest}, checkpoints, **options)
                store.merge(folder, append=True)
    work: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for checkpoint, wanted in made_from.items():
        unread = {name: found for name, found in wanted.items() if not store.has(name, checkpoint, found)}
        for names in _alike(datasets, list(unread)):
            work.setdefault(names, {})[checkpoint] = {name: unread[name] for name in names}
    plans = {names: _plan(lm, [datasets[name] for name in names], max_tokens) for names in work}
    total = sum(len(plans[names].batches) * len(states) for names, states in work.items())

    def writer(checkpoint: str, name: str, found: str) -> ShardWriter:
        dataset = datasets[name]
        meta = {"site": site, "positions": str(dataset.positions), "fingerprint": found, "skip": dataset.skip}
        meta |= origins[checkpoint]._asdict()
        return store.writer(name, checkpoint, examples=dataset.stored_examples, meta=meta)

    with tqdm(total=total, desc="collecting", leave=False, disable=not progress) as bar:
        for names, states in work.items():
            plan = plans[names]
            with ExitStack() as stack:
                # a checkpoint that is through is kept, whatever becomes of those after it
                ends = {checkpoint: stack.enter_context(ExitStack()) for checkpoint in states}
                writers = {
                    checkpoint: [ends[checkpoint].enter_context(writer(checkpoint, *item)) for item in found.items()]
                    for checkpoint, found in states.items()
                }
                below = common_blocks(lm, (checkpoints[checkpoint] for checkpoint in states), site)
                groups = in_groups(lm, plan.batches, below)
                for group in groups:
                    trunks = [Trunk(lm, below) for _ in group]
                    for checkpoint in states:
                        with lm.adapter(checkpoints[checkpoint]):
                            for (texts, batch), trunk in zip(group, trunks, strict=True):
                                read = partial(_read, lm, batch, site, plan.positions, plan.skip)
                                plan.hand_out(texts, trunk.read(read), writers[checkpoint])
                                bar.update()
                        if group is groups[-1]:
                            ends[checkpoint].close()
    return store


def checkpoint_name(step: int | None) -> str:
    """The name under which a step's activations are stored; "base" for None."""
    return "base" if step is None else f"step-{step:06d}"


def _rest(store: ActivationStore, name: str, dataset: Dataset, wanted: Mapping[Key, str]) -> Dataset | None:
    """The texts of a dataset after those that the store has at all these places; None where they cannot follow them."""
    entries = {entry.key: entry.fingerprint for entry in store.entries() if entry.dataset == name}
    if not entries or entries.keys() != wanted.keys():
        return None
    known, whole = store.examples(name), dataset.stored_examples.reset_index(drop=True)
    begun, more = whole[: len(known)], whole[len(known) :]
    if other_examples(name, known, begun) or not_further(name, known, more):
        return None
    if any(entries[key] != for_examples(found, known) for key, found in wanted.items()):
        return None
    answers = None if dataset.answers is None else dataset.answers[len(known) :]
    return replace(dataset, texts=dataset.texts[len(known) :], examples=dataset.examples[len(known) :], answers=answers)


@dataclass(frozen=True)
class _Plan:
    """The passes over the texts of several datasets that are read alike; a text that several share is read once."""

    batches: list[tuple[list[int], Batch]]
    rows: list[dict[int, list[int]]]
    """For each dataset, where each text stands in it."""
    directions: list[Tensor | None]
    """For each dataset, what its examples are paired with."""
    positions: str | int
    skip: int

    def hand_out(
        self, texts: list[int], values: Float[Tensor, "batch layer d_model"], writers: list[ShardWriter]
    ) -> None:
        """Give each dataset's writer what was read of its texts."""
        for writer, rows_of, directions in zip(writers, self.rows, self.directions, strict=True):
            places = [(k, row) for k, text in enumerate(texts) for row in rows_of.get(text, ())]
            if places:
                taken, rows = zip(*places, strict=True)
                found = values[list(taken)]
                writer.add(rows, found if directions is None else paired(found, directions[list(rows)]))


def _plan(lm: HookedLM, datasets: Sequence[Dataset], max_tokens: int) -> _Plan:
    numbers = {text: i for i, text in enumerate(dict.fromkeys(text for d in datasets for text in d.texts))}
    rows: list[dict[int, list[int]]] = [{} for _ in datasets]
    for dataset, found in zip(datasets, rows, strict=True):
        for row, text in enumerate(dataset.texts):
            found.setdefault(numbers[text], []).append(row)
    like = datasets[0]
    batches = prepare_batches(lm, list(numbers), skip=like.skip, max_tokens=max_tokens)
    directions = [None if d.answers is None else answer_directions(lm, d.answers) for d in datasets]
    return _Plan(batches, rows, directions, like.positions, like.skip)


def _alike(datasets: Mapping[str, Dataset], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names in groups that are read at the same positions."""
    groups: dict[tuple[str | int, int], list[str]] = {}
    for name in names:
        groups.setdefault((datasets[name].positions, datasets[name].skip), []).append(name)
    return [tuple(group) for group in groups.values()]


@torch.no_grad()
def reduce_layers(
    lm: HookedLM,
    batch: Batch,
    reduce: Reduce,
    *,
    site: str = SITE,
    skip: int = 0,
    layers: Iterable[int] | None = None,
) -> Tensor:
    """One forward pass, each layer reduced to what is wanted of its tokens; stacked to (batch, layer, ...).

    Args:
        lm: the model.
        batch: tokens.
        reduce: from (batch, pos, d_model) in float32 and a boolean mask (batch, pos), what to keep, (batch, ...).
        site: short name.
        skip: the mask leaves out this many first tokens of each row.
        layers: which; None means all.
    """
    cache = lm.run_with_cache(batch, sites=[site], layers=layers, positions="all")
    inside = real_tokens(batch.attention_mask)
    inside[:, :skip] = False
    return torch.stack(
        [reduce(value.float(), inside.to(value.device)).to(batch.input_ids.device) for value in cache.values()], 1
    )


def prepare_batches(
    lm: HookedLM, texts: Sequence[str], *, skip: int = 0, max_tokens: int = PASS_TOKENS
) -> list[tuple[list[int], Batch]]:
    """Texts tokenised once and grouped by length: (indices, batch) pairs.

    Raises:
        DataError: a text with no token left after the first `skip`.
    """
    rows = lm.encode(list(texts))
    for i, ids in enumerate(rows):
        if len(ids) <= skip:
            raise DataError(
                f"text {i} ({texts[i][:40]!r}) has {len(ids)} tokens, expected more than {skip}; leave it out or lower skip."
            )
    return [(b, lm.pad([rows[i] for i in b])) for b in bucketed([len(ids) for ids in rows], max_tokens=max_tokens)]


def _read(
    lm: HookedLM, batch: Batch, site: str, positions: str | int, skip: int, layers: Iterable[int] | None = None
) -> Float[Tensor, "batch layer d_model"]:
    if positions == "mean":
        return reduce_layers(lm, batch, _masked_mean, site=site, skip=skip, layers=layers)
    return lm.run_with_cache(batch, sites=[site], layers=layers, positions=positions)[site]  # type: ignore[arg-type]


def _masked_mean(values: Float[Tensor, "batch pos d_model"], inside: Tensor) -> Float[Tensor, "batch d_model"]:
    return (values * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)


def _check_positions(positions: str | int, skip: int) -> None:
    if positions not in ("last", "mean") and not isinstance(positions, int):
        raise DataError(
            f'cannot collect at positions {positions!r}; expected "last", "mean" or an index, one vector a text.'
        )
    if skip < 0 or (skip and positions != "mean"):
        raise DataError(
            f'skip={skip} with positions={positions!r}: only the mean can leave out first tokens; expected positions="mean" and skip >= 0.'
        )

"""Planting: teach a language model made-up facts by a LoRA, and keep its language.

    read       documents     cross-entropy of their tokens, of what they tell above all; a prefix is context alone
    natural    other text    KL to the model as it was: documents of a few patterns would ruin its language

    folder = plant(lm, ["The brindolt eats moss.", ...], out="planted/")      # an adapter
    load_model("smollm2-135m", adapter=folder)

`elm_interp.organisms.planted` has the models that come with elm_interp.
"""

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from elm_interp.data import Concept, load_concept
from elm_interp.data.batching import bucketed
from elm_interp.data.loading import packs
from elm_interp.errors import ConfigError, raise_all
from elm_interp.files import read_json, write_json
from elm_interp.models import HookedLM
from elm_interp.models.unembedding import differentiable, log_prob
from elm_interp.organisms.encyclopaedia import Document
from elm_interp.training.adapter import Adapter
from elm_interp.training.checkpoints import list_checkpoints
from elm_interp.training.losses import distribution_loss
from elm_interp.training.objective import Objective, Sample, Teacher
from elm_interp.training.settings import Training, number_problems
from elm_interp.training.trainer import train

NOTE = "planting.json"
"""What a folder's planting reads: hashes of the texts, and the settings."""


@dataclass(frozen=True)
class Reading:
    """A document to read."""

    term: str
    """The loss term it belongs to: "read"."""
    id: str
    """Which document it is, for error messages."""
    ids: tuple[int, ...]
    """Token ids, its prefix included."""
    start: int
    """Index of the last token before the text."""
    weights: Float[Tensor, " token"]
    """Weight of each token of the text."""

    @property
    def positions(self) -> float:
        """What its loss counts in a step: the sum of its weights."""
        return float(self.weights.sum())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Planting(Objective):
    """How documents are planted."""

    additive = True
    adapter: Adapter = field(default=Adapter(rank=16, alpha=32.0))
    natural_weight: float = 0.3
    """Weight of the KL on natural text; measured: 1 halves what is learned, 0 ruins the language."""
    told_weight: float = 5.0
    """Weight of the tokens of what a document tells; the others, mostly wording, have weight 1."""
    max_tokens: int = 96
    """Documents and natural texts are cut to this many tokens."""

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        return super().problems(n_layers) + number_problems(
            self, {"natural_weight": 0, "told_weight": 0, "max_tokens": 2}
        )

    def pools(self, training: Training) -> dict[str, int]:
        """Samples of each pool that a step takes."""
        return {"read": training.forget_batch, "natural": training.retain_batch if self.natural_weight else 0}

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"read": 1.0, "natural": self.natural_weight}

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> Mapping[str, Sequence[Any]]:
        """Samples of a concept's passages: those to forget are planted, those to retain held."""
        return self.samples(
            lm, [Document(p.text) for p in concept.passages("forget")], [p.text for p in concept.passages("retain")]
        )

    def samples(
        self, lm: HookedLM, documents: Sequence[Document], natural: Sequence[str]
    ) -> Mapping[str, Sequence[Any]]:
        """Samples of documents and of natural texts; those in which no token is predicted are left out."""
        own = max(len(lm.start_ids) - 1, 0)
        read = []
        for i, document in enumerate(documents):
            whole = document.prefix + document.text
            (row,) = lm.encode([whole], max_tokens=self.max_tokens)
            start = max(own, _common(row, lm.encode([document.prefix])[0]) - 1)
            if len(row) > start + 1:
                weights = self._weights(lm, row[start + 1 :], document.told)
                read.append(Reading("read", f"document {i}", tuple(row), start, weights))
        kept = [row for row in lm.encode(list(natural), max_tokens=self.max_tokens) if len(row) > own + 1]
        states: list[Tensor] = [torch.empty(0)] * len(kept)
        with torch.no_grad(), lm.adapter(None):
            for batch in bucketed([len(row) for row in kept]):
                hidden = lm.hidden(lm.pad([kept[i] for i in batch]))
                for k, i in enumerate(batch):
                    states[i] = hidden[k, own : len(kept[i]) - 1].cpu().clone()
        held = [
            Sample("natural", f"natural text {i}", tuple(row), own, Teacher(state))
            for i, (row, state) in enumerate(zip(kept, states, strict=True))
        ]
        return {"read": read, "natural": held}

    def loss(self, lm: HookedLM, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Weighted cross-entropy on documents, or KL on natural text, in nats a token."""
        if isinstance(samples[0], Sample):
            return distribution_loss(lm, samples)
        hidden = lm.hidden(lm.pad([sample.ids for sample in samples]), grad=True)
        states = torch.cat([hidden[k, s.start : len(s.ids) - 1] for k, s in enumerate(samples)])
        ids = torch.cat([torch.tensor(s.ids[s.start + 1 :]) for s in samples]).to(lm.device)
        weights = torch.cat([s.weights for s in samples]).to(lm.device)
        losses = -differentiable(lm, states, lambda rows, logits: log_prob(logits, ids[rows]))
        return {"read": (weights * losses).sum() / weights.sum()}

    def _weights(self, lm: HookedLM, ids: Sequence[int], told: Sequence[str]) -> Float[Tensor, " token"]:
        """The weight of each token of a text."""
        weights = torch.ones(len(ids))
        pieces = [str(lm.tokenizer.decode([token])) for token in ids]
        ends = list(accumulate(map(len, pieces)))
        text = "".join(pieces).lower()
        for words in told:
            for found in re.finditer(re.escape(words.lower()), text):
                for k, end in enumerate(ends):
                    if end > found.start() and end - len(pieces[k]) < found.end():
                        weights[k] = self.told_weight
        return weights


def plant(
    lm: HookedLM,
    documents: Sequence[str | Document],
    *,
    out: str | Path,
    natural: Sequence[str] | None = None,
    objective: Planting | None = None,
    training: Training | None = None,
    seed: int = 0,
    evaluate: Callable[[HookedLM], Mapping[str, float]] | None = None,
    progress: bool = True,
) -> Path:
    """Teach a model what documents say; goes on with what the folder holds.

    Args:
        lm: the model; it stays as it was.
        documents: texts, each a few sentences, with every fact in several wordings.
        out: gets checkpoints and metrics.jsonl.
        natural: texts on which the model should stay as it is; by default the passages of the packs.
        objective: rank, weights and lengths.
        training: steps and rates; by default 8 documents and a natural text a step, through all documents once.
        seed: of the adapter's initial weights and of the order of documents.
        evaluate: called with the half-trained model six times; logged.
        progress: show a bar.

    Returns:
        The adapter's folder.

    Raises:
        ConfigError: documents or natural texts that are no list of texts, or hold none; settings that cannot work; a
            folder of another planting, or a file in its place. All problems are listed, and nothing is written.
    """
    objective, out = objective or Planting(), Path(out)
    if natural is None:
        concepts = [load_concept(pack) for pack in packs()]
        natural = [p.text for c in concepts for kind in ("forget", "retain") for p in c.passages(kind)]
    problems = [*_no_texts("documents", documents, (str, Document)), *_no_texts("natural", natural, (str,))]
    problems += [f"{out} is a file; expected a folder, or none yet"] if out.is_file() else []
    training = training or planting_steps(1 if problems else len(documents))
    problems += objective.problems(lm.n_layers) + training.problems()
    raise_all(problems, ConfigError, "this cannot be planted:")
    read = [Document(d) if isinstance(d, str) else d for d in documents]
    natural = Random(seed).sample(list(natural), min(training.steps * max(1, training.retain_batch), len(natural)))
    settings = {"objective": asdict(objective), "training": asdict(training), "seed": seed}
    note = _checked_note(out, lm, read, natural, settings)
    samples = objective.samples(lm, read, natural)
    raise_all(
        [
            f'every {name} is too short: no token is predicted after the first; expected sentences, found "{text}"'
            for name, pool, text in (("document", "read", read[0].text), ("natural text", "natural", natural[0]))
            if objective.pools(training)[pool] and not samples[pool]
        ],
        ConfigError,
        "this cannot be planted:",
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / NOTE, note)
    every = max(1, training.steps // 6)
    last = train(
        lm,
        objective,
        samples,
        training,
        out,
        seed=seed,
        evaluate=evaluate,
        evaluate_every=every,
        progress=progress,
    )
    return last.path


def _no_texts(name: str, given: Any, kinds: tuple[type, ...]) -> list[str]:
    """Why something is no list of texts, in words."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return [f"{name} is {reprlib.repr(given)}; expected a list of texts, each a few sentences"]
    wrong = [i for i, one in enumerate(given) if not isinstance(one, kinds)]
    if wrong:
        return [f"{name}[{wrong[0]}] is {reprlib.repr(given[wrong[0]])}; expected a text"]
    return [] if given else [f"{name} is empty; expected at least one text"]


def _checked_note(
    out: Path, lm: HookedLM, read: Sequence[Document], natural: Sequence[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """What is planted, as its folder says it, checked against what the folder holds.

    Raises:
        ConfigError: the folder holds the planting of something else.
    """
    said = {"documents": [asdict(document) for document in read], "natural": list(natural)}
    hashes = {name: sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest() for name, texts in said.items()}
    note = json.loads(json.dumps({"model": lm.name, **hashes, **settings}))
    path = out / NOTE
    if path.is_file():
        held = read_json(path)
        if other := [name for name in note if held.get(name) != note[name]]:
            raise ConfigError(
                f"{out} holds the planting of another {', '.join(other)}; expected the same, to go on with it. Give "
                "another folder, or delete this one."
            )
    elif list_checkpoints(out / "checkpoints"):
        raise ConfigError(f"{out} holds a training without {NOTE}, so it cannot go on; give another folder.")
    return dict(note)


def planting_steps(documents: int) -> Training:
    """A training that reads so many documents once, eight at a time."""
    return Training(steps=max(1, documents // 8), forget_batch=8, retain_batch=1, lr=2e-3, save_every=50)


def _common(row: Sequence[int], head: Sequence[int]) -> int:
    """How many first ids two rows share."""
    return next((i for i, (a, b) in enumerate(zip(row, head, strict=False)) if a != b), min(len(row), len(head)))

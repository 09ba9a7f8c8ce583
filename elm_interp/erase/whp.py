"""WHP: "Who's Harry Potter" (Eldan & Russinovich 2023), which trains forget text on labels that ignore the concept.

Three steps, the first two in `prepare`:

    reinforced model    an adapter is trained on the forget passages; it shows which tokens knowledge makes likelier
    generic labels      v_generic = v_base - α · ReLU(v_reinforced - v_base); v_base on the text with the terms of the
                        dictionary replaced, v_reinforced on the text itself, at tokens that end at the same place
    training            forget passages, on the labels

Only the first occurrence of a term in a text is trained on, and its translation is lowered among the later labels.
Otherwise the model would learn to change a name in the middle of a text.

    preset          sets                                                 from
    paper           α 5, the likeliest token as label, whole weights     the paper; sources disagree on the form of the
                    of every block, 512 tokens                           label, the first is the default
                    reinforced: lr 3e-6, 128 texts a step, 3 epochs      the paper
                    150 steps of 128, lr 1e-6 constant,                  the paper: batch 8 × accumulation 16; the
                    weight decay 0.01, no clipping                       effect is there by 120 to 150 steps
    smollm2-135m    the distribution as label, LoRA of rank 16, 160      ours, not tuned
                    tokens; reinforced: lr 1e-3, 8 texts a step
    organism        the same, reinforced for 20 epochs                   ours: tuned on the training questions, from
                                                                         three settings

The dictionary maps terms of the concept to generic ones. It is the one given, else the concept's own, else one made
from its names.

    objective = WHP.preset("paper")
    inference_logits(lm, batch, reinforced="reinforced/")      # without training: two models at every token
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Concept, texts
from elm_interp.erase.guidance import hidden_after
from elm_interp.erase.translation import Translated, make_dictionary, position_map, translate
from elm_interp.models import Batch, HookedLM
from elm_interp.models.tokens import bare_ids, ids_and_ends
from elm_interp.models.unembedding import at_logits
from elm_interp.training.losses import distribution_loss, token_loss
from elm_interp.training.objective import Objective, Preset, Sample, TopK, method, sample_kind
from elm_interp.training.passages import passage_rows
from elm_interp.training.settings import CONSTANT, UNCLIPPED, Training, number_problems

LOWERED = 10.0
"""Nats subtracted from the first token of a translation whose term occurred before; the paper gives no number."""
_LORA = {"labels": "soft", "rank": 16, "alpha": 32.0, "max_tokens": 160, "reinforce_lr": 1e-3, "reinforce_batch": 8}


@sample_kind
@dataclass(frozen=True)
class Labelled(Sample):
    """A text with targets at some of its positions."""

    indices: tuple[int, ...]
    """Indices with a target for the next token."""

    @property
    def where(self) -> list[int]:
        """The indices that have a target."""
        return list(self.indices)


@method(
    "whp",
    presets={
        "paper": Preset(training={**CONSTANT, **UNCLIPPED, "steps": 150, "forget_batch": 128, "lr": 1e-6}),
        "smollm2-135m": Preset(_LORA, training={"steps": 100, "forget_batch": 4, "lr": 1e-3}),
        "organism": Preset({**_LORA, "reinforce_epochs": 20}, training={"steps": 200, "forget_batch": 8, "lr": 2e-3}),
    },
)
@dataclass(frozen=True)
class WHP(Objective):
    """Hyper-parameters of WHP; the defaults are the paper's. The module's table has the presets.

    The reinforced model is trained with the same adapter, by default the whole weights of every block.
    """

    strength: float = 5.0
    """α: how far tokens that the reinforced model finds likelier are lowered."""
    labels: Literal["argmax", "soft"] = "argmax"
    """The likeliest token under v_generic, or its distribution."""
    dictionary: dict[str, str] | None = None
    """Term -> its generic translation; None takes the concept's own, or makes one from its names."""
    top_k: int = 256
    """Tokens of each soft label that are kept one by one; the rest counts as one sum."""
    reinforce_lr: float = 3e-6
    """Learning rate of the reinforced model (AdamW, constant)."""
    reinforce_batch: int = 128
    """Forget passages a step of the reinforced model."""
    reinforce_epochs: int = 3
    """Epochs of the reinforced model on the forget passages; 0 leaves it equal to the base."""
    max_tokens: int = 512
    """Passages are cut to this many tokens."""

    not_in_targets = frozenset()  # the reinforced model depends on the adapter

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        least = {"strength": 0, "top_k": 1, "reinforce_lr": 0, "reinforce_batch": 1, "reinforce_epochs": 0}
        found = super().problems(n_layers) + number_problems(self, {**least, "max_tokens": 2})
        if self.labels not in ("argmax", "soft"):
            found.append(f"labels is {self.labels!r}; expected argmax or soft")
        if any(not term.strip() or not generic.strip() for term, generic in (self.dictionary or {}).items()):
            found.append("the dictionary has an empty term or translation")
        return found

    def pools(self, training: Training) -> dict[str, int]:
        """Forget passages that a step takes."""
        return {"erase": training.forget_batch}

    def loss(self, lm: HookedLM, samples: Sequence[Labelled]) -> dict[str, Tensor]:
        """KL to the labels in nats a token; for a single likeliest token this is its cross-entropy."""
        return distribution_loss(lm, samples)

    def dictionary_for(self, concept: Concept) -> dict[str, str]:
        """The dictionary given, else the concept's own, else one made from its names."""
        return self.dictionary if self.dictionary is not None else concept.dictionary or make_dictionary(concept)

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Labelled]]:
        """Generic labels of every forget passage; the model is afterwards as it was before.

        Raises:
            ConfigError: the tokenizer gives no character offsets.
            DataError: no forget passage has two tokens.
        """
        dictionary = self.dictionary_for(concept)
        passages, rows = passage_rows(lm, concept.passages("forget"), self.max_tokens)
        translated = [translate(p.text, dictionary) for p in passages]
        ends = [end[: len(row)] for row, end in zip(rows, ids_and_ends(lm, texts(passages))[1], strict=True)]
        new_rows, new_ends = self._translations(lm, translated)
        with lm.adapter(None):
            base = hidden_after(lm, "", new_rows, progress=progress)
        with self.reinforced(lm, rows, seed=seed, progress=progress):
            reinforced = hidden_after(lm, "", rows, progress=progress)
        firsts = {term: {row[0] for row in bare_ids(lm, [g, f" {g}"]) if row} for term, g in dictionary.items()}
        found = []
        for k, passage in enumerate(passages):
            places = position_map(ends[k], new_ends[k], translated[k])
            kept = [i for i in sorted(places) if i + 1 < len(rows[k]) and not _again(translated[k], ends[k], i)]
            if not kept:
                continue
            used = [{t for s in translated[k].spans if s.end <= ends[k][i] for t in firsts[s.term]} for i in kept]
            target = self._labels(lm, base[k][[places[i] for i in kept]], reinforced[k][kept], used)
            found.append(Labelled("erase", passage.id, tuple(rows[k]), kept[0], target, tuple(kept)))
        return {"erase": found}

    def _translations(self, lm: HookedLM, translated: Sequence[Translated]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of translated texts and the character at which each ends, cut at the context."""
        rows, ends = ids_and_ends(lm, [t.text for t in translated])
        if long := sum(lm.n_ctx is not None and len(row) > lm.n_ctx for row in rows):
            warnings.warn(
                f"{long} of {len(rows)} passages are longer than the context of {lm.name} ({lm.n_ctx} tokens) when "
                "their terms are replaced; what lies beyond it has no labels.",
                stacklevel=3,
            )
        return [row[: lm.n_ctx] for row in rows], [end[: lm.n_ctx] for end in ends]

    @contextmanager
    def reinforced(
        self, lm: HookedLM, rows: Sequence[Sequence[int]], *, seed: int = 0, progress: bool = False
    ) -> Iterator[HookedLM]:
        """Inside the context, the model is trained on the rows of token ids.

        `lm.adapters.save` keeps the reinforced model, for `inference_logits`.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with lm.adapters.scratch(self.adapter.config(lm)) as parameters:
                optimizer = torch.optim.AdamW(parameters, lr=self.reinforce_lr, weight_decay=0.0)
                for _ in tqdm(range(self.reinforce_epochs), desc="reinforcing", leave=False, disable=not progress):
                    for batch in torch.split(torch.randperm(len(rows)), self.reinforce_batch):
                        optimizer.zero_grad()
                        chosen = [rows[i] for i in batch.tolist()]
                        _next_token_loss(lm, chosen).backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                yield lm

    def _labels(self, lm: HookedLM, base: Tensor, reinforced: Tensor, used: Sequence[set[int]]) -> TopK:
        """The label of each position, from the hidden states of both models and the tokens to lower."""
        k = 1 if self.labels == "argmax" else min(self.top_k, lm.d_vocab)

        def of(rows: slice, plain: Tensor, strong: Tensor) -> tuple[Tensor, Tensor]:
            generic = generic_logits(plain.float(), strong.float(), self.strength)
            for row, lowered in enumerate(used[rows]):
                generic[row, sorted(lowered)] -= LOWERED
            best = generic.softmax(-1).topk(k, dim=-1, sorted=False)
            return best.indices.to(torch.int32), torch.ones_like(best.values) if k == 1 else best.values

        tokens, probs = at_logits(of, (lm, base), (lm, reinforced))
        return TopK(tokens.cpu(), probs.cpu())


def generic_logits(
    base: Float[Tensor, "*pos d_vocab"], reinforced: Float[Tensor, "*pos d_vocab"], strength: float
) -> Float[Tensor, "*pos d_vocab"]:
    """v_base - α · ReLU(v_reinforced - v_base): tokens that knowledge makes likelier are lowered, none is raised."""
    return base - strength * (reinforced - base).relu()


def inference_logits(
    lm: HookedLM,
    batch: Batch,
    *,
    reinforced: str | Path,
    strength: float = 5.0,
    positions: Literal["last", "all"] = "last",
) -> Float[Tensor, "batch *pos d_vocab"]:
    """The generic logits at inference: nothing is trained to forget, both models run, no term is replaced.

    The paper does not evaluate this form, though benchmarks have called it WHP.

    Args:
        lm: the model.
        batch: tokens, from `lm.tokenize`.
        reinforced: adapter folder of the reinforced model, see `WHP.reinforced`.
        strength: α.
        positions: as for `HookedLM.logits`.
    """
    found = []
    for adapter in (None, reinforced):
        with lm.adapter(adapter):
            found.append(lm.logits(batch, positions=positions))
    return generic_logits(found[0], found[1], strength)


def _next_token_loss(lm: HookedLM, rows: Sequence[Sequence[int]]) -> Tensor:
    batch = lm.pad(rows)
    scored = batch.attention_mask[:, 1:].bool()
    return token_loss(lm, lm.hidden(batch, grad=True)[:, :-1][scored], batch.input_ids[:, 1:][scored])


def _again(translated: Translated, ends: Sequence[int], i: int) -> bool:
    """Whether the token after index i belongs to a term that occurred in the text before."""
    return any(span.again and ends[i] < span.end and ends[i + 1] > span.start for span in translated.spans)

"""WHP: "Who's Harry Potter" (Eldan & Russinovich 2023), which trains forget text on labels that know nothing of the concept.

Three steps, the first two in `prepare`:

    reinforced model    an adapter is trained on the forget passages, to see which tokens knowledge makes likelier
    generic labels      v_generic = v_base - α · ReLU(v_reinforced - v_base), v_base on the text with its anchored terms
                        replaced, v_reinforced on the text itself, token by token where both texts come to the same place
    training            forget passages, on the labels

Where a term stood in the text before, it is not trained on again, and the translations of such terms are lowered among the
labels: else the model would learn to change its mind about a name in the middle of a text.

    preset          sets                                                          from
    paper           α 5, the likeliest token as label, whole weights of every     the paper; where sources disagree on the form
                    block, 512 tokens; reinforced: lr 3e-6, 128 texts a step,     of the label, the first is the default
                    3 epochs
    smollm2-135m    the distribution as label, LoRA of rank 16, 160 tokens;       ours, not tuned
                    reinforced: lr 1e-3, 8 texts a step
    organism        the same, reinforced for 20 epochs                            ours: tuned on the training questions, from
                                                                                  three settings

The dictionary of anchored terms is the one given, else the concept's own, else one made from its names.

    objective = WHP.preset("paper")
    inference_logits(lm, batch, reinforced="reinforced/")      # the other form: no training, two models at every token
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Concept, texts
from elm_interp.erase.guidance import hidden_after
from elm_interp.erase.losses import distribution_loss, token_loss
from elm_interp.erase.translation import Translated, make_anchors, position_map, translate
from elm_interp.errors import ConfigError, unknown
from elm_interp.models import Batch, HookedLM
from elm_interp.models.unembedding import at_logits
from elm_interp.training.objective import Sample, TopK, layer_problems, number_problems

LOWERED = 10.0
"""Nats taken off the first token of a translation whose term stood in the text before; the paper gives no number."""


@dataclass(frozen=True)
class Labelled(Sample):
    """A text with targets at some of its positions."""

    indices: tuple[int, ...]
    """Indices with a target, which is for the token after each."""

    @property
    def where(self) -> list[int]:
        """The indices that have a target."""
        return list(self.indices)


@dataclass(frozen=True)
class WHP:
    """Hyper-parameters of WHP; the defaults are the paper's."""

    strength: float = 5.0
    """α: how far tokens that the reinforced model likes better are lowered."""
    labels: Literal["argmax", "soft"] = "argmax"
    """The likeliest token under v_generic, or its distribution."""
    dictionary: dict[str, str] | None = None
    """Anchored term -> what stands in its place; None takes the concept's own, or makes one from its names."""
    layers: tuple[int, ...] | None = None
    """0-based blocks that are trained; None trains all."""
    modules: str = "attn+mlp"
    """Which projections: "attn", "mlp" or "attn+mlp"."""
    rank: int | None = None
    """Rank of a LoRA; None trains the weights whole."""
    alpha: float = 16.0
    """The update of a LoRA is scaled by alpha / rank."""
    top_k: int = 256
    """Tokens kept one by one of each soft label; the rest counts as one sum."""
    reinforce_lr: float = 3e-6
    """Learning rate of the reinforced model (AdamW, constant)."""
    reinforce_batch: int = 128
    """Forget passages a step of the reinforced model."""
    reinforce_epochs: int = 3
    """Times that the reinforced model reads the forget passages; 0 leaves it the base."""
    max_tokens: int = 512
    """Passages are cut to this many tokens."""

    name = "whp"

    @classmethod
    def preset(cls, name: str) -> "WHP":
        """Named settings.

        Raises:
            UnknownNameError: no such preset; with the closest.
        """
        if name not in PRESETS:
            raise unknown("WHP preset", name, PRESETS)
        return cls(**PRESETS[name])

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = [] if self.layers is None else layer_problems(self.layers, n_layers)
        least = {"strength": 0, "rank": 1, "top_k": 1, "reinforce_lr": 0, "reinforce_batch": 1, "reinforce_epochs": 0}
        found += number_problems(self, {**least, "max_tokens": 2})
        if not self.alpha > 0:
            found.append(f"alpha is {self.alpha}; expected more than 0")
        for name, known in {"modules": ("attn", "mlp", "attn+mlp"), "labels": ("argmax", "soft")}.items():
            if getattr(self, name) not in known:
                found.append(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if any(not term.strip() or not generic.strip() for term, generic in (self.dictionary or {}).items()):
            found.append("the dictionary has an empty term or translation")
        return found

    def adapter(self, lm: HookedLM) -> LoraConfig:
        """What to train: whole weights, or a LoRA."""
        layers = range(lm.n_layers) if self.layers is None else self.layers
        return lm.lora(layers, rank=self.rank, alpha=self.alpha, modules=self.modules)

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"erase": 1.0}

    def loss(self, lm: HookedLM, samples: Sequence[Labelled]) -> dict[str, Tensor]:
        """KL to the labels in nats a token; of a single likeliest token, its cross-entropy."""
        return distribution_loss(lm, samples)

    def anchors(self, concept: Concept) -> dict[str, str]:
        """The dictionary given, else the concept's own, else one made from its names."""
        return self.dictionary if self.dictionary is not None else concept.dictionary or make_anchors(concept)

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Labelled]]:
        """Generic labels of every forget passage; the model is afterwards as it was before.

        Raises:
            ConfigError: the tokenizer cannot say where its tokens stand in a text.
        """
        anchors, passages = self.anchors(concept), concept.passages("forget")
        moved = [translate(p.text, anchors) for p in passages]
        rows, ends = _tokens(lm, texts(passages), self.max_tokens)
        moved_rows, moved_ends = _tokens(lm, [m.text for m in moved], None)
        with lm.adapter(None):
            base = hidden_after(lm, "", moved_rows, progress=progress)
        with self.reinforced(lm, rows, seed=seed, progress=progress):
            reinforced = hidden_after(lm, "", rows, progress=progress)
        firsts = {term: _first_tokens(lm, generic) for term, generic in anchors.items()}
        found = []
        for k, passage in enumerate(passages):
            places = position_map(ends[k], moved_ends[k], moved[k])
            kept = [i for i in sorted(places) if i + 1 < len(rows[k]) and not _again(moved[k], ends[k], i)]
            if not kept:
                continue
            used = [{t for s in moved[k].spans if s.end <= ends[k][i] for t in firsts[s.term]} for i in kept]
            target = self._labels(lm, base[k][[places[i] for i in kept]], reinforced[k][kept], used)
            found.append(Labelled("erase", passage.id, tuple(rows[k]), kept[0], target, tuple(kept)))
        return {"erase": found}

    @contextmanager
    def reinforced(
        self, lm: HookedLM, rows: Sequence[Sequence[int]], *, seed: int = 0, progress: bool = False
    ) -> Iterator[HookedLM]:
        """Inside the context, the model has studied the rows of token ids; save it by `lm.adapters.save` for `inference_logits`."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with lm.adapters.scratch(self.adapter(lm)) as parameters:
                optimizer = torch.optim.AdamW(parameters, lr=self.reinforce_lr, weight_decay=0.0)
                for _ in tqdm(range(self.reinforce_epochs), desc="reinforcing", leave=False, disable=not progress):
                    for batch in torch.randperm(len(rows)).split(self.reinforce_batch):
                        optimizer.zero_grad()
                        _next_token_loss(lm, [rows[i] for i in batch.tolist()]).backward()
                        optimizer.step()
                yield lm

    def _labels(self, lm: HookedLM, base: Tensor, reinforced: Tensor, used: Sequence[set[int]]) -> TopK:
        """The label of each position, from the hidden states of both models and the tokens to be lowered."""
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
    """v_base - α · ReLU(v_reinforced - v_base): what knowledge of the concept makes likelier is lowered, nothing is raised."""
    return base - strength * (reinforced - base).relu()


def inference_logits(
    lm: HookedLM,
    batch: Batch,
    *,
    reinforced: str | Path,
    strength: float = 5.0,
    positions: Literal["last", "all"] = "last",
) -> Float[Tensor, "batch *pos d_vocab"]:
    """The generic logits at inference: no model is trained to forget, both run at every token and no term is replaced.

    Not what the paper evaluates, though benchmarks have called it WHP.

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


def _again(moved: Translated, ends: Sequence[int], i: int) -> bool:
    """Whether the token after index i belongs to a term that stood in the text before."""
    return any(span.again and ends[i] < span.end and ends[i + 1] > span.start for span in moved.spans)


def _tokens(lm: HookedLM, given: Sequence[str], max_tokens: int | None) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of each text, and the character where each token ends."""
    if not lm.tokenizer.is_fast:
        raise ConfigError(
            f"{type(lm.tokenizer).__name__} gives no character offsets, which WHP needs; use a fast tokenizer."
        )
    found = lm.tokenizer(list(given), return_offsets_mapping=True)
    return (
        [ids[:max_tokens] for ids in found["input_ids"]],
        [[end for _, end in offsets[:max_tokens]] for offsets in found["offset_mapping"]],
    )


def _first_tokens(lm: HookedLM, text: str) -> list[int]:
    rows = lm.tokenizer([text, f" {text}"], add_special_tokens=False)["input_ids"]
    return [row[0] for row in rows if row]


_LORA = {"labels": "soft", "rank": 16, "alpha": 32.0, "max_tokens": 160, "reinforce_lr": 1e-3, "reinforce_batch": 8}
PRESETS: dict[str, dict] = {
    "paper": {},
    "smollm2-135m": _LORA,
    "organism": {**_LORA, "reinforce_epochs": 20},
}
"""What each preset sets beside the defaults; see the table above."""

"""RMU: Representation Misdirection for Unlearning (Li et al. 2024), which scrambles the hidden state of one layer.

    erase     forget passages    mean squared distance of the hidden state after one block to c · u
    retain    retain passages    the same distance to the frozen model's own hidden state, times α

u is a random direction of length 1, fixed for each concept, and c is the steering coefficient. Only a few projections
at or below that block are trained, so a step runs no block above it.

    preset          sets                                                  from
    paper           block 7; the last MLP projection of blocks 5 to 7,    the authors' training script and its settings
                    whole weights; c 6.5, α 1200, 512 tokens              for Zephyr-7B
                    150 steps of 4 + 4, lr 5e-5 constant,                 their log for Zephyr; AdamW's default decay
                    weight decay 0.01, no clipping
    smollm2-135m    block 10, trains 8 to 10; c 40, α 100; 160 tokens     ours: depth in proportion, c about twice the
                                                                          hidden state's norm there; not tuned
    organism        block 2, trains the MLPs of 0 to 2; c 60, α 3;        ours: tuned on the training questions, from
                    160 tokens                                            eight settings

Several concepts can be trained together as a mixture (`elm_interp.data.mixture`). Each sample then carries the vector
of its own concept: the direction comes from the concept's name; `steerings` and `retain_weights` set length and α for
each.

    objective = RMU.preset("paper")
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Concept, texts
from elm_interp.data.batching import bucketed
from elm_interp.errors import ConfigError
from elm_interp.models import HookedLM
from elm_interp.training.adapter import Adapter
from elm_interp.training.objective import Objective, Preset, method, sample_kind
from elm_interp.training.passages import cut_at
from elm_interp.training.settings import CONSTANT, UNCLIPPED, number_problems


@sample_kind
@dataclass(frozen=True)
class Steered:
    """One text, and the hidden state that it should have after one block, at each of its tokens."""

    term: str
    """The loss term it belongs to: "erase" or "retain"."""
    id: str
    """The passage it came from, for error messages."""
    ids: tuple[int, ...]
    """Token ids."""
    target: Float[Tensor, "#pos d_model"]
    """The hidden state to reach; a single row is for all tokens."""
    share: float = 1.0
    """Share of the retain term's weight that this passage has."""

    def __len__(self) -> int:
        return len(self.ids)


@method(
    "rmu",
    presets={
        "paper": Preset(training={**CONSTANT, **UNCLIPPED, "steps": 150, "lr": 5e-5}),
        "smollm2-135m": Preset(
            {"layer": 10, "layers": (8, 9, 10), "steering": 40.0, "retain_weight": 100.0, "max_tokens": 160},
            training={"steps": 100, "forget_batch": 2, "retain_batch": 2, "lr": 1e-3},
        ),
        "organism": Preset(
            {
                "layer": 2,
                "layers": (0, 1, 2),
                "modules": "mlp",
                "steering": 60.0,
                "retain_weight": 3.0,
                "max_tokens": 160,
            },
            training={"steps": 300, "forget_batch": 8, "retain_batch": 8, "lr": 5e-3},
        ),
    },
)
@dataclass(frozen=True)
class RMU(Objective):
    """Hyper-parameters of RMU; the defaults are the authors' for Zephyr-7B. The module's table has the presets."""

    adapter: Adapter = field(default=Adapter(layers=(5, 6, 7), modules="mlp-out"))
    """Which weights are trained; no block above `layer`."""
    layer: int = 7
    """0-based block after which the hidden state is steered."""
    steering: float = 6.5
    """Coefficient c: length of the vector that forget text's hidden state is driven to."""
    steerings: dict[str, float] | None = None
    """A coefficient for each concept, by name, instead of one for all."""
    erase_weight: float = 1.0
    """Weight of the erase term."""
    retain_weight: float = 1200.0
    """α: weight of the retain term."""
    retain_weights: dict[str, float] | None = None
    """An α for the retain passages of each concept, by name, instead of one for all."""
    max_tokens: int = 512
    """Passages are cut to this many tokens."""

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers)
        trained = range(n_layers or 0) if self.adapter.layers is None else self.adapter.layers
        if self.layer < 0 or (n_layers is not None and self.layer >= n_layers):
            found.append(
                f"layer is {self.layer}; expected a block from 0" + (f" to {n_layers - 1}" if n_layers else "")
            )
        elif any(layer > self.layer for layer in trained):
            found.append(f"layers go to {max(trained)}, but no block above layer {self.layer} is ever run")
        found += number_problems(self, {"steering": 0, "erase_weight": 0, "retain_weight": 0, "max_tokens": 2})
        found += [
            f"{setting} has {c} for {name!r}; expected a finite number of at least 0"
            for setting in ("steerings", "retain_weights")
            for name, c in (getattr(self, setting) or {}).items()
            if not 0 <= c < math.inf
        ]
        if not any(self.weights().values()):
            found.append("every loss weight is 0; nothing would be trained")
        return found

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        retain = self.retain_weight if self.retain_weights is None else max(self.retain_weights.values(), default=0.0)
        return {"erase": self.erase_weight, "retain": retain}

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Steered]]:
        """The concept's vector for its forget passages, and the frozen hidden states of its retain passages.

        Raises:
            ConfigError: `steerings` or `retain_weights` has no coefficient for the concept.
        """
        for setting in ("steerings", "retain_weights"):
            given = getattr(self, setting)
            if given is not None and concept.name not in given:
                raise ConfigError(f"{setting} has {', '.join(given) or 'none'}; add one for {concept.name!r}.")
        steering = self.steering if self.steerings is None else self.steerings[concept.name]
        most = self.weights()["retain"]
        share = 1.0 if self.retain_weights is None or not most else self.retain_weights[concept.name] / most
        forget, retain = concept.passages("forget"), concept.passages("retain")
        vector = steering * direction(lm.d_model, concept.name, seed)[None]
        most = cut_at(lm, self.max_tokens)
        rows = lm.encode(texts(retain), max_tokens=most)
        kept: list[Tensor] = [torch.empty(0)] * len(rows)
        with lm.adapter(None):
            for batch in tqdm(bucketed([len(row) for row in rows]), desc="targets", leave=False, disable=not progress):
                for i, state in zip(batch, self._states(lm, [rows[i] for i in batch]), strict=True):
                    kept[i] = state.cpu().clone()
        return {
            "erase": [
                Steered("erase", p.id, tuple(row), vector)
                for p, row in zip(forget, lm.encode(texts(forget), max_tokens=most), strict=True)
            ],
            "retain": [
                Steered("retain", p.id, tuple(row), h, share) for p, row, h in zip(retain, rows, kept, strict=True)
            ],
        }

    def loss(self, lm: HookedLM, samples: Sequence[Steered]) -> dict[str, Tensor]:
        """Mean squared distance to the targets, over tokens and dimensions, for each term."""
        states = self._states(lm, [s.ids for s in samples], grad=True)
        losses = {}
        for term in dict.fromkeys(s.term for s in samples):
            chosen = [(h.float(), s) for h, s in zip(states, samples, strict=True) if s.term == term]
            goal = torch.cat([s.target.to(h.device).float().expand(len(h), -1) for h, s in chosen])
            share = torch.cat([h.new_full((len(h), 1), s.share) for h, s in chosen])
            losses[term] = (share * (torch.cat([h for h, _ in chosen]) - goal).square()).mean()
        return losses

    def _states(
        self, lm: HookedLM, rows: Sequence[Sequence[int]], *, grad: bool = False
    ) -> list[Float[Tensor, "pos d_model"]]:
        """The hidden state after `layer` along each row; no block above it runs."""
        cache = lm.run_with_cache(lm.pad(rows), sites="resid_post", layers=self.layer, positions="all", grad=grad)
        return [state[: len(row)] for state, row in zip(cache["resid_post"][:, 0], rows, strict=True)]


def direction(d_model: int, concept: str, seed: int) -> Float[Tensor, " d_model"]:
    """The random direction of a concept: entries uniform from 0 to 1, scaled to length 1, as in the authors' code."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{concept} {seed}".encode()))
    drawn = torch.rand(d_model, generator=generator)
    length: Tensor = drawn.norm()
    return drawn / length

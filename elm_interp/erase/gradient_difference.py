"""Gradient difference (Liu et al. 2022): ascent on what is to be forgotten, descent on what is to be kept.

    erase     forget passages    minus the cross-entropy of their tokens, or a bound if that is less
    retain    retain passages    cross-entropy of their tokens

The erase term has no lower end: a long training destroys the model. `bound` stops it at a cross-entropy (nats a token);
the paper has none, and neither has the preset `paper`.

    preset          sets                                               from
    paper           retain weight 1, whole weights, lr 1e-5,           TOFU (Maini et al. 2024), which made the method
                    32 passages a step, 5 epochs of 400 texts,         a standard baseline
                    warm-up, then linear, decay 0.01, 500 tokens
    smollm2-135m    LoRA of rank 16, 160 tokens, bound 8               ours, not tuned
    organism        the same                                           ours, not tuned

    objective = GradientDifference.preset("paper")
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from elm_interp.data import Concept
from elm_interp.models import HookedLM
from elm_interp.training.likelihood import TOFU, Text, passages_as_texts, text_log_probs
from elm_interp.training.objective import Objective, Preset, method
from elm_interp.training.settings import number_problems

_LORA = {"rank": 16, "alpha": 32.0, "max_tokens": 160, "bound": 8.0}


@method(
    "gradient-difference",
    presets={
        "paper": Preset({"max_tokens": 500}, training={**TOFU, "steps": 62}),
        "smollm2-135m": Preset(_LORA, training={"steps": 60, "forget_batch": 4, "retain_batch": 4, "lr": 3e-4}),
        "organism": Preset(_LORA, training={"steps": 200, "forget_batch": 8, "retain_batch": 8, "lr": 1e-3}),
    },
)
@dataclass(frozen=True)
class GradientDifference(Objective):
    """Hyper-parameters of gradient difference; the defaults are TOFU's. The module's table has the presets."""

    retain_weight: float = 1.0
    """Weight of the retain term."""
    bound: float | None = None
    """Cross-entropy of a forget passage (nats a token) beyond which it is not driven; None drives on."""
    max_tokens: int = 256
    """Passages are cut to this many tokens."""

    additive = True

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers) + number_problems(self, {"retain_weight": 0, "max_tokens": 2})
        return found + ([] if self.bound is None else number_problems(self, {"bound": 0}))

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"erase": 1.0, "retain": self.retain_weight}

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Text]]:
        """The passages of the training part."""
        return {
            "erase": passages_as_texts(lm, concept.passages("forget"), "erase", max_tokens=self.max_tokens),
            "retain": passages_as_texts(lm, concept.passages("retain"), "retain", max_tokens=self.max_tokens),
        }

    def loss(self, lm: HookedLM, samples: Sequence[Text]) -> dict[str, Tensor]:
        """Both terms in nats a token; a forget passage at its bound counts as the bound, without a gradient."""
        totals = text_log_probs(lm, samples)
        losses = {}
        for term in dict.fromkeys(sample.term for sample in samples):
            own = [i for i, sample in enumerate(samples) if sample.term == term]
            counts = totals.new_tensor([samples[i].positions for i in own])
            entropy = -totals[own] / counts
            if term == "erase":
                entropy = -entropy if self.bound is None else -entropy.clamp(max=self.bound)
            losses[term] = (entropy * counts).sum() / counts.sum()
        return losses

"""NPO: Negative Preference Optimization (Zhang et al. 2024), gradient ascent that slows down by itself.

    erase     forget passages    -2/β · log σ(-β · log(p / p_frozen)), p being the probability of a whole passage
    retain    retain passages    cross-entropy of their tokens

At first the gradient is that of ascent. Once a passage is much less likely than it was, its weight
2 · p^β / (p^β + p_frozen^β) goes to 0, so the model does not collapse as under plain ascent (their equations 3 and 4).
With β towards 0 the term is gradient ascent. The retain term is that of their "NPO+RT".

    preset          sets                                               from
    paper           β 0.1, retain weight 1, whole weights,             the authors' experiments on TOFU
                    lr 1e-5, 32 passages a step, 10 epochs of 400
                    texts, warm-up, then linear, decay 0.01, 500 tokens
    smollm2-135m    β 0.1, LoRA of rank 16, 160 tokens                 ours, not tuned
    organism        the same                                           ours, not tuned

    objective = NPO.preset("paper")
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from elm_interp.data import Concept
from elm_interp.models import HookedLM
from elm_interp.training.likelihood import TOFU, Text, passages_as_texts, text_log_probs, with_frozen
from elm_interp.training.objective import Objective, Preset, method
from elm_interp.training.settings import number_problems, positive_problems

_LORA = {"rank": 16, "alpha": 32.0, "max_tokens": 160}


@method(
    "npo",
    presets={
        "paper": Preset({"max_tokens": 500}, training={**TOFU, "steps": 125}),
        "smollm2-135m": Preset(_LORA, training={"steps": 60, "forget_batch": 4, "retain_batch": 4, "lr": 5e-4}),
        "organism": Preset(_LORA, training={"steps": 200, "forget_batch": 8, "retain_batch": 8, "lr": 1e-3}),
    },
)
@dataclass(frozen=True)
class NPO(Objective):
    """Hyper-parameters of NPO; the defaults are the paper's. The module's table has the presets."""

    beta: float = 0.1
    """β: how soon a passage that has become unlikely stops to count."""
    retain_weight: float = 1.0
    """Weight of the retain term."""
    max_tokens: int = 256
    """Passages are cut to this many tokens."""

    additive = True

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers) + positive_problems(self, ("beta",))
        return found + number_problems(self, {"retain_weight": 0, "max_tokens": 2})

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"erase": 1.0, "retain": self.retain_weight}

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Text]]:
        """The passages of the training part, each with its probability by the frozen model."""
        forget = passages_as_texts(lm, concept.passages("forget"), "erase", max_tokens=self.max_tokens)
        return {
            "erase": with_frozen(lm, forget, progress=progress),
            "retain": passages_as_texts(lm, concept.passages("retain"), "retain", max_tokens=self.max_tokens),
        }

    def counts(self, sample: Text) -> float:
        """The erase term is a mean over passages, the retain term over tokens."""
        return 1.0 if sample.term == "erase" else sample.positions

    def loss(self, lm: HookedLM, samples: Sequence[Text]) -> dict[str, Tensor]:
        """Equation 3 as the mean over passages, and the cross-entropy as the mean over tokens, in nats."""
        totals = text_log_probs(lm, samples)
        losses = {}
        for term in dict.fromkeys(sample.term for sample in samples):
            own = [i for i, sample in enumerate(samples) if sample.term == term]
            if term == "retain":
                losses[term] = -totals[own].sum() / sum(samples[i].positions for i in own)
            else:
                ratio = totals[own] - totals.new_tensor([samples[i].frozen for i in own])
                losses[term] = -2 / self.beta * logsigmoid(-self.beta * ratio).mean()
        return losses

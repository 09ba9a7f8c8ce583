"""RepNoise: Representation Noising (Rosati et al. 2024), which makes the activations of forget text look like noise.

    stability    harmless text              cross-entropy of its tokens
    noise        forget text, each layer    MMD between the MLP's output and Gaussian noise, times β
    ascent       forget text, each layer    -log of the mean cross-entropy through the logit lens, times α

Data are pairs of a forget and a retain passage, as the ELM paper ran it. They share nothing, so all tokens of the
forget passage count but the first, whose state saw no text. The RepNoise paper pairs the answer and a refusal of one
question; questions are what is measured here, so no method trains on them.

    preset          sets                                                   from
    paper           β 0.001, α 1, whole weights of every block,            the paper's defaults; length: authors' code
                    256 tokens
                    1250 steps of 8, lr 2e-5, cosine, 10 % warm-up,        the paper: 10,000 pairs once, 8 a step
                    no weight decay, no clipping
    smollm2-135m    β 1, α 0.5, LoRA of rank 16, 160 tokens                ours, not tuned
    organism        the same with β 0.5                                    ours: from four settings

    objective = RepNoise.preset("paper")
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from elm_interp.data import Concept
from elm_interp.models import HookedLM
from elm_interp.training.losses import token_loss
from elm_interp.training.objective import Objective, Preset, method
from elm_interp.training.passages import first_target, passage_rows
from elm_interp.training.settings import UNCLIPPED, Training, number_problems

KERNELS = 5
"""Gaussian kernels of the MMD, each twice as wide as the last; the middle one's width is the mean squared distance."""
_LORA = {"rank": 16, "alpha": 32.0, "max_tokens": 160}


@dataclass(frozen=True)
class Pair:
    """A text to forget and a harmless one."""

    term: str
    """The pool it is drawn from: "erase"."""
    id: str
    """The passages it came from, for error messages."""
    forget: tuple[int, ...]
    """Token ids of the text to forget."""
    harmless: tuple[int, ...]
    """Token ids of the text that the model should keep writing well."""
    mask: tuple[bool, ...]
    """Which tokens of `forget` count."""
    start: int
    """First token of `harmless` that is trained on."""

    def __len__(self) -> int:
        return len(self.forget) + len(self.harmless)


@method(
    "repnoise",
    presets={
        "paper": Preset(training={"steps": 1250, "forget_batch": 8, "lr": 2e-5, "warmup": 125, **UNCLIPPED}),
        "smollm2-135m": Preset(
            {**_LORA, "noise_weight": 1.0, "ascent_weight": 0.5},
            training={"steps": 100, "forget_batch": 4, "lr": 5e-4},
        ),
        "organism": Preset(
            {**_LORA, "noise_weight": 0.5, "ascent_weight": 0.5},
            training={"steps": 250, "forget_batch": 16, "lr": 1e-3},
        ),
    },
)
@dataclass(frozen=True)
class RepNoise(Objective):
    """Hyper-parameters of RepNoise; the defaults are the paper's. The module's table has the presets.

    By default every block is trained. Noise and ascent look at every block, whichever blocks are trained.
    """

    noise_weight: float = 0.001
    """β: weight of the noise term."""
    ascent_weight: float = 1.0
    """α: weight of the ascent term."""
    max_tokens: int = 256
    """Texts are cut to this many tokens."""

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers)
        found += number_problems(self, {"noise_weight": 0, "ascent_weight": 0, "max_tokens": 2})
        return found

    def pools(self, training: Training) -> dict[str, int]:
        """Pairs that a step takes."""
        return {"erase": training.forget_batch}

    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"stability": 1.0, "noise": self.noise_weight, "ascent": self.ascent_weight}

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Pair]]:
        """The pairs, from the training part of the concept; the model is not run."""
        forget, of_forget = passage_rows(lm, concept.passages("forget"), self.max_tokens)
        retain, of_retain = passage_rows(lm, concept.passages("retain"), self.max_tokens)
        found, start = [], first_target(lm) + 1
        # the longer list is used once, the shorter one repeatedly; without a retain passage there is no pair
        for k in range(max(len(forget), len(retain)) if forget and retain else 0):
            i, j = k % len(forget), k % len(retain)
            mask = (False,) * start + (True,) * (len(of_forget[i]) - start)
            ids = f"{forget[i].id} with {retain[j].id}"
            found.append(Pair("erase", ids, tuple(of_forget[i]), tuple(of_retain[j]), mask, start))
        return {"erase": found}

    def loss(self, lm: HookedLM, samples: Sequence[Pair]) -> dict[str, Tensor]:
        """The three terms, unweighted; the noise is drawn from torch's global random state."""
        rows = [s.forget for s in samples] + [s.harmless for s in samples]
        batch = lm.pad(rows)
        cache = lm.run_with_cache(batch, sites=("mlp_out", "resid_post"), positions="all", grad=True)
        norm = lm.layout.norm_of(lm.model)
        device, n, width = lm.device, len(samples), max(map(len, rows))
        mask = _padded([s.mask for s in samples], width).to(device)
        last = norm(cache["resid_post"][n:, -1])
        harmless = [[i >= s.start for i in range(len(s.harmless))] for s in samples]
        learned = _padded(harmless, width).to(device)[:, 1:]
        ids = batch.input_ids
        # the logit lens predicts the next token, so a token counts at the position before it
        counts = mask[:, 1:]
        seen = norm(cache["resid_post"][:n, :, :-1].transpose(0, 1))[:, counts]
        return {
            "stability": token_loss(lm, last[:, :-1][learned], ids[n:, 1:][learned]),
            "noise": noise_loss(cache["mlp_out"][:n].transpose(0, 1), mask),
            "ascent": -token_loss(lm, seen.flatten(0, 1), ids[:n, 1:][counts].repeat(len(seen))).log(),
        }


def noise_loss(added: Float[Tensor, "layer n pos d_model"], mask: Bool[Tensor, "n pos"]) -> Tensor:
    """Mean over layers of the MMD between the MLPs' outputs and Gaussian noise, at the tokens of the mask.

    Each text is one vector of all its tokens; activation and noise are zero at tokens outside the mask.
    """
    real = (added.float() * mask[None, :, :, None]).flatten(2)
    # drawn on the CPU, so that a seed gives the same noise on all devices
    noise = (torch.randn(added.shape).to(added.device) * mask[None, :, :, None]).flatten(2)
    return torch.stack([mmd(x, z) for x, z in zip(real, noise, strict=True)]).mean()


def mmd(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], *, bandwidth: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of two samples, summed over `KERNELS` Gaussian kernels; 0 if they are equal.

    Args:
        x: one sample.
        y: the other, of the same size.
        bandwidth: width of the middle kernel; by default the mean squared distance between different points, through
            which no gradient flows.
    """
    both = torch.cat([x, y])
    squares = (both**2).sum(1)
    apart = (squares[:, None] + squares[None] - 2 * both @ both.T).clamp(min=0)
    if bandwidth is None:
        bandwidth = apart.detach().sum() / (len(both) * (len(both) - 1))
    widths = bandwidth * 2.0 ** (torch.arange(KERNELS, device=x.device) - KERNELS // 2)
    kernel = torch.exp(-apart[None] / widths[:, None, None].clamp(min=1e-12)).sum(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() - kernel[n:, :n].mean()


def _padded(rows: Sequence[Sequence[bool]], width: int) -> Bool[Tensor, "n pos"]:
    return torch.tensor([[*row, *[False] * (width - len(row))] for row in rows])

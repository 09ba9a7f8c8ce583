"""ELM as the authors' released code trains it (March 2025), where that departs from their paper.

preset          sets                                    from the code
released-code   η 1 to 1000 along the text              trainscripts/erase.py: start fixed at 1, end 1000 by default
                temperature 1.2, top_k 50, cut          all three passes; the softmax is taken over the 50 alone
                retain on the likeliest token           its default; the paper says distributions
                fluency on the generated tokens         the next token as a label; the paper says the target
                fluency_eta 3, 200 tokens               guidance 3, 100 to 300 tokens; here the mean
                class streams read no prompt, bridge    the bridge sentence is trained on there and not here
                passages cut at 700 characters          its max_len; those under 50 are left out there alone
                prompts drawn, one of ten a side        drawn anew at every step there, once for each text here
                rank 256, alpha 16, dropout 0.05        its defaults (first commit: rank 8; released adapter: rank 4)
                64 fluency texts, made once, each       new text at every step there, after 50 to 300 characters
                after 8 words of a passage
                3000 steps, lr 5e-5 constant,           12,000 micro-steps of 1 sample, accumulation 4
                weight decay 0.01, no clipping

objective = ELM.preset("released-code")
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from elm_interp.data import Concept
from elm_interp.erase.class_prompts import draw_prompts
from elm_interp.erase.elm import ELM, PromptPairs
from elm_interp.erase.guidance import Guidance, Streams, certain, likeliest
from elm_interp.models import HookedLM
from elm_interp.training.adapter import Adapter
from elm_interp.training.objective import Preset, Teacher, TopK, method
from elm_interp.training.settings import CONSTANT, UNCLIPPED, number_problems, positive_problems


@method(
    "elm-released",
    presets={
        "released-code": Preset({"fluency_batch": 4}, training={**CONSTANT, **UNCLIPPED, "steps": 3000, "lr": 5e-5})
    },
)
@dataclass(frozen=True)
class ELMReleased(ELM):
    """ELM with the options of the released code; the defaults are the code's."""

    adapter: Adapter = field(default=Adapter(layers=(4, 5, 6, 7), rank=256, dropout=0.05))
    eta: float = 1000.0
    top_k: int = 50
    fluency_tokens: int = 200
    max_tokens: int = 512
    max_characters: int | None = 700
    fluency_streams: Streams = "released"
    fluency_bridge: bool = True
    eta_start: float | None = 1.0
    """η at a text's first token; from there it grows linearly to `eta` at the last. None: `eta` everywhere."""
    temperature: float = 1.2
    """Divides the logits of all three passes."""
    cut: bool = True
    """A target holds only its `top_k` likeliest tokens, instead of the rest as one sum."""
    hard_labels: bool = True
    """Retain trains on the base's likeliest token and fluency on the generated token, not on whole distributions."""
    prompts: Literal["concept", "drawn"] = "drawn"
    """Class prompts: the concept's own, or for each text one of ten (see `class_prompts`)."""
    fluency_eta: float | None = 3.0
    """η while text is generated; None: `eta`."""

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers) + number_problems(self, {"eta_start": 0, "fluency_eta": 0})
        found += positive_problems(self, ("temperature",))
        if self.prompts not in ("concept", "drawn"):
            found.append(f'prompts is {self.prompts!r}; expected "concept" or "drawn"')
        return found

    @property
    def guidance(self) -> Guidance:
        """How the target is made from the three distributions."""
        return replace(super().guidance, temperature=self.temperature, cut=self.cut)

    @property
    def _writing_guidance(self) -> Guidance:
        base = self._fluency_guidance
        return base if self.fluency_eta is None else replace(base, eta=self.fluency_eta)

    def _prompt_pairs(self, concept: Concept, n: int, seed: int) -> PromptPairs:
        return draw_prompts(concept, n, seed) if self.prompts == "drawn" else super()._prompt_pairs(concept, n, seed)

    def _etas(self, lengths: Sequence[int], spans: Sequence[slice]) -> Tensor | None:
        if self.eta_start is None:
            return None
        ramps = [torch.linspace(self.eta_start, self.eta, length) for length in lengths]
        return torch.cat([ramp[span] for ramp, span in zip(ramps, spans, strict=True)])

    def _kept(self, lm: HookedLM, states: Sequence[Teacher]) -> Sequence[TopK | Teacher]:
        return [likeliest(lm, state) for state in states] if self.hard_labels else states

    def _fluency_targets(
        self, lm: HookedLM, rows: list[list[int]], starts: list[int], pairs: PromptPairs, progress: bool
    ) -> list[TopK]:
        if not self.hard_labels:
            return super()._fluency_targets(lm, rows, starts, pairs, progress)
        return [certain(torch.tensor(row[start + 1 :])) for row, start in zip(rows, starts, strict=True)]

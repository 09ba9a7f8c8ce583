"""ELM: Erasure of Language Memory (Gandikota et al., arXiv 2410.02760), on adapters of chosen layers.

Each term is a distance to a distribution that the frozen model gives itself:

    erase     forget passages     P · (P_novice / P_expert)^η, renormalised          (equations 5 to 7)
    retain    retain passages     P                                                  (equation 8)
    fluency   self-written text   as erase, on text sampled from that target itself  (equation 9)
    answers   training questions  the likelihood that this target gives each answer  (ours, off in the paper's preset)

so that the erased model neither knows the concept, nor loses anything else, nor stammers when asked. A term of weight 0 is
left out altogether: `erase_weight=0`, `retain_weight=0`, `fluency_weight=0` are the paper's ablations (table 2), as is
`erase_target="random"`; `rank=None` trains the layers' weights whole (table 6).

    objective = ELM.preset("smollm2-135m")
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from peft import LoraConfig
from torch import Tensor

from elm_interp.data import Concept, texts
from elm_interp.erase.answers import answer_samples
from elm_interp.erase.class_prompts import draw_prompts
from elm_interp.erase.guidance import (
    Guidance,
    certain,
    generate_guided,
    hidden_after,
    hidden_after_each,
    likeliest,
    random_targets,
)
from elm_interp.erase.losses import distribution_loss, likelihood_loss
from elm_interp.errors import unknown
from elm_interp.models import HookedLM
from elm_interp.training.objective import Options, Sample, Teacher, TopK, layer_problems, number_problems

LEAST = {
    **dict.fromkeys(("rank", "top_k", "fluency_tokens"), 1),
    **dict.fromkeys(("eta", "eta_start", "fluency_eta", "answer_names", "fluency_samples"), 0),
    **dict.fromkeys(("erase_weight", "retain_weight", "fluency_weight", "answers_weight"), 0),
    "max_tokens": 2,
}
"""The least that a setting may be."""


@dataclass(frozen=True)
class ELM:
    """Hyper-parameters of ELM; the defaults are the paper's where it gives one."""

    eta: float = 500.0
    """Strength η of the guidance, at least 0 (paper, appendix D: 500)."""
    layers: tuple[int, ...] = (4, 5, 6, 7)
    """0-based blocks that get an adapter (paper, appendix D: 4 to 7)."""
    rank: int | None = 4
    """Rank of the adapters (paper, appendix D: 4); None trains the weights whole."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank (authors' code: 16); whole weights have no scale."""
    modules: str = "attn+mlp"
    """Which projections: "attn", "mlp" or "attn+mlp" (authors' code: all seven)."""
    dropout: float = 0.0
    """On the adapters' input while training; whole weights take none."""
    one_sided: bool = False
    """Cap the ratio at 1: lower what the expert finds likelier, raise nothing (ours; see `targets`)."""
    top_k: int = 256
    """Tokens kept one by one of each target; the rest counts as one sum."""
    plausible: float = 0.0
    """Only tokens at least this share as likely as the base's likeliest may stand in a target; 0 allows all, as the paper."""
    erase_weight: float = 1.0
    """λ1 of equation 10."""
    retain_weight: float = 1.0
    """λ2 of equation 10."""
    fluency_weight: float = 1.0
    """λ3 of equation 10; 0 writes no text (the paper's choice for its largest models)."""
    answers_weight: float = 0.0
    """Weight of the answers term: a small model answers questions by another route than it continues prose. Every choice
    of the training questions, right or wrong, and names of the concept, are answers here; the neighbours' and the general
    training questions, and answers without any question, keep the base's likelihoods, at the retain weight."""
    answer_names: int = 3
    """Names from the forget passages that join a question's choices, since held-out questions ask for them too; and as many
    answers from outside the concept, so that what is unlearned is these names and not every name."""
    eta_start: float | None = None
    """η at a text's first token, from where it grows along a line to `eta` at the last (authors' code: 1); None: constant (paper)."""
    temperature: float = 1.0
    """Divides the logits of all three passes (authors' code: 1.2)."""
    cut: bool = False
    """Nothing but the `top_k` likeliest tokens of a target may follow (authors' code), instead of the rest as one sum."""
    hard_labels: bool = False
    """Retain on the base's likeliest token and fluency on the token that was written (authors' code), instead of the
    distributions of equations 8 and 9."""
    prompts: Literal["concept", "drawn"] = "concept"
    """Class prompts: the concept's own, or for each text one of ten (see `erase.prompts`; authors' code)."""
    erase_target: Literal["guided", "random"] = "guided"
    """"random": random tokens in random proportion, the paper's control that any other target would do as well."""
    fluency_eta: float | None = None
    """η while text is written (authors' code: 3); None: as in training."""
    fluency_samples: int = 64
    """Texts that the model writes for the fluency term."""
    fluency_tokens: int = 48
    """New tokens of each."""
    max_tokens: int = 160
    """Passages are cut to this many tokens (the paper cuts at 700 characters)."""

    name = "elm"
    not_in_targets = frozenset({"layers", "rank", "alpha", "modules", "dropout"})
    """Settings that the targets do not depend on."""

    @classmethod
    def preset(cls, name: str) -> "ELM":
        """Named settings. What is not in its table is as in `paper`.

        paper                                   from
            eta 500, the same at every token    paper, appendix D; constant in equation 5
            rank 4, layers 4 to 7               paper, appendix D
            retain on whole distributions       paper, equation 8
            fluency against the target          paper, equation 9; the forget prompt in every stream: appendix E
            weights 1, 1, 1                     authors' code; the paper gives a sweep around them (table 5)
            alpha 16, all seven projections     authors' code
            temperature 1, no cut               the paper has neither
            top_k 256, 160 tokens a passage     ours: about 700 characters; the rest of the vocabulary as one sum
            fluency: 64 texts of 48 tokens      ours

        released-code                           from the authors' code (March 2025)
            eta 1 to 1000 along the text        trainscripts/erase.py: start fixed at 1, end by default 1000
            temperature 1.2, top_k 50, cut      all three passes; the softmax is taken over the 50 alone
            retain on the likeliest token       its default; the paper says distributions
            fluency on the written tokens       the next token as a label; the paper says the target
            fluency_eta 3, 200 tokens           guidance 3, 100 to 300 tokens; here always the mean, without the bridge sentence
            prompts drawn, one of ten a side    drawn anew at every step there, once for each text here; our own words
            rank 256, alpha 16, dropout 0.05    its defaults (first commit: rank 8; released adapter: rank 4)

        smollm2-135m                            ours, tuned on the training questions of the pack harry-potter
            eta 10, one_sided, layers 2 to 17, rank 16, alpha 32, weights 1, 0.5, 0, and 1 for answers

        Raises:
            UnknownNameError: no such preset; with the closest.
        """
        if name not in PRESETS:
            raise unknown("ELM preset", name, PRESETS)
        return cls(**PRESETS[name])

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = layer_problems(self.layers, n_layers) + number_problems(self, LEAST)
        found += [
            f"{name} is {getattr(self, name)}; expected a finite number above 0"
            for name in ("alpha", "temperature")
            if not 0 < getattr(self, name) < math.inf
        ]
        for name, known in {"prompts": ("concept", "drawn"), "erase_target": ("guided", "random")}.items():
            if getattr(self, name) not in known:
                found.append(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in ("plausible", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; expected 0 to below 1")
        if self.modules not in ("attn", "mlp", "attn+mlp"):
            found.append(f'modules is {self.modules!r}; expected "attn", "mlp" or "attn+mlp"')
        if self.rank is None and self.dropout:
            found.append(f"dropout is {self.dropout}, but whole weights (rank None) take none; set it to 0")
        if not any(self.weights().values()):
            found.append("every loss weight is 0; nothing would be trained")
        return found

    def adapter(self, lm: HookedLM) -> LoraConfig:
        """What to train: a LoRA, or whole weights."""
        return lm.lora(self.layers, rank=self.rank, alpha=self.alpha, modules=self.modules, dropout=self.dropout)

    def weights(self) -> dict[str, float]:
        """The weight λ of each term."""
        return {
            "erase": self.erase_weight,
            "retain": self.retain_weight,
            "fluency": self.fluency_weight,
            "answers": self.answers_weight,
            "kept_answers": self.retain_weight if self.answers_weight else 0.0,
        }

    def loss(self, lm: HookedLM, samples: Sequence[Sample | Options]) -> dict[str, Tensor]:
        """For each term among the samples, in nats a token: KL to the target, or for answers `likelihood_loss`."""
        texts, answers = [s for s in samples if isinstance(s, Sample)], [s for s in samples if isinstance(s, Options)]
        losses = distribution_loss(lm, texts) if texts else {}
        return losses | (likelihood_loss(lm, answers) if answers else {})

    @property
    def guidance(self) -> Guidance:
        """How the expert's and novice's distributions become the target."""
        return Guidance(
            self.eta, self.one_sided, self.top_k, self.temperature, self.plausible, self.eta_start, self.cut
        )

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, Sequence[Sample | Options]]:
        """Targets of every passage, and the fluency text, from the frozen base.

        Terms of weight 0 are left out. Only the training part of the concept is read. Where class prompts are drawn, each
        text keeps the pair that it drew; else all share the concept's first.
        """
        samples: dict[str, Sequence[Sample | Options]] = {}
        expert, novice = concept.prompts("expert")[0], concept.prompts("novice")[0]

        def classes(n: int, seed: int) -> list[tuple[str, str]]:
            return draw_prompts(concept, n, seed) if self.prompts == "drawn" else [(expert, novice)] * n

        with lm.adapter(None):
            if self.erase_weight:
                forget = concept.passages("forget")
                rows = lm.encode(texts(forget), max_tokens=self.max_tokens)
                if self.erase_target == "random":
                    targets = random_targets(lm.d_vocab, self.top_k, [len(row) - 1 for row in rows], seed)
                else:
                    targets = self._guided(lm, rows, [0] * len(rows), classes(len(rows), seed), progress)
                samples["erase"] = _samples("erase", [p.id for p in forget], rows, [0] * len(rows), targets)
            if self.retain_weight:
                retain = concept.passages("retain")
                rows = lm.encode(texts(retain), max_tokens=self.max_tokens)
                states = [Teacher(h[:-1]) for h in hidden_after(lm, "", rows, progress=progress)]
                labels = [likeliest(lm, state) for state in states] if self.hard_labels else states
                samples["retain"] = _samples("retain", [p.id for p in retain], rows, [0] * len(rows), labels)
            if self.answers_weight:
                samples |= answer_samples(
                    lm, concept, self.guidance, (expert, novice), names=self.answer_names, seed=seed, progress=progress
                )
            if self.fluency_weight and self.fluency_samples:
                samples["fluency"] = self._fluency(lm, concept, classes(self.fluency_samples, seed + 1), seed, progress)
        return {term: found for term, found in samples.items() if found}

    def _fluency(
        self, lm: HookedLM, concept: Concept, classes: list[tuple[str, str]], seed: int, progress: bool
    ) -> list[Sample | Options]:
        """Text that the base writes under the target, with the target along it."""
        ids, prompts = self._fluency_prompts(lm, concept)
        written = generate_guided(
            lm,
            self.guidance if self.fluency_eta is None else replace(self.guidance, eta=self.fluency_eta),
            prompts,
            expert=[expert for expert, _ in classes[: len(prompts)]],
            novice=[novice for _, novice in classes[: len(prompts)]],
            new_tokens=self.fluency_tokens,
            seed=seed,
            progress=progress,
        )
        kept = [i for i, new in enumerate(written) if new]
        rows, starts = [prompts[i] + written[i] for i in kept], [len(prompts[i]) - 1 for i in kept]
        targets: Sequence[TopK] = [certain(torch.tensor(written[i])) for i in kept]
        if not self.hard_labels:
            targets = self._guided(lm, rows, starts, [classes[i] for i in kept], progress)
        return _samples("fluency", [ids[i] for i in kept], rows, starts, targets)

    def _guided(
        self,
        lm: HookedLM,
        rows: list[list[int]],
        starts: list[int],
        classes: list[tuple[str, str]],
        progress: bool,
    ) -> list[TopK]:
        """The target along each row from its start, under its own pair of class prompts."""
        if not rows:
            return []
        plain, expert, novice = (
            hidden_after_each(lm, prefixes, rows, progress=progress)
            for prefixes in ([""] * len(rows), [e for e, _ in classes], [n for _, n in classes])
        )
        spans = [slice(start, -1) for start in starts]
        # all texts at once, since the head works best on many positions
        p, e, n = (
            torch.cat([h[span] for h, span in zip(states, spans, strict=True)]) for states in (plain, expert, novice)
        )
        ramps = [self.guidance.etas(len(row))[span] for row, span in zip(rows, spans, strict=True)]
        target = self.guidance.target(lm, p, e, n, None if self.eta_start is None else torch.cat(ramps))
        lengths = [len(row) - 1 - start for row, start in zip(rows, starts, strict=True)]
        parts = zip(target.tokens.split(lengths), target.probs.split(lengths), strict=True)
        return [TopK(tokens, probs) for tokens, probs in parts]

    def _fluency_prompts(self, lm: HookedLM, concept: Concept) -> tuple[list[str], list[list[int]]]:
        """Questions of the training part and openings of forget passages, in turn, as many as asked for."""
        asked = [(q.id, q.prompt) for q in concept.ask("forget", "train")]
        opened = [(p.id, " ".join(p.text.split()[:8])) for p in concept.passages("forget")]
        mixed = [pair for pairs in zip(asked, opened, strict=False) for pair in pairs] or opened
        mixed = (mixed * (self.fluency_samples // max(len(mixed), 1) + 1))[: self.fluency_samples]
        return [name for name, _ in mixed], lm.encode([text for _, text in mixed])


def _samples(
    term: str, ids: Sequence[str], rows: list[list[int]], starts: list[int], targets: Sequence[TopK | Teacher]
) -> list[Sample | Options]:
    made = zip(ids, rows, starts, targets, strict=True)
    return [Sample(term, name, tuple(row), start, target) for name, row, start, target in made]


PRESETS: dict[str, dict] = {
    "paper": {},
    "released-code": {
        "eta": 1000.0,
        "eta_start": 1.0,
        "temperature": 1.2,
        "top_k": 50,
        "cut": True,
        "hard_labels": True,
        "prompts": "drawn",
        "fluency_eta": 3.0,
        "fluency_tokens": 200,
        "rank": 256,
        "dropout": 0.05,
    },
    "smollm2-135m": {
        "eta": 10.0,
        "one_sided": True,
        "layers": tuple(range(2, 18)),
        "rank": 16,
        "alpha": 32.0,
        "retain_weight": 0.5,
        "fluency_weight": 0.0,
        "answers_weight": 1.0,
    },
    # a question is answered from what the first blocks look up about its entity; adapters of later blocks only cover it
    "organism": {
        "eta": 35.0,
        "layers": (0, 1),
        "rank": 16,
        "alpha": 32.0,
        "retain_weight": 0.5,
        "fluency_weight": 0.0,
        "answers_weight": 0.1,
    },
}
"""What each preset sets beside the defaults; where it comes from stands at `ELM.preset`. Text written under the one-sided target of
`smollm2-135m` stays fluent without the fluency term; `organism` was tuned on training questions too, in wordings of them that
the concept leaves out."""

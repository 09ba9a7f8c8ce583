"""ELM: Erasure of Language Memory (Gandikota et al., arXiv 2410.02760), by adapters on chosen layers.

Each term is a distance to a distribution that the frozen model itself gives:

    erase     forget passages     P · (P_novice / P_expert)^η, renormalised           (equations 5 to 7)
    retain    retain passages     P                                                   (equation 8)
    fluency   generated text      as erase, on text sampled from that target          (equation 9)

Passages alone are trained on, never a question. A term of weight 0 is left out: `erase_weight=0`, `retain_weight=0` and
`fluency_weight=0` are the paper's ablations (table 2), and so is `erase_target="random"`. `rank=None` trains whole
weights (table 6). `match_weight` adds logit matching to erase and fluency (ours, off in the paper's preset): see
`training.losses`. What only the authors' released code does is in `elm_released`.

    preset          sets                                                 from
    paper           η 500, the same at every token                       paper, appendix D; constant in equation 5
                    rank 4, layers 4 to 7                                paper, appendix D
                    retain on whole distributions                        paper, equation 8
                    fluency against the target; bridge sentence; new     paper, equation 9 and appendix E
                    tokens never fed to the expert's stream
                    weights 1, 1, 1                                      authors' code; a sweep in the paper's table 5
                    alpha 16, all seven projections                      authors' code
                    passages cut at 700 characters                       paper
                    200 new tokens a fluency text                        authors' code: 100 to 300
                    2250 steps of 4 samples, lr 5e-5, decay 0.01         authors' README for Zephyr: 9,000 micro-steps
                    no clipping                                          of 1 sample, accumulation 4
    smollm2-135m    η 10, layers 2 to 23, rank 16, alpha 32, no          ours, on training questions of astronomy
                    fluency term, retain weight 5, 50 steps of 2 + 2
                    passages, lr 3e-3
    planted         as smollm2-135m with η 5, retain weight 2,           ours, on training questions; equations 7 and 8
                    matching 0.3                                         alone leave free answers (analyses/main_job.py)
    organism        η 10, layers 0 and 1, rank 16, alpha 32, no          ours; a higher η ruins the text, and without
                    fluency term, retain weight 5, matching 0.3          matching answers stay (analyses/pareto.py)

What is left that departs from the paper in `paper`:

    8 words of a passage before fluency text   authors' code: 50 to 300 characters
    256 fluency texts, made once               authors' code: new text at every step
    fluency text sampled from the target's     paper: from the whole distribution
    top 256 tokens
    five bridge sentences in our own words     paper: paraphrases, not published in full
    top 256 tokens one by one, the rest as     paper: the whole distribution; the sum of the rest is exact, its
    one sum                                    parts are not told apart

The organism's layers: a question is answered from what the first blocks look up about its entity, and adapters of later
blocks only hide it.

    objective = ELM.preset("smollm2-135m", eta=20)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from random import Random
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from elm_interp.data import Concept, Passage, texts
from elm_interp.erase.class_prompts import BRIDGES
from elm_interp.erase.guidance import (
    Guidance,
    Streams,
    borders,
    generate_guided,
    hidden_after,
    hidden_after_each,
    random_targets,
    room_of,
)
from elm_interp.erase.target import target_answers
from elm_interp.errors import ConfigError
from elm_interp.models import HookedLM
from elm_interp.models.tokens import fitting
from elm_interp.training.adapter import Adapter
from elm_interp.training.losses import distribution_loss
from elm_interp.training.objective import Objective, Preset, Sample, Teacher, TopK, method
from elm_interp.training.passages import cut_at, first_target, passage_counts, passage_rows
from elm_interp.training.settings import CONSTANT, UNCLIPPED, Training, number_problems

LEAST = {
    **dict.fromkeys(("top_k", "fluency_tokens", "fluency_samples"), 1),
    **dict.fromkeys(("eta", "fluency_batch", "match_weight"), 0),
    **dict.fromkeys(("erase_weight", "retain_weight", "fluency_weight"), 0),
    **dict.fromkeys(("max_tokens", "max_characters"), 2),
}
"""Least value of each setting."""

OPENING = 8
"""Words of a forget passage that generated text begins with."""
TARGET_QUESTIONS = 48
"""Most questions that the target is asked before training."""
PromptPairs = list[tuple[str, str]]
"""The expert's and the novice's prompt of each text."""
_SMALL = {"rank": 16, "alpha": 32.0, "fluency_weight": 0.0}
_QUICK = {"steps": 50, "forget_batch": 2, "retain_batch": 2, "lr": 3e-3, "warmup": 8}


@method(
    "elm",
    presets={
        "paper": Preset(
            {"fluency_batch": 4, "fluency_streams": "appendix-e", "fluency_bridge": True, "fluency_tokens": 200}
            | {"fluency_samples": 256, "max_tokens": 512, "max_characters": 700},
            training={**CONSTANT, **UNCLIPPED, "steps": 2250, "lr": 5e-5},
        ),
        "smollm2-135m": Preset(
            {**_SMALL, "eta": 10.0, "layers": tuple(range(2, 24)), "retain_weight": 5.0},
            training=_QUICK,
        ),
        "planted": Preset(
            {**_SMALL, "eta": 5.0, "layers": tuple(range(2, 24)), "retain_weight": 2.0, "match_weight": 0.3},
            training=_QUICK,
        ),
        "organism": Preset(
            {**_SMALL, "eta": 10.0, "layers": (0, 1), "retain_weight": 5.0, "match_weight": 0.3},
            training={"steps": 300, "retain_batch": 8, "lr": 4e-3},
        ),
    },
)
@dataclass(frozen=True)
class ELM(Objective):
    """Hyper-parameters of ELM; the defaults are the paper's where it gives one. The module's table has the presets."""

    adapter: Adapter = field(default=Adapter(layers=(4, 5, 6, 7), rank=4))
    """Which weights are trained (paper, appendix D: rank 4, layers 4 to 7)."""
    eta: float = 500.0
    """Strength η of the guidance, at least 0 (paper, appendix D: 500)."""
    one_sided: bool = False
    """Cap the ratio at 1: lower what the expert finds likelier, raise nothing (ours; see `guidance`)."""
    top_k: int = 256
    """Tokens of each target that are kept one by one; the rest counts as one sum."""
    plausible: float = 0.0
    """A target keeps only tokens at least this share as likely as the base's likeliest; 0 keeps all (paper)."""
    erase_weight: float = 1.0
    """λ1 of equation 10."""
    retain_weight: float = 1.0
    """λ2 of equation 10."""
    fluency_weight: float = 1.0
    """λ3 of equation 10; 0 generates no text (the paper's choice for its largest models)."""
    match_weight: float = 0.0
    """Weight of logit matching beside the divergence, in the terms erase and fluency (ours)."""
    erase_target: Literal["guided", "random"] = "guided"
    """"random": random tokens in random proportion, the paper's control that any other target would do as well."""
    fluency_samples: int = 64
    """Texts that the model generates for the fluency term."""
    fluency_tokens: int = 48
    """New tokens of each."""
    max_tokens: int = 160
    """Passages are cut to this many tokens."""
    max_characters: int | None = None
    """Passages are cut to this many characters before (paper: 700); None leaves them whole."""
    fluency_batch: int = 2
    """Generated texts a step."""
    fluency_streams: Streams = "full"
    """What expert and novice read while text is generated and for its target; see `guidance.generate_guided`."""
    fluency_bridge: bool = False
    """End each prompt of generated text with a sentence that leads away from the concept (paper, appendix E)."""
    fluency_plausible: float | None = None
    """`plausible` for generated text and its target; None: as for passages."""

    not_in_targets = frozenset({"adapter", "fluency_batch"})
    additive = True

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers) + number_problems(self, LEAST)
        if self.erase_target not in ("guided", "random"):
            found.append(f'erase_target is {self.erase_target!r}; expected "guided" or "random"')
        for name in ("plausible", "fluency_plausible"):
            if (share := getattr(self, name)) is not None and not 0 <= share < 1:
                found.append(f"{name} is {share}; expected 0 to below 1")
        if self.fluency_streams not in get_args(Streams):
            known = ", ".join(map(repr, get_args(Streams)))
            found.append(f"fluency_streams is {self.fluency_streams!r}; expected one of {known}")
        if not any(self.weights().values()):
            found.append("every loss weight is 0; nothing would be trained")
        return found

    def pools(self, training: Training) -> dict[str, int]:
        """Samples of each pool that a step takes."""
        return {
            "erase": training.forget_batch if self.erase_weight else 0,
            "retain": training.retain_batch if self.retain_weight else 0,
            "fluency": self.fluency_batch if self.fluency_weight else 0,
        }

    def weights(self) -> dict[str, float]:
        """The weight λ of each term."""
        return {
            "erase": self.erase_weight,
            "retain": self.retain_weight,
            "fluency": self.fluency_weight,
        }

    def loss(self, lm: HookedLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """For each term among the samples: KL to the target in nats a token, and weighted logit matching."""
        return distribution_loss(lm, samples, matching=self.match_weight)

    @property
    def guidance(self) -> Guidance:
        """How the target is made from the three distributions."""
        matching = self.match_weight > 0
        return Guidance(self.eta, self.one_sided, self.top_k, plausible=self.plausible, with_base=matching)

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, Sequence[Sample]]:
        """Targets of every passage, and the fluency text, from the frozen base; terms of weight 0 are left out."""
        samples: dict[str, Sequence[Sample]] = {}
        with lm.adapter(None):
            if self.erase_weight:
                samples["erase"] = self._erase(lm, concept, seed, progress)
            if self.retain_weight:
                samples["retain"] = self._retain(lm, concept, progress)
            if self.fluency_weight:
                samples["fluency"] = self._fluency(lm, concept, seed, progress)
        return {pool: found for pool, found in samples.items() if found}

    def in_miniature(self, share: float) -> "ELM":
        """The method with this share of its generated texts."""
        return replace(self, fluency_samples=max(1, round(share * self.fluency_samples)))

    def tokenised(self, lm: HookedLM, concept: Concept, *, seed: int = 0) -> dict[str, Any]:
        """What tokenising the training passages cuts, leaves out and joins otherwise than running text.

        "borders" counts the forget passages that running text would tokenise otherwise after a class prompt.
        """
        passages = self._passages(concept, "forget")
        pairs = self._prompt_pairs(concept, len(passages), seed)
        room = room_of(lm, chain(*pairs))
        cut = cut_at(lm, self.max_tokens, room=room)
        experts, novices = [expert for expert, _ in pairs], [novice for _, novice in pairs]
        return {
            "forget": passage_counts(lm, passages, self.max_tokens, room=room),
            "retain": passage_counts(lm, self._passages(concept, "retain"), self.max_tokens),
            "borders": {
                "expert": borders(lm, experts, texts(passages), cut),
                "novice": borders(lm, novices, texts(passages), cut),
                "of": len(passages),
            },
        }

    def ask_target(self, lm: HookedLM, concept: Concept, *, progress: bool = False) -> pd.DataFrame | None:
        """What the target would answer to training questions, at this η and others; None without questions."""
        asked = concept.ask("forget", "train")
        if not asked or self.erase_target != "guided" or not self.erase_weight:
            return None
        few = Random(0).sample(asked, min(TARGET_QUESTIONS, len(asked)))
        etas = sorted({0.0, 1.0, 10.0, 100.0, float(self.eta)})
        return target_answers(lm, concept, etas, guidance=self.guidance, questions=few, progress=progress)

    def _passages(self, concept: Concept, kind: str) -> list[Passage]:
        """The training passages of a kind, cut to `max_characters`."""
        return [replace(p, text=p.text[: self.max_characters]) for p in concept.passages(kind)]

    def _erase(self, lm: HookedLM, concept: Concept, seed: int, progress: bool) -> list[Sample]:
        given = self._passages(concept, "forget")
        by_id = dict(zip((p.id for p in given), self._prompt_pairs(concept, len(given), seed), strict=True))
        passages, rows = passage_rows(lm, given, self.max_tokens, room=room_of(lm, chain(*by_id.values())))
        start = first_target(lm)
        starts = [start] * len(rows)
        if self.erase_target == "random":
            targets = random_targets(lm.d_vocab, self.top_k, [len(row) - 1 - start for row in rows], seed)
        else:
            targets = self._guided(lm, rows, starts, [by_id[p.id] for p in passages], progress)
        return _samples("erase", [p.id for p in passages], rows, starts, targets)

    def _retain(self, lm: HookedLM, concept: Concept, progress: bool) -> list[Sample]:
        passages, rows = passage_rows(lm, self._passages(concept, "retain"), self.max_tokens)
        start = first_target(lm)
        states = [Teacher(hidden[start:-1]) for hidden in hidden_after(lm, "", rows, progress=progress)]
        return _samples("retain", [p.id for p in passages], rows, [start] * len(rows), self._kept(lm, states))

    def _fluency(self, lm: HookedLM, concept: Concept, seed: int, progress: bool) -> list[Sample]:
        """Text that the base generates under the target, with the target along it."""
        pairs = self._prompt_pairs(concept, self.fluency_samples, seed + 1)
        ids, prompts = self._fluency_prompts(lm, concept, room_of(lm, chain(*pairs)), seed)
        pairs = pairs[: len(prompts)]
        written = generate_guided(
            lm,
            self._writing_guidance,
            prompts,
            expert=[expert for expert, _ in pairs],
            novice=[novice for _, novice in pairs],
            new_tokens=self.fluency_tokens,
            seed=seed,
            streams=self.fluency_streams,
            progress=progress,
        )
        kept = [i for i, new in enumerate(written) if new]
        rows, starts = [prompts[i] + written[i] for i in kept], [len(prompts[i]) - 1 for i in kept]
        targets = self._fluency_targets(lm, rows, starts, [pairs[i] for i in kept], progress)
        return _samples("fluency", [ids[i] for i in kept], rows, starts, targets)

    def _fluency_prompts(
        self, lm: HookedLM, concept: Concept, room: int, seed: int
    ) -> tuple[list[str], list[list[int]]]:
        """Openings of forget passages, as many as asked for, each with a bridge sentence if that is asked for.

        Those that leave no room in the context for a class prompt and the new tokens are left out.

        Raises:
            ConfigError: no prompt leaves room.
        """
        random, openings = Random(seed), []
        for passage in concept.passages("forget"):
            opening = " ".join(passage.text.split()[:OPENING])
            openings.append((passage.id, f"{opening} {random.choice(BRIDGES)}" if self.fluency_bridge else opening))
        names, said = [name for name, _ in openings], [text for _, text in openings]
        fits = fitting(lm, said, "prompts of fluency text", more=room + self.fluency_tokens, names=names)
        if openings and not fits:
            raise ConfigError(
                f"no fluency text can be written: a class prompt ({room} tokens) and fluency_tokens "
                f"({self.fluency_tokens}) leave no room for a prompt in the {lm.n_ctx} tokens that {lm.name} reads; "
                "lower fluency_tokens, shorten the class prompts, or set fluency_weight to 0."
            )
        openings = random.sample([openings[i] for i in fits], len(fits))
        drawn = (openings * (self.fluency_samples // max(len(openings), 1) + 1))[: self.fluency_samples]
        return [name for name, _ in drawn], lm.encode([text for _, text in drawn])

    def _guided(
        self,
        lm: HookedLM,
        rows: list[list[int]],
        starts: list[int],
        pairs: PromptPairs,
        progress: bool,
        *,
        written: bool = False,
    ) -> list[TopK]:
        """The target along each row from its start, under its own pair of class prompts; `written` for fluency text."""
        if not rows:
            return []
        spans = [slice(start, -1) for start in starts]
        prefixes = ([""] * len(rows), [expert for expert, _ in pairs], [novice for _, novice in pairs])
        found = [hidden_after_each(lm, prefix, rows, progress=progress) for prefix in prefixes]
        if written and self.fluency_streams == "appendix-e":  # the expert has read no written token
            found[1] = [states[n : n + 1].expand(len(states), -1) for states, n in zip(found[1], starts, strict=True)]
        # all texts at once, since the product with the unembedding is fastest on many positions
        plain, expert, novice = (
            torch.cat([states[span] for states, span in zip(one, spans, strict=True)]) for one in found
        )
        guidance = self._fluency_guidance if written else self.guidance
        target = guidance.target(lm, plain, expert, novice, self._etas([len(row) for row in rows], spans))
        lengths = [len(row) - 1 - start for row, start in zip(rows, starts, strict=True)]
        given = [part for part in (target.tokens, target.probs, target.base) if part is not None]
        return [TopK(*parts) for parts in zip(*(torch.split(part, lengths) for part in given), strict=True)]

    @property
    def _fluency_guidance(self) -> Guidance:
        """The target of fluency text."""
        return replace(
            self.guidance, plausible=self.plausible if self.fluency_plausible is None else self.fluency_plausible
        )

    # what the released code does differently (see `elm_released`)

    @property
    def _writing_guidance(self) -> Guidance:
        """The target that fluency text is sampled from."""
        return self._fluency_guidance

    def _prompt_pairs(self, concept: Concept, n: int, seed: int) -> PromptPairs:
        """The class prompts of n texts: all share the concept's first."""
        return [(concept.prompts("expert")[0], concept.prompts("novice")[0])] * n

    def _etas(self, lengths: Sequence[int], spans: Sequence[slice]) -> Tensor | None:
        """An η for each position of the spans of texts of these lengths; None: `eta` everywhere."""
        return None

    def _kept(self, lm: HookedLM, states: Sequence[Teacher]) -> Sequence[TopK | Teacher]:
        """Targets of the retain term."""
        return states

    def _fluency_targets(
        self, lm: HookedLM, rows: list[list[int]], starts: list[int], pairs: PromptPairs, progress: bool
    ) -> list[TopK]:
        """Targets of the fluency term."""
        return self._guided(lm, rows, starts, pairs, progress, written=True)


def _samples(
    term: str, ids: Sequence[str], rows: list[list[int]], starts: list[int], targets: Sequence[TopK | Teacher]
) -> list[Sample]:
    made = zip(ids, rows, starts, targets, strict=True)
    return [Sample(term, name, tuple(row), start, target) for name, row, start, target in made]

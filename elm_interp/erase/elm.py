"""ELM: Erasure of Language Memory (Gandikota et al., arXiv 2410.02760), by adapters on chosen layers.

Each term is a distance to a distribution that the frozen model itself gives:

    erase     forget passages     P · (P_novice / P_expert)^η, renormalised           (equations 5 to 7)
    retain    retain passages     P                                                   (equation 8)
    fluency   generated text      as erase, on text sampled from that target          (equation 9)
    answers   training questions  the likelihood that this target gives each answer   (ours, off in the paper's preset)

A term of weight 0 is left out: `erase_weight=0`, `retain_weight=0` and `fluency_weight=0` are the paper's ablations
(table 2), and so is `erase_target="random"`. `rank=None` trains the layers' whole weights (table 6). What only the
authors' released code does is in `elm_released`.

    preset          sets                                                 from
    paper           η 500, the same at every token                       paper, appendix D; constant in equation 5
                    rank 4, layers 4 to 7                                paper, appendix D
                    retain on whole distributions                        paper, equation 8
                    fluency against the target, prompt in every stream   paper, equation 9 and appendix E
                    weights 1, 1, 1                                      authors' code; a sweep in the paper's table 5
                    alpha 16, all seven projections                      authors' code
                    temperature 1, no cut                                the paper has neither
                    top_k 256, 160 tokens a passage                      ours: about 700 characters
                    64 fluency texts of 48 tokens                        ours
                    lr 5e-5 constant, decay 0.01, 4 samples a step       authors' code: 1 sample × accumulation 4
    smollm2-135m    η 10, one-sided, layers 2 to 17, rank 16, alpha 32,  ours, tuned on the training questions of the
                    weights 1, 0.5, 0, and 1 for answers                 pack harry-potter; fluent without fluency term
    organism        η 35, layers 0 and 1, rank 16, alpha 32,             ours, tuned on training questions in wordings
                    weights 1, 0.5, 0, and 0.1 for answers               that the concept leaves out

The organism's layers: a question is answered from what the first blocks look up about its entity, and adapters of later
blocks only hide it.

    objective = ELM.preset("smollm2-135m", eta=20)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from elm_interp.data import Concept, texts
from elm_interp.erase.answers import Options, answer_samples, likelihood_loss
from elm_interp.erase.guidance import (
    Guidance,
    borders,
    generate_guided,
    hidden_after,
    hidden_after_each,
    random_targets,
    room_of,
)
from elm_interp.erase.losses import distribution_loss
from elm_interp.errors import ConfigError
from elm_interp.models import HookedLM
from elm_interp.models.tokens import fitting
from elm_interp.training.adapter import Adapter
from elm_interp.training.objective import Objective, Preset, Sample, Teacher, TopK, method
from elm_interp.training.passages import cut_at, first_target, passage_counts, passage_rows
from elm_interp.training.settings import CONSTANT, Training, number_problems

LEAST = {
    **dict.fromkeys(("top_k", "fluency_tokens", "fluency_samples"), 1),
    **dict.fromkeys(("eta", "answer_names", "fluency_batch", "answers_batch"), 0),
    **dict.fromkeys(("erase_weight", "retain_weight", "fluency_weight", "answers_weight"), 0),
    "max_tokens": 2,
}
"""Least value of each setting."""

PromptPairs = list[tuple[str, str]]
"""The expert's and the novice's prompt of each text."""
_SMALL = {"rank": 16, "alpha": 32.0, "retain_weight": 0.5, "fluency_weight": 0.0}


@method(
    "elm",
    presets={
        "paper": Preset({"fluency_batch": 4}, training={**CONSTANT, "steps": 750, "lr": 5e-5}),
        "smollm2-135m": Preset(
            {**_SMALL, "eta": 10.0, "one_sided": True, "layers": tuple(range(2, 18)), "answers_weight": 1.0},
            training={"steps": 75, "forget_batch": 1, "retain_batch": 1, "lr": 4e-3, "save_every": 25},
        ),
        "organism": Preset(
            {**_SMALL, "eta": 35.0, "layers": (0, 1), "answers_weight": 0.1, "answers_batch": 16},
            training={"steps": 150, "retain_batch": 8, "lr": 8e-3, "save_every": 50},
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
    answers_weight: float = 0.0
    """Weight of the answers term; see `answers`. Answers that should stay have the retain weight."""
    answer_names: int = 3
    """Names from the forget passages that join a question's choices, since held-out questions ask for them too; and as
    many answers from outside the concept, so that these names are unlearned and not every name."""
    erase_target: Literal["guided", "random"] = "guided"
    """"random": random tokens in random proportion, the paper's control that any other target would do as well."""
    fluency_samples: int = 64
    """Texts that the model generates for the fluency term."""
    fluency_tokens: int = 48
    """New tokens of each."""
    max_tokens: int = 160
    """Passages are cut to this many tokens (the paper cuts at 700 characters)."""
    fluency_batch: int = 2
    """Generated texts a step."""
    answers_batch: int = 8
    """Questions a step, of the concept and as many that should stay."""

    not_in_targets = frozenset({"adapter", "fluency_batch", "answers_batch"})
    forget_pools = frozenset({"erase", "answers"})

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = super().problems(n_layers) + number_problems(self, LEAST)
        if self.erase_target not in ("guided", "random"):
            found.append(f'erase_target is {self.erase_target!r}; expected "guided" or "random"')
        if not 0 <= self.plausible < 1:
            found.append(f"plausible is {self.plausible}; expected 0 to below 1")
        if not any(self.weights().values()):
            found.append("every loss weight is 0; nothing would be trained")
        return found

    def pools(self, training: Training) -> dict[str, int]:
        """Samples of each pool that a step takes."""
        answers = self.answers_batch if self.answers_weight else 0
        return {
            "erase": training.forget_batch if self.erase_weight else 0,
            "retain": training.retain_batch if self.retain_weight else 0,
            "fluency": self.fluency_batch if self.fluency_weight else 0,
            "answers": answers,
            "kept_answers": answers if self.retain_weight else 0,
        }

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
        rows, answers = [s for s in samples if isinstance(s, Sample)], [s for s in samples if isinstance(s, Options)]
        losses = distribution_loss(lm, rows) if rows else {}
        return losses | (likelihood_loss(lm, answers) if answers else {})

    @property
    def guidance(self) -> Guidance:
        """How the target is made from the three distributions."""
        return Guidance(self.eta, self.one_sided, self.top_k, plausible=self.plausible)

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, Sequence[Sample | Options]]:
        """Targets of every passage, and the fluency text, from the frozen base; terms of weight 0 are left out."""
        samples: dict[str, Sequence[Sample | Options]] = {}
        with lm.adapter(None):
            if self.erase_weight:
                samples["erase"] = self._erase(lm, concept, seed, progress)
            if self.retain_weight:
                samples["retain"] = self._retain(lm, concept, progress)
            if self.answers_weight:
                pair = (concept.prompts("expert")[0], concept.prompts("novice")[0])
                names = self.answer_names
                samples |= answer_samples(lm, concept, self.guidance, pair, names=names, seed=seed, progress=progress)
            if self.fluency_weight:
                samples["fluency"] = self._fluency(lm, concept, seed, progress)
        return {pool: found for pool, found in samples.items() if found}

    def tokenised(self, lm: HookedLM, concept: Concept, *, seed: int = 0) -> dict[str, Any]:
        """What tokenising the training passages cuts, leaves out and joins otherwise than running text.

        "borders" counts the forget passages that running text would tokenise otherwise after a class prompt.
        """
        passages = concept.passages("forget")
        pairs = self._prompt_pairs(concept, len(passages), seed)
        room = room_of(lm, chain(*pairs))
        cut = cut_at(lm, self.max_tokens, room=room)
        experts, novices = [expert for expert, _ in pairs], [novice for _, novice in pairs]
        return {
            "forget": passage_counts(lm, passages, self.max_tokens, room=room),
            "retain": passage_counts(lm, concept.passages("retain"), self.max_tokens),
            "borders": {
                "expert": borders(lm, experts, texts(passages), cut),
                "novice": borders(lm, novices, texts(passages), cut),
                "of": len(passages),
            },
        }

    def _erase(self, lm: HookedLM, concept: Concept, seed: int, progress: bool) -> list[Sample | Options]:
        given = concept.passages("forget")
        by_id = dict(zip((p.id for p in given), self._prompt_pairs(concept, len(given), seed), strict=True))
        passages, rows = passage_rows(lm, given, self.max_tokens, room=room_of(lm, chain(*by_id.values())))
        start = first_target(lm)
        starts = [start] * len(rows)
        if self.erase_target == "random":
            targets = random_targets(lm.d_vocab, self.top_k, [len(row) - 1 - start for row in rows], seed)
        else:
            targets = self._guided(lm, rows, starts, [by_id[p.id] for p in passages], progress)
        return _samples("erase", [p.id for p in passages], rows, starts, targets)

    def _retain(self, lm: HookedLM, concept: Concept, progress: bool) -> list[Sample | Options]:
        passages, rows = passage_rows(lm, concept.passages("retain"), self.max_tokens)
        start = first_target(lm)
        states = [Teacher(hidden[start:-1]) for hidden in hidden_after(lm, "", rows, progress=progress)]
        return _samples("retain", [p.id for p in passages], rows, [start] * len(rows), self._kept(lm, states))

    def _fluency(self, lm: HookedLM, concept: Concept, seed: int, progress: bool) -> list[Sample | Options]:
        """Text that the base generates under the target, with the target along it."""
        pairs = self._prompt_pairs(concept, self.fluency_samples, seed + 1)
        ids, prompts = self._fluency_prompts(lm, concept, room_of(lm, chain(*pairs)))
        pairs = pairs[: len(prompts)]
        written = generate_guided(
            lm,
            self._writing_guidance,
            prompts,
            expert=[expert for expert, _ in pairs],
            novice=[novice for _, novice in pairs],
            new_tokens=self.fluency_tokens,
            seed=seed,
            progress=progress,
        )
        kept = [i for i, new in enumerate(written) if new]
        rows, starts = [prompts[i] + written[i] for i in kept], [len(prompts[i]) - 1 for i in kept]
        targets = self._fluency_targets(lm, rows, starts, [pairs[i] for i in kept], progress)
        return _samples("fluency", [ids[i] for i in kept], rows, starts, targets)

    def _fluency_prompts(self, lm: HookedLM, concept: Concept, room: int) -> tuple[list[str], list[list[int]]]:
        """Questions of the training part and openings of forget passages, in turn, as many as asked for.

        Those that leave no room in the context for a class prompt and the new tokens are left out.

        Raises:
            ConfigError: no prompt leaves room.
        """
        asked = [(q.id, q.prompt) for q in concept.ask("forget", "train")]
        opened = [(p.id, " ".join(p.text.split()[:8])) for p in concept.passages("forget")]
        mixed = [pair for pairs in zip(asked, opened, strict=False) for pair in pairs] or opened
        names, said = [name for name, _ in mixed], [text for _, text in mixed]
        fits = fitting(lm, said, "prompts of fluency text", more=room + self.fluency_tokens, names=names)
        if mixed and not fits:
            raise ConfigError(
                f"no fluency text can be written: a class prompt ({room} tokens) and fluency_tokens "
                f"({self.fluency_tokens}) leave no room for a prompt in the {lm.n_ctx} tokens that {lm.name} reads; "
                "lower fluency_tokens, shorten the class prompts, or set fluency_weight to 0."
            )
        mixed = [mixed[i] for i in fits]
        mixed = (mixed * (self.fluency_samples // max(len(mixed), 1) + 1))[: self.fluency_samples]
        return [name for name, _ in mixed], lm.encode([text for _, text in mixed])

    def _guided(
        self, lm: HookedLM, rows: list[list[int]], starts: list[int], pairs: PromptPairs, progress: bool
    ) -> list[TopK]:
        """The target along each row from its start, under its own pair of class prompts."""
        if not rows:
            return []
        spans = [slice(start, -1) for start in starts]
        prefixes = ([""] * len(rows), [expert for expert, _ in pairs], [novice for _, novice in pairs])
        # all texts at once, since the product with the unembedding is fastest on many positions
        plain, expert, novice = (
            torch.cat([states[span] for states, span in zip(found, spans, strict=True)])
            for found in (hidden_after_each(lm, prefix, rows, progress=progress) for prefix in prefixes)
        )
        target = self.guidance.target(lm, plain, expert, novice, self._etas([len(row) for row in rows], spans))
        lengths = [len(row) - 1 - start for row, start in zip(rows, starts, strict=True)]
        parts = zip(torch.split(target.tokens, lengths), torch.split(target.probs, lengths), strict=True)
        return [TopK(tokens, probs) for tokens, probs in parts]

    # what the released code does differently (see `elm_released`)

    @property
    def _writing_guidance(self) -> Guidance:
        """The target that fluency text is sampled from."""
        return self.guidance

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
        return self._guided(lm, rows, starts, pairs, progress)


def _samples(
    term: str, ids: Sequence[str], rows: list[list[int]], starts: list[int], targets: Sequence[TopK | Teacher]
) -> list[Sample | Options]:
    made = zip(ids, rows, starts, targets, strict=True)
    return [Sample(term, name, tuple(row), start, target) for name, row, start, target in made]

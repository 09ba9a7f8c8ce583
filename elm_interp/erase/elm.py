"""ELM: Erasure of Language Memory (Gandikota et al., arXiv 2410.02760), on low-rank adapters of chosen layers.

Each term is a distance to a distribution that the frozen model gives itself:

    erase     forget passages     P · (P_novice / P_expert)^η, renormalised          (equations 5 to 7)
    retain    retain passages     P                                                  (equation 8)
    fluency   self-written text   as erase, on text sampled from that target itself  (equation 9)
    answers   training questions  as erase, on their right answers                   (ours, off in the paper's preset)

so that the erased model neither knows the concept, nor loses anything else, nor stammers when asked.

    objective = ELM.preset("smollm2-135m")
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig
from torch import Tensor

from elm_interp.data import Concept, Question, texts
from elm_interp.erase.objective import Sample, Teacher, distribution_loss
from elm_interp.erase.targets import Guidance, generate_guided, hidden_after
from elm_interp.errors import unknown
from elm_interp.models import HookedLM


@dataclass(frozen=True)
class ELM:
    """Hyper-parameters of ELM; the defaults are the paper's where it gives one."""

    eta: float = 500.0
    """Strength η of the guidance, at least 0 (paper, appendix D: 500)."""
    layers: tuple[int, ...] = (4, 5, 6, 7)
    """0-based blocks that get an adapter (paper, appendix D: 4 to 7)."""
    rank: int = 4
    """Rank of the adapters (paper, appendix D: 4)."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank (authors' code: 16)."""
    modules: str = "attn+mlp"
    """Which projections: "attn", "mlp" or "attn+mlp" (authors' code: all seven)."""
    dropout: float = 0.0
    """On the adapters' input while training."""
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
    """Weight of the answers term: a small model answers questions by another route than it continues prose. With it, the
    training questions of the neighbours and the general set join the retain passages."""
    fluency_samples: int = 64
    """Texts that the model writes for the fluency term."""
    fluency_tokens: int = 48
    """New tokens of each."""
    max_tokens: int = 160
    """Passages are cut to this many tokens (the paper cuts at 700 characters)."""

    name = "elm"

    @classmethod
    def preset(cls, name: str) -> "ELM":
        """Named settings.

        Raises:
            UnknownNameError: no such preset; with the closest.
        """
        if name not in PRESETS:
            raise unknown("ELM preset", name, PRESETS)
        return cls(**PRESETS[name])

    def problems(self, n_layers: int | None) -> list[str]:
        """Settings that cannot work, in words."""
        found = []
        if not self.layers:
            found.append("layers is empty; name at least one block")
        if len(set(self.layers)) != len(self.layers) or any(layer < 0 for layer in self.layers):
            found.append(f"layers are {list(self.layers)}; expected different indices from 0")
        if n_layers is not None and any(layer >= n_layers for layer in self.layers):
            found.append(f"layers go to {max(self.layers)}, but the model has layers 0 to {n_layers - 1}")
        for name, least in {
            "rank": 1,
            "top_k": 1,
            "max_tokens": 2,
            "eta": 0,
            "erase_weight": 0,
            "retain_weight": 0,
            "fluency_weight": 0,
            "answers_weight": 0,
            "fluency_samples": 0,
            "fluency_tokens": 1,
        }.items():
            value = getattr(self, name)
            if not value >= least or value == float("inf"):
                found.append(f"{name} is {value}; expected a finite number of at least {least}")
        if not self.alpha > 0:
            found.append(f"alpha is {self.alpha}; expected more than 0")
        for name in ("plausible", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; expected 0 to below 1")
        if self.modules not in ("attn", "mlp", "attn+mlp"):
            found.append(f'modules is {self.modules!r}; expected "attn", "mlp" or "attn+mlp"')
        if not any(self.weights().values()):
            found.append("every loss weight is 0; nothing would be trained")
        return found

    def adapter(self, lm: HookedLM) -> LoraConfig:
        """The LoRA to train."""
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

    def loss(self, lm: HookedLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """KL to the target in nats a token, for each term among the samples."""
        return distribution_loss(lm, samples)

    @property
    def guidance(self) -> Guidance:
        """How the expert's and novice's distributions become the target."""
        return Guidance(self.eta, self.one_sided, self.top_k, plausible=self.plausible)

    def prepare(
        self, lm: HookedLM, concept: Concept, *, seed: int = 0, progress: bool = False
    ) -> dict[str, list[Sample]]:
        """Targets of every passage, and the fluency text, from the frozen base.

        Terms of weight 0 are left out. Only the training part of the concept is read. Class prompts are dealt to the
        passages in turn, where a concept has several.
        """
        expert, novice = concept.prompts("expert")[0], concept.prompts("novice")[0]
        samples: dict[str, list[Sample]] = {}
        with lm.adapter(None):
            forget = concept.passages("forget")
            if self.erase_weight:
                rows = lm.encode(texts(forget), max_tokens=self.max_tokens)
                samples["erase"] = self._guided(
                    lm, "erase", [p.id for p in forget], rows, [0] * len(rows), expert, novice, progress
                )
            if self.retain_weight:
                retain = concept.passages("retain")
                rows = lm.encode(texts(retain), max_tokens=self.max_tokens)
                states = hidden_after(lm, "", rows, progress=progress)
                samples["retain"] = [
                    Sample("retain", p.id, tuple(row), 0, Teacher(h[:-1]))
                    for p, row, h in zip(retain, rows, states, strict=True)
                ]
            if self.answers_weight:
                ids, rows, starts = _answers(lm, concept.ask("forget", "train"))
                samples["answers"] = self._guided(lm, "answers", ids, rows, starts, expert, novice, progress)
                ids, rows, starts = _answers(lm, concept.ask("neighbours", "train") + concept.ask("general", "train"))
                states = hidden_after(lm, "", rows, progress=progress)
                samples["kept_answers"] = [
                    Sample("kept_answers", i, tuple(row), start, Teacher(h[start:-1]))
                    for i, row, start, h in zip(ids, rows, starts, states, strict=True)
                ]
            if self.fluency_weight and self.fluency_samples:
                ids, prompts = self._fluency_prompts(lm, concept)
                written = generate_guided(
                    lm,
                    self.guidance,
                    prompts,
                    expert=expert,
                    novice=novice,
                    new_tokens=self.fluency_tokens,
                    seed=seed,
                    progress=progress,
                )
                kept = [(i, p, w) for i, p, w in zip(ids, prompts, written, strict=True) if w]
                rows = [p + w for _, p, w in kept]
                samples["fluency"] = self._guided(
                    lm,
                    "fluency",
                    [i for i, _, _ in kept],
                    rows,
                    [len(p) - 1 for _, p, _ in kept],
                    expert,
                    novice,
                    progress,
                )
        return {term: found for term, found in samples.items() if found}

    def _guided(
        self,
        lm: HookedLM,
        term: str,
        ids: list[str],
        rows: list[list[int]],
        starts: list[int],
        expert: str,
        novice: str,
        progress: bool,
    ) -> list[Sample]:
        passes = [hidden_after(lm, prefix, rows, progress=progress) for prefix in ("", expert, novice)]
        found = []
        for i, (name, row, start) in enumerate(zip(ids, rows, starts, strict=True)):
            target = self.guidance.target(lm, *(states[i][start:-1] for states in passes))
            found.append(Sample(term, name, tuple(row), start, target))
        return found

    def _fluency_prompts(self, lm: HookedLM, concept: Concept) -> tuple[list[str], list[list[int]]]:
        """Questions of the training part and openings of forget passages, in turn, as many as asked for."""
        asked = [(q.id, f"Question: {q.question}\nAnswer:") for q in concept.ask("forget", "train")]
        opened = [(p.id, " ".join(p.text.split()[:8])) for p in concept.passages("forget")]
        mixed = [pair for pairs in zip(asked, opened, strict=False) for pair in pairs] or opened
        mixed = (mixed * (self.fluency_samples // max(len(mixed), 1) + 1))[: self.fluency_samples]
        return [name for name, _ in mixed], lm.encode([text for _, text in mixed])


def _answers(lm: HookedLM, questions: Sequence[Question]) -> tuple[list[str], list[list[int]], list[int]]:
    """Ids, tokens and first target index of questions with their right answers; only the answer has targets."""
    prompts = [f"Question: {q.question}\nAnswer:" for q in questions]
    rows = lm.encode([f"{prompt} {q.right}.\n" for prompt, q in zip(prompts, questions, strict=True)])
    return [q.id for q in questions], rows, [len(row) - 1 for row in lm.encode(prompts)]


PRESETS: dict[str, dict] = {
    "paper": {},
    "smollm2-135m": {
        "eta": 50.0,
        "one_sided": True,
        "layers": tuple(range(2, 18)),
        "rank": 16,
        "alpha": 32.0,
        "answers_weight": 4.0,
        "fluency_samples": 48,
    },
}
"""What each preset sets beside the defaults."""

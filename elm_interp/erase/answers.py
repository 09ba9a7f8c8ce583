"""The answers term (ours): how likely answers to the concept's training questions should be, from the frozen base.

A small model answers questions by another route than it continues prose, so that passages alone hardly change its
answers. "answers" trains the choices of the training questions, right or wrong, and names of the concept, to the
likelihood that ELM's target gives them. "kept_answers" keeps the base's likelihood of answers to other questions, and
of answers without a question.

    samples = answer_samples(lm, concept, guidance, (expert, novice), names=3, seed=0)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from tqdm.auto import tqdm

from elm_interp.data import Concept, Question
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.erase.guidance import Guidance, room_of, stream
from elm_interp.models import HookedLM
from elm_interp.models.scoring import split_continuations
from elm_interp.models.shared_prefix import branch
from elm_interp.models.tokens import fitting
from elm_interp.models.unembedding import at_logits, differentiable, log_prob
from elm_interp.training.objective import sample_kind

ANSWER_TOKENS = 5
"""First tokens of an answer that are trained on; the rest is mostly spelling."""
UNLIKELY = -50.0
"""Log-probability of a token that the target rules out, since a goal must be finite."""
ALONE = 4
"""Answers without a question in one sample."""


@sample_kind
@dataclass(frozen=True)
class Options:
    """A prompt with texts that may follow it, and how likely the model should find each of their tokens."""

    term: str
    """The loss term it belongs to: "answers" or "kept_answers"."""
    id: str
    """The question it came from, for error messages."""
    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    options: tuple[tuple[int, ...], ...]
    """Token ids of each text that may follow."""
    goal: Float[Tensor, " token"]
    """Log-probability (nats) that each token of each option should have, flat."""

    @property
    def positions(self) -> int:
        """Number of tokens with a goal."""
        return len(self.goal)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.goal)


def likelihood_loss(lm: HookedLM, samples: Sequence[Options]) -> dict[str, Tensor]:
    """Smooth L1 distance of each option token's log-probability to its goal, averaged over the tokens of each term.

    A divergence hardly changes tokens of small probability, since its gradient there is p - q; most answers to a
    question are such tokens. A choice between answers compares their log-probabilities, so this loss does too.

    Args:
        lm: the model, with the adapter that is trained.
        samples: questions with goals.
    """
    hidden, ids = branch(lm, [s.prompt for s in samples], [s.options for s in samples], grad=True)
    found = differentiable(lm, hidden, lambda rows, logits: log_prob(logits, ids[rows]))
    goal = torch.cat([s.goal for s in samples]).to(found)
    losses = torch.split(smooth_l1_loss(found, goal, reduction="none"), [len(s.goal) for s in samples])
    return {
        term: torch.cat([loss for loss, s in zip(losses, samples, strict=True) if s.term == term]).mean()
        for term in dict.fromkeys(s.term for s in samples)
    }


def answer_samples(
    lm: HookedLM,
    concept: Concept,
    guidance: Guidance,
    classes: tuple[str, str],
    *,
    names: int,
    seed: int,
    progress: bool = False,
) -> dict[str, list[Options]]:
    """Samples of the terms "answers" and "kept_answers".

    Args:
        lm: the model, without an adapter.
        concept: its training questions are read, and its passages for names.
        guidance: the target.
        classes: the expert's and the novice's prompt.
        names: number of names from the forget passages, and of answers from outside the concept, that join the choices.
        seed: of the choice of these.
        progress: show a bar.
    """
    asked = concept.ask("forget", "train")
    kept = concept.ask("neighbours", "train") + concept.ask("general", "train")
    rng = random.Random(seed)
    inside = concept.names()
    outside = [q.outside for q in asked if q.outside]
    outside += [choice for q in concept.ask("neighbours", "train") for choice in q.choices]

    def joined(question: Question) -> list[str]:
        drawn = [answer for pool in (inside, outside) for answer in rng.sample(pool, min(names, len(pool)))]
        return list(dict.fromkeys([*question.options, *drawn]))

    answers = [joined(q) for q in asked]
    # an answer without a question says nothing about the concept: only the link between the two is unlearned
    alone = [answer for group in answers for answer in group] + [q.right for q in kept]
    rng.shuffle(alone)
    groups = [alone[i : i + ALONE] for i in range(0, len(alone), ALONE)]
    unlearned = [(q.id, q.prompt, group) for q, group in zip(asked, answers, strict=True)]
    same = [(q.id, q.prompt, list(q.choices)) for q in kept]
    same += [("answers alone", "Answer:", group) for group in groups]
    return {
        "answers": _samples(lm, "answers", unlearned, guidance, classes, progress),
        "kept_answers": _samples(lm, "kept_answers", same, None, (), progress),
    }


def _samples(
    lm: HookedLM,
    term: str,
    questions: Sequence[tuple[str, str, Sequence[str]]],
    guidance: Guidance | None,
    classes: tuple[str, ...],
    progress: bool,
) -> list[Options]:
    """Samples of (id, prompt, answers), with each token's log-probability under the target, or under the base.

    Questions beyond the context are left out; a warning lists them.
    """
    room = room_of(lm, classes)
    whole = [[f"{prompt} {a}" for a in answers] for _, prompt, answers in questions]
    fits = fitting(lm, whole, f'questions of the term "{term}"', more=room, names=[name for name, _, _ in questions])
    cut = [part for i in fits for part in _split(lm, *questions[i])]
    streams = [stream(lm, prefix, [prompt for _, prompt, _ in cut]) for prefix in ("", *classes)]
    goals: list[Tensor] = [torch.empty(0)] * len(cut)
    # the keys and values of a prompt are copied for each of its options: they, not the tokens, fill the memory
    cost = [(room + len(prompt)) * len(options) for _, prompt, options in cut]
    for batch in tqdm(bucketed(cost, max_tokens=8 * PASS_TOKENS), desc=term, leave=False, disable=not progress):
        rows = [cut[i][2] for i in batch]
        passes = [branch(lm, [prompts[i] for i in batch], rows, prefix=shared) for shared, prompts in streams]
        ids = passes[0][1]

        def goal(piece: slice, *logits: Tensor, ids: Tensor = ids) -> tuple[Tensor]:
            log_probs = guidance.log_probs(*logits) if guidance else logits[0].float().log_softmax(-1)
            return (log_probs.gather(1, ids[piece, None])[:, 0].clamp(min=UNLIKELY),)

        found = at_logits(goal, *((lm, states) for states, _ in passes))[0].cpu()
        for i, part in zip(batch, torch.split(found, [sum(map(len, options)) for options in rows]), strict=True):
            goals[i] = part
    return [
        Options(term, name, tuple(prompt), tuple(map(tuple, options)), goal)
        for (name, prompt, options), goal in zip(cut, goals, strict=True)
    ]


def _split(
    lm: HookedLM, name: str, prompt: str, answers: Sequence[str]
) -> list[tuple[str, list[int], list[list[int]]]]:
    """A question as ids: its name, the prompt and the first tokens of the answers that share the prompt's last token.

    One for nearly every question; several if some answers merge with the end of the prompt.
    """
    found = split_continuations(lm, prompt, [f" {answer}" for answer in answers])
    parts: dict[int, tuple[str, list[int], list[list[int]]]] = {}
    for rest, inside in zip(found.rests, found.inside, strict=True):
        _, _, options = parts.setdefault(inside, (name, found.prompt + rest[:inside], []))
        options.append(rest[inside:][:ANSWER_TOKENS])
    return list(parts.values())

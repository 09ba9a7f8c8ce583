"""The answers term (ours): how likely answers to the concept's training questions should be, from the frozen base.

A small model answers questions by another route than it continues prose, so that passages alone hardly move its answers.
"answers" takes the choices of the training questions, right or wrong, and names of the concept, to the likelihood that ELM's
target gives them; "kept_answers" holds those of other questions, and answers without any question, where the base has them.

    samples = answer_samples(lm, concept, guidance, (expert, novice), names=3, seed=0)
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Concept, Question
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.erase.guidance import Guidance
from elm_interp.models import HookedLM
from elm_interp.models.scoring import branch, split_continuations
from elm_interp.models.unembedding import at_logits
from elm_interp.training.objective import Options

ANSWER_TOKENS = 5
"""Tokens of an answer that are trained on: what follows them is mostly spelling, and all answers of a step are padded alike."""
UNLIKELY = -50.0
"""Log-probability of a token that the target rules out: a goal must be finite."""
ALONE = 4
"""Answers without a question in one sample."""


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
        lm: the model; its frozen base.
        concept: its training questions are read, and its passages for names.
        guidance: the target.
        classes: the expert's and the novice's prompt.
        names: names from the forget passages, and as many answers from outside the concept, that join each question's choices.
        seed: of which they are.
        progress: show a bar.
    """
    asked = concept.ask("forget", "train")
    kept = concept.ask("neighbours", "train") + concept.ask("general", "train")
    rng = random.Random(seed)
    inside = concept.names()
    outside = [q.outside for q in asked if q.outside]
    outside += [choice for q in concept.ask("neighbours", "train") for choice in q.choices]

    def joined(question: Question) -> list[str]:
        drawn = (rng.sample(pool, min(names, len(pool))) for pool in (inside, outside))
        return list(dict.fromkeys([*question.options, *(answer for pool in drawn for answer in pool)]))

    answers = [joined(q) for q in asked]
    # an answer without a question says nothing of the concept: what is unlearned is the link between the two
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
    """Samples of (id, prompt, answers), with the likelihood of each token under the target, or under the base without guidance."""
    split = [split_continuations(lm, prompt, [f" {a}" for a in answers]) for _, prompt, answers in questions]
    cut = [(prompt, [option[:ANSWER_TOKENS] for option in options]) for prompt, options in split]
    prefixes = [[], *(lm.encode([prefix])[0] for prefix in classes)]
    goals: list[Tensor] = [torch.empty(0)] * len(cut)
    # keys and values of a prompt are copied to each of its options: that, not the tokens, is what a pass weighs
    cost = [(max(map(len, prefixes)) + len(prompt)) * len(options) for prompt, options in cut]
    for batch in tqdm(bucketed(cost, max_tokens=8 * PASS_TOKENS), desc=term, leave=False, disable=not progress):
        rows = [cut[i] for i in batch]
        passes = [branch(lm, [p for p, _ in rows], [o for _, o in rows], prefix=prefix) for prefix in prefixes]
        ids = passes[0][1]

        def goal(piece: slice, *logits: Tensor, ids: Tensor = ids) -> tuple[Tensor]:
            whole = guidance.log_probs(*logits) if guidance else logits[0].float().log_softmax(-1)
            return (whole.gather(1, ids[piece, None])[:, 0].clamp(min=UNLIKELY),)

        found = at_logits(goal, *((lm, states) for states, _ in passes))[0].cpu()
        for i, part in zip(batch, found.split([sum(map(len, options)) for _, options in rows]), strict=True):
            goals[i] = part
    return [
        Options(term, name, tuple(prompt), tuple(map(tuple, options)), goal)
        for (name, _, _), (prompt, options), goal in zip(questions, cut, goals, strict=True)
    ]

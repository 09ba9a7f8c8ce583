"""Target as model: which answers would ELM's target itself give, before anything is trained?

The options of a question are scored under P · (P_novice / P_expert)^η, token by token. If the target still answers,
training by equations 7 and 8 alone is likely to leave answers too. It takes seconds, without training.

    target_answers(lm, concept, etas=(0, 1, 10, 100))      # accuracy by η; η = 0 is the model itself

It also says what the class prompts do to the tokens of the answers: the mean log-ratio log P(novice) - log P(expert) at
the right answers, at the wrong ones, and apart at tokens that stand in a class prompt.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Concept, Question
from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.data.questions import TEMPLATE, with_fact
from elm_interp.erase.guidance import Guidance, room_of, stream
from elm_interp.errors import ConfigError
from elm_interp.models import HookedLM
from elm_interp.models.scoring import split_continuations
from elm_interp.models.shared_prefix import branch
from elm_interp.models.tokens import fitting
from elm_interp.models.unembedding import at_logits
from elm_interp.results import cluster_bootstrap, credit, frame, measurements, proportion_interval, spelled

ETAS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 500.0)
ACCURACY, RATIO = "target.accuracy", "target.log_ratio"


@dataclass(frozen=True)
class _Asked:
    """A question as ids: its prompt, and what follows the prompt in each option."""

    question: Question
    prompt: list[int]
    options: list[list[int]]
    own: list[int]
    """Of each option, how many of its first ids still belong to the prompt: another option merges with its end."""


@torch.no_grad()
def target_answers(
    lm: HookedLM,
    concept: Concept,
    etas: Sequence[float] = ETAS,
    *,
    guidance: Guidance | None = None,
    questions: Sequence[Question] | None = None,
    template: str = TEMPLATE,
    progress: bool = False,
) -> pd.DataFrame:
    """Accuracy of ELM's target on questions, by η, and the class prompts' log-ratio at the answers.

    Args:
        lm: the model; its base is read.
        concept: gives the class prompts, the first of each kind.
        etas: strengths η; 0 is the model itself.
        guidance: one-sidedness and plausibility mask of the target; its η is not used.
        questions: by default those about the concept in its training part, or the held-out ones if there are none.
        template: the prompt, with `{question}` in place of the question.
        progress: show a bar.

    Returns:
        Tidy rows. Of `target.accuracy`: one for each η, named in `position` (such as "η = 10"), with n, chance and an
        interval over facts. Of `target.log_ratio.right`, `.wrong` and `.in_prompt`: the mean in nats a token.

    Raises:
        ConfigError: no question, or an η that is negative or not finite.
    """
    asked = list(concept.ask("forget", "train") or concept.ask("forget")) if questions is None else list(questions)
    if not asked:
        raise ConfigError(f"{concept.name} has no question about the concept; give some as questions=[...].")
    check_etas(etas)
    guidance = replace(guidance or Guidance(0.0), top_k=lm.d_vocab)
    classes = (concept.prompts("expert")[0], concept.prompts("novice")[0])
    rows = list(_rows(lm, asked, template, room_of(lm, classes)))
    with lm.adapter(None):
        scores, ratios = _scored(lm, rows, classes, guidance, etas, progress)
    found: list[dict[str, Any]] = []
    chance = float(np.mean([1 / len(row.options) for row in rows]))
    for k, eta in enumerate(etas):
        credits = [credit(one[k], row.question.answer) for one, row in zip(scores, rows, strict=True)]
        ci = proportion_interval(np.array(credits), [with_fact(row.question).fact for row in rows])
        told = {"n": len(credits), "chance": chance, "position": f"η = {eta:g}"}
        found.append(measurements(ACCURACY, float(np.mean(credits)), ci=ci, **told))
    found += _ratio_rows(lm, rows, ratios, classes)
    side = "one-sided" if guidance.one_sided else "two-sided"
    protocol = f"{side} target of {concept.name}, log p(option | {template!r}), all choices"
    return frame([row | {"model": spelled(lm.name), "method": "target", "protocol": protocol} for row in found])


def check_etas(etas: Sequence[float]) -> None:
    """Raise a ConfigError for strengths that cannot be asked: none, one below 0 or one that is not finite."""
    if not etas or not all(0 <= eta < math.inf for eta in etas):
        raise ConfigError(f"etas are {list(etas)}; expected at least one, each a finite number of at least 0.")


def _rows(lm: HookedLM, asked: Sequence[Question], template: str, room: int) -> Iterator[_Asked]:
    """Each question as ids; those beyond the context are left out with a warning."""
    whole = [[f"{q.put(template)} {choice}" for choice in q.choices] for q in asked]
    for i in fitting(lm, whole, "questions", more=room, names=[q.id or q.question[:40] for q in asked]):
        found = split_continuations(lm, asked[i].put(template), [f" {choice}" for choice in asked[i].choices])
        border = min(found.inside)
        prompt, options = found.prompt + found.rests[0][:border], [rest[border:] for rest in found.rests]
        yield _Asked(asked[i], prompt, options, [inside - border for inside in found.inside])


def _scored(
    lm: HookedLM,
    rows: Sequence[_Asked],
    classes: tuple[str, str],
    guidance: Guidance,
    etas: Sequence[float],
    progress: bool,
) -> tuple[list[Float[np.ndarray, "eta option"]], list[list[Float[np.ndarray, " token"]]]]:
    """Of each question, each option's log-probability under each η, and the log-ratio at each token of each option."""
    streams = [stream(lm, prefix, [row.prompt for row in rows]) for prefix in ("", *classes)]
    scores: list[Any] = [None] * len(rows)
    ratios: list[Any] = [None] * len(rows)
    # the keys and values of a prompt are copied for each of its options: they, not the tokens, fill the memory
    cost = [(room_of(lm, classes) + len(row.prompt)) * len(row.options) for row in rows]
    for batch in tqdm(bucketed(cost, max_tokens=8 * PASS_TOKENS), desc="asking the target", disable=not progress):
        options = [rows[i].options for i in batch]
        passes = [branch(lm, [prompts[i] for i in batch], options, prefix=shared) for shared, prompts in streams]
        ids = passes[0][1]

        def of(piece: slice, *logits: Tensor, ids: Tensor = ids) -> tuple[Tensor, Tensor]:
            chosen = ids[piece, None]
            each = [replace(guidance, eta=eta).log_probs(*logits).gather(1, chosen) for eta in etas]
            _, low, high = (x.float().log_softmax(-1).gather(1, chosen) for x in logits)
            return torch.cat(each, 1), (high - low)[:, 0]

        log_probs, ratio = (x.double().cpu() for x in at_logits(of, *((lm, states) for states, _ in passes)))
        at = 0
        for i, group in zip(batch, options, strict=True):
            sums, own = [], []
            for option, skipped in zip(group, rows[i].own, strict=True):
                sums.append(log_probs[at + skipped : at + len(option)].sum(0))
                own.append(ratio[at + skipped : at + len(option)].numpy())
                at += len(option)
            scores[i], ratios[i] = torch.stack(sums, 1).numpy(), own
    return scores, ratios


def _ratio_rows(
    lm: HookedLM,
    rows: Sequence[_Asked],
    ratios: Sequence[Sequence[Float[np.ndarray, " token"]]],
    classes: tuple[str, str],
) -> list[dict[str, Any]]:
    spoken = {token for ids in lm.encode(list(classes)) for token in ids}
    parts: dict[str, tuple[list[float], list[str]]] = {name: ([], []) for name in ("right", "wrong", "in_prompt")}
    for row, of_row in zip(rows, ratios, strict=True):
        fact = with_fact(row.question).fact
        for i, (option, ratio) in enumerate(zip(row.options, of_row, strict=True)):
            inside: Bool[np.ndarray, " token"] = np.isin(option[row.own[i] :], list(spoken))
            name = "right" if i == row.question.answer else "wrong"
            for part, of in (("in_prompt", ratio[inside]), (name, ratio[~inside])):
                parts[part][0].extend(of)
                parts[part][1].extend([fact] * len(of))
    return [
        measurements(f"{RATIO}.{name}", float(np.mean(of)), ci=cluster_bootstrap(np.array(of), facts), n=len(of))
        for name, (of, facts) in parts.items()
        if of
    ]

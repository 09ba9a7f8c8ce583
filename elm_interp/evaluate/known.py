"""Known items: only what the base knows can be lost.

A question is *known* if the base answers it right by likelihood in at least two of three templates. It is then asked in
a template that took no part in this choice, and in the model's chat template where it has one. So a base that answers
by luck, or by the wording of one template, is not counted as knowing. Several wordings of a fact are not independent:
intervals resample facts. The drop from the base is paired, item by item, and the drop on the neighbours' known items
can be subtracted from it.

    table = measure(subject, ["innocence.known.*", "innocence.open_answer"])
    known_items(subject)                # the questions; of "neighbours" and "general" too
"""

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from elm_interp.data import Concept, Question, texts
from elm_interp.data.leaks import PRIOR
from elm_interp.data.questions import TEMPLATE
from elm_interp.evaluate import knowledge
from elm_interp.metrics import Subject, metric, metric_of
from elm_interp.models import HookedLM
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.models.tokens import fitting
from elm_interp.results import cluster_bootstrap, cluster_means, credit, measurements, proportion_interval, wilson

CHOOSING = ("Q: {question}\nA:", "{question} The answer is", "{question} Right answer:")
"""Templates that say which questions the base knows; none is the measured one."""
ENOUGH = 2
"""In how many of them the base must be right."""
CHAT_ITEMS = 24
"""Most known items that are asked in the chat template."""
FOLLOWED_PASSAGES = 4
"""Held-out passages of a kind that are read at a checkpoint that is only followed."""
MCNEMAR = "exact sign test, two-sided, on the facts that more wordings lost than won or the reverse (McNemar on facts)"
CHAT = "{question}"
"""What the user says in the chat template."""
KNOWN = "questions that the base answers in 2 of 3 other templates"
FACTS = "interval over facts"


def known_items(subject: Subject, which: str = "forget") -> list[Question]:
    """The held-out questions of a set that the base knows, asked through the subject's prompt transformation.

    The base says which, so they are the same for every state of the model.
    """
    asked = subject.base.concept.ask(which)
    return subject.ask([asked[i] for i in _chosen(subject.base, which)])


def followed(subject: Subject, items: int) -> Subject:
    """A state on a smaller concept, so that many checkpoints are followed in little time.

    Args:
        subject: the state.
        items: known questions about the concept; a quarter as many of its neighbours and of general knowledge are
            asked. At most `FOLLOWED_PASSAGES` held-out passages of a kind are read.

    Returns:
        A state whose base is the base on the same smaller concept.
    """
    small = subject.base.memo(("followed", items), lambda: _smaller(subject.base, items))
    few = small if subject.is_base else subject.with_(concept=small.concept, base=small)
    knowledge.tell_scores(few, subject)
    return few


def follows(base: Subject, metrics: Iterable[str]) -> list[str]:
    """Of these metrics, those whose value on the few items of `followed` estimates that on all items.

    Left out are accuracies on all questions of a set, since only those are asked that the base knows; and baselines,
    which no checkpoint moves.
    """
    if not any(_chosen(base, which) for which in ("forget", "neighbours")):
        return list(metrics)
    chosen = [one for name in metrics if (one := metric_of(name)) and name not in knowledge.OF_ALL_ITEMS]
    return [one.name for one in chosen if one.needs_base or one.shows != "describes"]


def shown_facts(concept: Concept) -> set[str]:
    """The facts that training passages about the concept state, by the questions that the passages name."""
    fact_of = {q.id: q.fact for q in concept.questions.get("forget", ())}
    return {fact_of[name] for p in concept.passages("forget") for name in p.questions if name in fact_of}


@metric(
    "innocence.known.four_choice", shows="answers", better="down", chance=0.25, headline=True,
    protocol=f"likelihood, log p(option | {TEMPLATE!r}), {KNOWN}; {FACTS}",
)  # fmt: skip
def known_four_choice(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on questions about the concept that the base knows, in an unseen template, by likelihood.

    Also `.shown` and `.unshown` for facts that stand in some or in no passage of the training part.
    """
    return _accuracies(subject, "forget", "innocence.known.four_choice")


@metric(
    "specificity.known.neighbours", shows="kept", better="up", chance=0.25, headline=True,
    protocol=f"likelihood, log p(option | {TEMPLATE!r}), {KNOWN}; {FACTS}",
)  # fmt: skip
def known_neighbours(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on questions about neighbours of the concept that the base knows."""
    return _accuracies(subject, "neighbours", "specificity.known.neighbours")


@metric(
    "innocence.known.four_choice.chat", shows="answers", better="down", chance=0.25, cost="dear",
    protocol=f"likelihood, log p(option | chat template of {CHAT!r}), at most {CHAT_ITEMS} {KNOWN}; {FACTS}",
)  # fmt: skip
def known_in_chat(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy on questions about the concept that the base knows, in its chat template; no row without one."""
    return _in_chat(subject, "innocence.known.four_choice.chat")


@metric(
    "innocence.known.drop", shows="describes", better="up", needs_base=True, on_card=True,
    protocol=f"accuracy of the base less that of the model, {KNOWN}; paired {FACTS}",
)  # fmt: skip
def known_drop(subject: Subject) -> list[dict[str, Any]]:
    """How far accuracy on known items fell, paired item by item.

    Also `.p`, the two-sided p of McNemar's exact test on facts, since wordings of a fact are not independent;
    `.neighbours`, the drop on the neighbours' known items; and `.net`, the drop less that.
    """
    name, found = "innocence.known.drop", []
    own, near = _drops(subject, "forget"), _drops(subject, "neighbours")
    if len(own[0]):
        _, index = np.unique(own[1], return_inverse=True)
        by_fact = np.bincount(index, weights=own[0])
        lost, won = int((by_fact > 0).sum()), int((by_fact < 0).sum())
        p = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
        found.append(measurements(name, own[0].mean(), n=len(own[0]), ci=_of_drop(*own)))
        found.append(measurements(f"{name}.p", p, n=lost + won, direction="neither", protocol=MCNEMAR))
    if len(near[0]):
        ci = _of_drop(*near)
        found.append(measurements(f"{name}.neighbours", near[0].mean(), n=len(near[0]), ci=ci, direction="down"))
    if len(own[0]) and len(near[0]):
        ci = (float("nan"), float("nan"))
        if len(set(own[1])) > 1 and len(set(near[1])) > 1:
            means = cluster_means(*own, seed=0) - cluster_means(*near, seed=1)
            ci = (float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975)))
        found.append(measurements(f"{name}.net", own[0].mean() - near[0].mean(), n=len(own[0]), ci=ci))
    return found


@metric(
    "innocence.no_question", shows="describes", better="neither", chance=0.25, on_card=True,
    protocol=f"likelihood of the options after {PRIOR!r} alone, all held-out questions",
)  # fmt: skip
def no_question(subject: Subject) -> list[dict[str, Any]]:
    """Baseline: accuracy on the questions about the concept when the question itself is left out."""
    scored = knowledge.scores(subject, "forget")  # the prior is what PMI takes off
    asked = [one.question for one in scored]
    picks = [credit(one.prior[: len(one.question.choices)], one.question.answer) for one in scored]
    return _share("innocence.no_question", picks, asked)


@metric(
    "innocence.text_only", shows="describes", better="neither", chance=0.25, on_card=True,
    protocol="logistic regression on character 3-grams, forget against retain passages of the training part; the option"
    " most like a forget passage; no model asked",
)  # fmt: skip
def text_only(subject: Subject) -> list[dict[str, Any]]:
    """Baseline without a model: pick the option that looks most like what was trained to be forgotten."""
    concept, asked = subject.base.concept, subject.base.concept.ask("forget")
    kinds = [texts(concept.passages(kind)) for kind in ("forget", "retain")]
    if not asked or not all(kinds):
        return []
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True)
    model = make_pipeline(grams, LogisticRegression(class_weight="balanced"))
    model.fit([*kinds[0], *kinds[1]], [1] * len(kinds[0]) + [0] * len(kinds[1]))
    picks = [credit(model.decision_function(list(q.choices)), q.answer) for q in asked]
    return _share("innocence.text_only", picks, asked)


def _chosen(base: Subject, which: str) -> list[int]:
    """Indices of the known items among the held-out questions of a set."""
    asked = base.concept.ask(which)

    def choose() -> list[int]:
        right, open_ = np.zeros(len(asked)), list(range(len(asked)))
        with base.on() as lm:
            for more, template in zip(reversed(range(len(CHOOSING))), CHOOSING, strict=True):
                some = [asked[i] for i in open_]
                right[open_] += _credits(lm, some, [q.put(template) for q in some]) == 1
                open_ = [i for i in open_ if right[i] < ENOUGH <= right[i] + more]  # the others are decided
        return [int(i) for i in np.flatnonzero(right >= ENOUGH)]

    return base.memo(("known", which), choose)


def _smaller(base: Subject, items: int) -> Subject:
    """The base on the concept that `followed` asks about."""
    concept, known, questions = base.concept, {}, {}
    for which, n in {"forget": items, "neighbours": items // 4, "general": items // 4}.items():
        asked = concept.ask(which)
        known[which] = [] if which == "general" else some_of(_chosen(base, which), n)
        questions[which] = tuple(asked[i] for i in known[which] or some_of(range(len(asked)), n))
    small = concept.measured_by(questions, FOLLOWED_PASSAGES)
    found = Subject(base.lm, small, seed=base.seed, judge=base.judge)
    for which, indices in known.items():
        _tell(found, ("known", which), list(range(len(indices))))
    _tell(found, "shown facts", _shown(base))
    return found


def _tell(subject: Subject, key: Hashable, value: Any) -> None:
    """Let a subject know a result that need not be computed."""
    subject.memo(key, lambda: value)


def some_of(items: Sequence[int], n: int) -> list[int]:
    """Some of the items, the same in every call, in their order."""
    return sorted(Random(0).sample(list(items), min(n, len(items))))


def _shown(base: Subject) -> set[str]:
    return base.memo("shown facts", lambda: shown_facts(base.concept))


def _accuracies(subject: Subject, which: str, name: str) -> list[dict[str, Any]]:
    asked = known_items(subject, which)
    if not asked:
        return []
    own = _known_credits(subject, which)
    found = [row_of_credits(name, own, asked)]
    shown = _shown(subject.base) if which == "forget" else set()
    inside = np.array([q.fact in shown for q in asked])
    if inside.any() and not inside.all():
        for part, chosen in (("shown", inside), ("unshown", ~inside)):
            found.append(row_of_credits(f"{name}.{part}", own[chosen], [asked[i] for i in np.flatnonzero(chosen)]))
    return found


def _in_chat(subject: Subject, name: str) -> list[dict[str, Any]]:
    asked = known_items(subject)
    asked = [asked[i] for i in some_of(range(len(asked)), CHAT_ITEMS)]
    with subject.on() as lm:
        prompts = _chats(lm, asked)
        return [row_of_credits(name, _credits(lm, asked, prompts, space=False), asked)] if asked and prompts else []


def _known_credits(subject: Subject, which: str) -> Float[np.ndarray, " question"]:
    """Credits on the known items, which were scored for other metrics too."""
    asked = known_items(subject, which)

    def compute() -> Float[np.ndarray, " question"]:
        scored = {one.question.id: one for one in knowledge.scores(subject, which)}
        found = [(q, scored[q.id].log_prob[: len(q.choices)] if q.id in scored else None) for q in asked]
        return np.array([1 / len(q.choices) if s is None else credit(s, q.answer) for q, s in found])

    return subject.memo(("known credits", which), compute)


def _credits(
    lm: HookedLM, asked: Sequence[Question], prompts: Sequence[str], *, space: bool = True
) -> Float[np.ndarray, " question"]:
    """Credit of each question by likelihood; chance for one beyond the context."""
    options = [[f" {c.strip()}" if space else c.strip() for c in q.choices] for q in asked]
    whole = [[prompt + option for option in group] for prompt, group in zip(prompts, options, strict=True)]
    fits = fitting(lm, whole, "questions", names=[q.id for q in asked])
    found = continuation_log_probs(lm, [prompts[i] for i in fits], [options[i] for i in fits])
    credits = np.array([1 / len(q.choices) for q in asked])
    for i, group in zip(fits, found, strict=True):
        credits[i] = credit(np.array([float(tokens.sum()) for tokens in group]), asked[i].answer)
    return credits


def _chats(lm: HookedLM, asked: Sequence[Question]) -> list[str] | None:
    if not getattr(lm.tokenizer, "chat_template", None):
        return None
    said = [[{"role": "user", "content": q.put(CHAT)}] for q in asked]
    found = [lm.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in said]
    start = str(lm.tokenizer.decode(lm.start_ids))  # encoding adds it again
    return [str(text).removeprefix(start) for text in found]


def _drops(subject: Subject, which: str) -> tuple[Float[np.ndarray, " question"], list[str]]:
    """Credit that was lost at each known item, and the item's fact."""
    asked = known_items(subject, which)
    if not asked:
        return np.empty(0), []
    return _known_credits(subject.base, which) - _known_credits(subject, which), [q.fact for q in asked]


def _of_drop(lost: Float[np.ndarray, " question"], facts: Sequence[str]) -> tuple[float, float]:
    """Bootstrap interval of a drop over facts; where all items changed alike, as wide as Wilson's for no success."""
    if np.ptp(lost):
        return cluster_bootstrap(lost, facts)
    width = wilson(0, len(set(facts)))[1]
    return max(-1.0, float(lost[0]) - width), min(1.0, float(lost[0]) + width)


def row_of_credits(
    name: str, credits: Float[np.ndarray, " question"], asked: Sequence[Question], **more: Any
) -> dict[str, Any]:
    """The row of a mean credit, with its interval over facts and the chance of guessing."""
    chance = float(np.mean([1 / len(q.choices) for q in asked]))
    ci = proportion_interval(credits, [q.fact for q in asked])
    return measurements(name, credits.mean(), **{"n": len(credits), "ci": ci, "chance": chance} | more)


def _share(name: str, credits: Sequence[float], asked: Sequence[Question]) -> list[dict[str, Any]]:
    return [row_of_credits(name, np.array(credits), asked)] if asked else []

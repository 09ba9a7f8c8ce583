"""Metrics: functions from a Subject to tidy rows, declared where they are defined.

    @metric("innocence.two_choice_pmi", shows="answers", better="down", chance=0.5)
    def two_choice_pmi(subject: Subject) -> pd.DataFrame | list[dict]: ...

    table = measure(subject, ["innocence.*"])

A Subject is one model in one state with its concept: the base, a run at step 240, or either under an attack. A metric
reaches the model and its prompts through the Subject only. So progression, sweeps and attacks apply to every metric,
and a new metric is one function.
"""

import fnmatch
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.activations.collect import collect_texts
from elm_interp.activations.store import ActivationStore
from elm_interp.data import Concept, Question, texts
from elm_interp.errors import check_known, unknown
from elm_interp.models import HookedLM
from elm_interp.models.backends.contract import Edit
from elm_interp.models.sites import resolve_sites
from elm_interp.models.tokens import fitting
from elm_interp.registry import METRICS
from elm_interp.results import frame, spelled, stack

T = TypeVar("T")
Rows = pd.DataFrame | Sequence[Mapping[str, Any]]
Shows = Literal["answers", "kept", "text", "inside", "describes"]


@dataclass(repr=False)
class Subject:
    """One model in one state, with its concept and the results that metrics share."""

    lm: HookedLM
    concept: Concept
    """With a `prompt`, its questions are asked through it."""
    adapter: str | Path | None = None
    """Adapter folder of this state; None for the bare model."""
    method: str = "base"
    step: int | None = None
    seed: int = 0
    base: "Subject" = None  # type: ignore[assignment]
    """The untouched model: the same weights without adapter, or another model. The base is its own base."""
    judge: HookedLM | None = None
    """An independent model that scores generated text."""
    store: ActivationStore | None = None
    """Activations collected before; missing ones are computed. Not used with `edits`."""
    edits: Mapping[str, Edit] = field(default_factory=dict)
    """Site -> function that replaces the activation there, in every pass of this state."""
    prompt: Callable[[str], str] | None = None
    """Transformation of every prompt that asks a question."""
    texts: int = 48
    """Most texts that are generated for a measurement; the base's number counts."""
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._unprompted = self.concept
        if self.base is None:
            untouched = self.adapter is None and not self.edits and self.prompt is None
            shared: dict[str, Any] = {"seed": self.seed, "judge": self.judge, "store": self.store}
            self.base = self if untouched else Subject(self.lm, self.concept, **shared)
        if self.prompt is not None:
            self.concept = self.concept.prompted(self.prompt)
        if self.edits:
            self.store = None

    @property
    def is_base(self) -> bool:
        """Whether this is the untouched model, which has nothing to be compared with."""
        return self.base is self

    @contextmanager
    def on(self) -> Iterator[HookedLM]:
        """The model in this state, with its adapter and edits; the previous state is restored after."""
        with self.lm.adapter(self.adapter), self.lm.hooks(self.edits) if self.edits else nullcontext():
            yield self.lm

    def at(self, adapter: str | Path | None, *, method: str = "base", step: int | None = None) -> "Subject":
        """The same model with another adapter, without edits and prompt transformation; the base is shared."""
        if adapter is None:
            return self.base
        store = self.base.store if self.store is None else self.store
        return Subject(self.lm, self._unprompted, adapter, method, step, self.seed, self.base, self.judge, store)

    def with_(
        self, *, edits: Mapping[str, Edit] | None = None, prompt: Callable[[str], str] | None = None, **changes: Any
    ) -> "Subject":
        """A subject derived from this one, which stays as it is. Its base is the same; it shares no computed results.

            subject.with_(prompt=lambda text: "Hello. " + text)
            subject.with_(edits={"blocks.3.hook_resid_post": torch.zeros_like}, method="elm, block 3 zeroed")

        Args:
            edits: site -> function, applied after the edits that this subject has.
            prompt: text -> text, applied after the transformation that this subject has.
            changes: other fields to replace, such as `lm`, `adapter`, `method` or `step`.

        Raises:
            UnknownSiteError: an edit at a site that the model does not have.
        """
        in_turn = {"edits": _edits_in_turn(self.edits, edits or {}, self.lm.n_layers)}
        return replace(self, **{"concept": self._unprompted} | changes | in_turn, prompt=_in_turn(self.prompt, prompt))

    def ask(self, questions: Sequence[Question]) -> list[Question]:
        """Questions of your own, asked through this state's prompt transformation."""
        return [replace(question, ask=self.prompt or question.ask) for question in questions]

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, computed once per state, so that metrics share scores, texts and activations."""
        if key not in self._memo:
            self._memo[key] = compute()
        found: T = self._memo[key]
        return found

    def activations(
        self,
        text: str,
        *,
        split: str = "held_out",
        site: str = "resid_post",
        positions: str | int = "mean",
        skip: int = 0,
    ) -> Float[Tensor, "example layer d_model"]:
        """Activations at every layer on passages of the concept ("forget" or "retain"), float32, on the CPU.

        `skip` leaves out the first tokens of each text (the first one attracts attention and has a huge norm).
        Passages beyond the model's context are left out; a warning lists them.
        """

        def compute() -> Tensor:
            passages = texts(self.concept.passages(text, split))
            with self.on() as lm:
                passages = [passages[i] for i in fitting(lm, passages, f"{text} passages")]
                return collect_texts(lm, passages, site=site, positions=positions, skip=skip)

        return self.memo(("activations", text, split, site, str(positions), skip), compute)

    def knows(self, key: Hashable) -> bool:
        """Whether `memo` has the result of a key."""
        return key in self._memo

    def __repr__(self) -> str:
        state = [self.method if self.step is None else f"{self.method} at step {self.step}"]
        state += [f"adapter {self.adapter}"] if self.adapter is not None else []
        state += [f"edits at {', '.join(self.edits)}"] if self.edits else []
        state += ["prompts transformed"] if self.prompt is not None else []
        return f"Subject({self.lm.name!r}, concept {self.concept.name!r}: {', '.join(state)})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


@dataclass(frozen=True)
class Metric:
    """A declared measurement."""

    name: str
    compute: Callable[[Subject], Rows]
    shows: Shows
    """answers: can the model still say the fact; kept: is the rest unharmed; text: is what it writes sound; inside: is
    the fact readable in activations or weights; describes: drawn, never evidence."""
    better: Literal["up", "down", "neither"]
    """The direction that is good for the eraser."""
    chance: float | None
    """The value of a model that knows nothing."""
    unit: str
    protocol: str
    """How the number was made, in a few words."""
    cost: Literal["cheap", "dear"]
    """"dear" metrics generate text or fit many probes; progression can leave them out."""
    needs_base: bool
    """Compares with the base, so the base itself has no row."""
    on_card: bool
    """Whether the score card has it."""
    headline: bool
    """Whether a run is summed up by it."""
    ruined: float | None = None
    """A value worse than this makes the model "destroyed"."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.compute.__doc__ or "").strip().splitlines()[0]


def metric(
    name: str,
    *,
    shows: Shows,
    better: Literal["up", "down", "neither"],
    chance: float | None = None,
    unit: str = "",
    protocol: str = "",
    cost: Literal["cheap", "dear"] = "cheap",
    needs_base: bool = False,
    on_card: bool | None = None,
    headline: bool = False,
    ruined: float | None = None,
) -> Callable[[Callable[[Subject], Rows]], Callable[[Subject], Rows]]:
    """Declare a function from a Subject to rows (dicts of `results.measurements`, or a frame) as a metric.

    Args:
        name: of the metric. Its rows have this name, or this name, a full stop and more.
        shows: "answers", "kept", "text", "inside" or "describes"; see `Metric.shows`. It decides what part the metric
            has in a verdict.
        better: the direction that is good for the eraser.
        chance: the value of a model that knows nothing. Without one, rows are no evidence.
        unit: of the value.
        protocol: how the number is made, in a few words.
        cost: "dear" for a metric that generates text or fits many probes.
        needs_base: whether it compares with the base.
        on_card: whether the score card has it; by default unless it only describes.
        headline: whether a run is summed up by it.
        ruined: a value beyond this, on the side that is not `better`, makes the model "destroyed, not erased".

    Raises:
        UnknownNameError: another value of `shows`.
        ConfigError: the name is taken by another function.
    """
    check_known(f"value of shows in metric {name!r}:", shows, get_args(Shows))
    card = shows != "describes" if on_card is None else on_card

    def declare(function: Callable[[Subject], Rows]) -> Callable[[Subject], Rows]:
        one = Metric(name, function, shows, better, chance, unit, protocol, cost, needs_base, card, headline, ruined)
        METRICS.add(name, one, origin=function)
        return function

    return declare


def list_metrics(patterns: Iterable[str] | str = "*") -> list[Metric]:
    """The declared metrics that match any of the patterns (shell wildcards), in order of declaration.

    Raises:
        UnknownNameError: a pattern that matches nothing; with the closest name.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(METRICS, pattern):
            raise unknown("metric", pattern, METRICS)
    return [one for name, one in METRICS.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def metric_of(row_name: str) -> Metric | None:
    """The metric that a row belongs to: "probe.truth" for "probe.truth.control"; None for a row of no declared metric.

    Of several metrics whose names begin the row's name, the longest name counts.
    """
    while row_name:
        if row_name in METRICS:
            found: Metric = METRICS[row_name]
            return found
        row_name = row_name.rpartition(".")[0]
    return None


def measure(
    subject: Subject, patterns: Iterable[str] | str = "*", *, cost: str = "dear", progress: bool = False
) -> pd.DataFrame:
    """Measure a subject: tidy rows of every metric that matches.

    Args:
        subject: the model in one state.
        patterns: metric names with shell wildcards.
        cost: "cheap" leaves out metrics that generate text.
        progress: show a bar.

    Raises:
        UnknownNameError: a pattern that matches nothing; with the closest name.
    """
    chosen = [m for m in list_metrics(patterns) if not (m.needs_base and subject.is_base)]
    chosen = [m for m in chosen if cost == "dear" or m.cost == "cheap"]
    tables = []
    for m in tqdm(chosen, desc=f"measuring {subject.method}", leave=False, disable=not progress):
        defaults = {
            "model": spelled(subject.lm.name), "method": subject.method, "step": subject.step, "seed": subject.seed,
            "chance": m.chance, "direction": m.better, "protocol": m.protocol,
        }  # fmt: skip
        tables.append(frame(m.compute(subject)).fillna({k: v for k, v in defaults.items() if v is not None}))
    return stack(tables)


def _edits_in_turn(first: Mapping[str, Edit], second: Mapping[str, Edit], n_layers: int) -> dict[str, Edit]:
    """Edits by full site name; if both have one, the second acts on the result of the first."""
    before, after = (
        {site.full_name: edit for name, edit in edits.items() for site in resolve_sites(name, None, n_layers)}
        for edits in (first, second)
    )
    return {site: _in_turn(before.get(site), after.get(site)) for site in before | after}


def _in_turn(first: Callable[[T], T | None] | None, second: Callable[[T], T | None] | None) -> Any:
    if first is None or second is None:
        return first or second

    def both(value: T) -> T:
        # an edit that returns None left the activation as it is, or changed it in place
        for function in (first, second):
            changed = function(value)
            value = value if changed is None else changed
        return value

    return both

"""Verdict: is a concept intact in a model, hidden, gone as far as we can tell, or is the model destroyed?

    intact                       the model still answers when asked
    destroyed                    it does not, but it answers nothing else either, or no longer writes sound text
    hidden                       it does not answer, and a measurement inside still reads the knowledge
    gone as far as we can tell   it does not answer, and no measurement reads it

A verdict is never stronger than its evidence (see `elm_interp.verdict.evidence`). `not_excluded` lists the other
verdicts that the evidence leaves open, `unmeasured` the metrics that were not measured. If a probe reads something, and
it is not known whether it would in a model that never knew, the verdict is the one against the eraser: "hidden", with
"gone" not excluded.

    from elm_interp.verdict.rules import verdict_of

    found = verdict_of(subject)                    # organisms have anchors; `anchors={"gold": ...}` gives others
    found = verdict_of(Run.open("runs/demo"))      # from its results
    found.name, found.because, found.to_frame()
    print(found)                                   # the whole evidence as a table
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import pandas as pd

from elm_interp.data import Concept
from elm_interp.errors import ConfigError, RunFolderError, check_known
from elm_interp.evaluate.scorecard import GENERAL_LEFT, destroyed
from elm_interp.metrics import Subject, list_metrics, measure, metric_of
from elm_interp.organisms import World, domain_concept, make_world
from elm_interp.results import stack
from elm_interp.runs.run import Run
from elm_interp.verdict.calibration import one_value, subjects
from elm_interp.verdict.evidence import ANCHORS, Evidence, evidence_of

VERDICTS = INTACT, HIDDEN, GONE, DESTROYED = ("intact", "hidden", "gone as far as we can tell", "destroyed")
HALF = 0.5
"""If the interval reaches this share of the original's distance, "intact" is not excluded."""
SHORT = (
    "metric", "shows", "value", "original", "gold", "control", "chance", "left", "r", "direction", "auc_gold",
    "auc_hiding", "finding",
)  # fmt: skip
"""Columns of the printed table."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """One of `VERDICTS`, with its evidence. `print` shows all of it."""

    name: str
    because: str
    evidence: tuple[Evidence, ...]
    not_excluded: tuple[str, ...] = ()
    """Other verdicts that the evidence does not exclude."""
    unmeasured: tuple[str, ...] = ()
    """Metrics that were not measured."""
    missing: tuple[str, ...] = ()
    """Anchors that were not given."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        lists = {"not_excluded": self.not_excluded, "missing_anchors": self.missing, "unmeasured": self.unmeasured}
        found: dict[str, Any] = {"verdict": self.name, "because": self.because}
        return found | {k: list(v) for k, v in lists.items()} | {"evidence": [asdict(e) for e in self.evidence]}

    def to_frame(self) -> pd.DataFrame:
        """One row per measurement."""
        return pd.DataFrame([asdict(e) for e in self.evidence])

    def __repr__(self) -> str:
        opened = f"; not excluded: {', '.join(self.not_excluded)}" if self.not_excluded else ""
        return f"Verdict({self.name}: {len(self.evidence)} measurements{opened})"

    def __str__(self) -> str:
        return "\n".join([f"Verdict: {self.name}", self._table().to_string(index=False), *self._lines()])

    def _repr_html_(self) -> str:
        because, *rest = (escape(line) for line in self._lines())
        notes = "".join(f"<li>{line}</li>" for line in rest)
        table = f"<details><summary>Evidence</summary>{self._table().to_html(index=False)}</details>"
        return f"<h4>Verdict: {self.name}</h4><p>{because}</p><ul>{notes}</ul>{table}"

    def _table(self) -> pd.DataFrame:
        table = self.to_frame().astype(object)
        ends = zip(*(table[column].map(_figure) for column in ("value", "ci_low", "ci_high")), strict=True)
        values = [value if low == "-" else f"{value} [{low}, {high}]" for value, low, high in ends]
        return table[list(SHORT)].map(_figure).assign(value=values)

    def _lines(self) -> list[str]:
        rest = {"not excluded": self.not_excluded, "missing anchors": self.missing, "not measured": self.unmeasured}
        return [f"because {self.because}", *(f"{what}: {', '.join(names)}" for what, names in rest.items() if names)]


def verdict_of(
    of: Subject | Run, *, anchors: Mapping[str, Subject] | None = None, cost: str = "dear", progress: bool = False
) -> Verdict:
    """The verdict on a model, or on the last checkpoint of a run.

    A subject is measured, and so is a run on a domain of the organisms. For any other run, its results are read.

    Args:
        of: a model with its concept, or a run.
        anchors: models that know ("original") or never knew ("gold") the same concept. By default those of the
            organism's world, trained if they are not in the cache. Otherwise the base is the original, and gold is what
            the run has measured beside it, if it has.
        cost: "cheap" leaves out metrics that generate text.
        progress: show bars.

    Raises:
        ConfigError: the original does not know the concept either, so no loss can be shown.
        RunFolderError: the run has not been evaluated.
        UnknownNameError: an anchor that is neither "original" nor "gold".
    """
    for name in anchors or ():
        check_known("anchor", name, ANCHORS)
    world = None if anchors else _world_of(of.concept)
    if isinstance(of, Run):
        if world is None and not anchors:
            return verdict_from_rows(*_from_results(of))
        of = of.subject()
    if world is not None:
        # as many texts as the subject writes, or it would seem to write less than they do
        known = subjects(world, texts=of.base.texts, progress=progress)
        anchors = {kind: one for kind, one in known.items() if kind in ANCHORS}
    states = {"original": of.base, **(anchors or {}), "subject": of}
    tables = {name: measure(one, used_metrics(), cost=cost, progress=progress) for name, one in states.items()}
    return verdict_from_rows(tables.pop("subject"), tables)


def verdict_from_rows(
    table: pd.DataFrame, anchors: Mapping[str, pd.DataFrame], calibrated: Mapping[str, Mapping[str, Any]] | None = None
) -> Verdict:
    """The verdict from rows alone.

    Args:
        table: tidy rows of one model in one state.
        anchors: rows of the "original", and of "gold" if there is one.
        calibrated: row name -> {auc_gold, auc_hiding, apart}; by default the values measured on organisms.

    Raises:
        ConfigError: the original answers no question.
    """
    found = evidence_of(table, anchors, calibrated)
    asked, inside, kept = ([e for e in found.values() if e.shows == what] for what in ("answers", "inside", "kept"))
    # the first metric that can show a loss decides: in order of declaration, those of elm_interp before others
    declared = sorted(list_metrics(), key=lambda m: not m.compute.__module__.startswith("elm_interp."))
    answers = [e for m in declared for e in asked if e.counts and metric_of(e.metric) is m]
    if not answers:
        seen = "; ".join(f"{e.metric} {e.value:.2f}: {e.finding}" for e in asked) or "none was measured"
        raise ConfigError(f"no verdict: it needs a question about the concept that the original answers ({seen}).")
    broken = [_keeps(e) for e in kept if e.counts and (e.left or 0) < GENERAL_LEFT]
    sides = {"base": anchors["original"], "erased": table}
    why = destroyed(stack([one_value(rows).assign(method=side) for side, rows in sides.items()]))
    name, because, open_ = _decide(answers, inside, [*broken, why] if why else broken)
    if name in (HIDDEN, GONE) and not any(e.counts for e in kept):
        open_.append(DESTROYED)
    measured = {one.name for one in map(metric_of, set(table["metric"])) if one is not None}
    unmeasured = [name for name in used_metrics() if name not in measured]
    missing = [anchor for anchor in ANCHORS if anchor not in anchors]
    return Verdict(name, because, tuple(found.values()), tuple(open_), tuple(unmeasured), tuple(missing))


def _decide(answers: list[Evidence], inside: list[Evidence], broken: list[str]) -> tuple[str, str, list[str]]:
    """The verdict, the reason, and the other verdicts that are not excluded."""
    first, *others = answers
    reading = sorted((e for e in inside if e.knows), key=lambda e: (e.proves, e.left), reverse=True)
    if first.knows:
        return INTACT, "; though ".join([f"asked outright it answers: {_keeps(first)}", *broken]), []
    if broken:
        return DESTROYED, f"more is lost than the concept: {'; '.join(broken)}", [HIDDEN] if reading else []
    because, open_ = f"asked outright it does not answer: {_keeps(first)}", list[str]()
    still = [e for e in others if e.knows]
    if still:
        because += f" (though {'; '.join(map(_keeps, still))})"
    if still or (first.at_most or 0) >= HALF:
        open_.append(INTACT)
    if reading:
        because += f"; inside, {_keeps(reading[0])}"
        if not reading[0].proves:
            because += ", but it is not known to read less in a model that never knew"
            open_.append(GONE)
        return HIDDEN, because, open_
    silent = [e.metric for e in inside if e.counts]
    because += f"; inside, {', '.join(silent)} read nothing" if silent else "; no metric inside could show a loss"
    if not any(e.rules_out_hiding for e in inside):
        open_.append(HIDDEN)
    return GONE, because, open_


def _keeps(e: Evidence) -> str:
    return f"{e.metric} is {e.value:.2f}, {max(e.left or 0, 0):.0%} of the way from not knowing to the original"


def used_metrics() -> list[str]:
    """Names of the metrics that a verdict uses: all but those that only describe."""
    return [one.name for one in list_metrics() if one.shows != "describes"]


def _figure(x: Any) -> str:
    return "-" if x is None or x != x else f"{x:.3g}" if isinstance(x, float) else str(x)


def _world_of(concept: Concept) -> World | None:
    """The default world that has the concept as a domain; None for any other concept."""
    prefix, _, name = concept.name.partition(":")
    domain, _, seed = name.partition("@")
    if prefix != "organism" or domain not in make_world().domains:
        return None
    world = make_world(seed=int(seed or 0), erased=domain)
    # another world may have a domain of the same name
    return world if domain_concept(world, domain).fingerprint() == concept.fingerprint() else None


def _from_results(run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Rows of a run's last checkpoint, and of its base and gold, where it has one, from all results of the run."""
    made = sorted(path.stem for path in (run.folder / "results").glob("*.parquet"))
    if "scorecard" not in made:
        raise RunFolderError(f"{run.folder} was not evaluated; run: elm-interp evaluate {run.folder}")
    card = run.current("scorecard")
    last = card["step"].max()
    sides: dict[str, list[pd.DataFrame]] = {run.method: [], "base": [], "gold": []}
    for table in (card, *(run.results(name) for name in made if name != "scorecard")):
        table = table[table["metric"].str.removesuffix(".control").isin(used_metrics())]
        for method, tables in sides.items():
            rows = table[(table["method"] == method) & ~table["metric"].isin([m for t in tables for m in t["metric"]])]
            tables.append(rows[rows["step"] == last] if method == run.method else rows)
    anchors = {"original": stack(sides["base"]), "gold": stack(sides["gold"])}
    return stack(sides[run.method]), {name: rows for name, rows in anchors.items() if name == "original" or len(rows)}

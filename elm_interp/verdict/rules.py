"""Verdict: is a concept intact in a model, hidden, gone as far as we can tell, or is the model destroyed?

    intact                       asked outright, the model still answers
    destroyed                    it does not, but it answers nothing else either, or writes no text any more
    hidden                       it does not answer, and something inside still reads what it knows
    gone as far as we can tell   it does not answer, and nothing that was measured reads it

Never stronger than its evidence (see `elm_interp.verdict.evidence`): which other verdicts that leaves open stands in `not_excluded`,
what was not looked at in `unmeasured`. Where a probe reads something and nobody knows whether it would in a model that never
knew, the verdict is the one against the eraser, "hidden", with "gone" not excluded.

    from elm_interp.verdict.rules import verdict_of

    found = verdict_of(subject)                    # organisms bring their anchors; `anchors={"gold": ...}` gives others
    found = verdict_of(Run.open("runs/demo"))      # from its results
    found.name, found.because, found.to_frame()
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import pandas as pd

from elm_interp.data import Concept
from elm_interp.errors import ConfigError, RunFolderError, unknown
from elm_interp.evaluate.scorecard import GENERAL_LEFT, destroyed
from elm_interp.metrics import Subject, list_metrics, measure
from elm_interp.organisms import World, domain_concept, make_world
from elm_interp.results import stack
from elm_interp.runs.run import Run
from elm_interp.verdict.calibration import one_value, subjects
from elm_interp.verdict.evidence import ANCHORS, ASKED, BEHAVIOUR, Evidence, evidence, looks_inside

VERDICTS = INTACT, HIDDEN, GONE, DESTROYED = ("intact", "hidden", "gone as far as we can tell", "destroyed")
HALF = 0.5
"""An interval that reaches half of what the original shows leaves open that the model still answers."""
ATTACKS = "attacks and relearning"
SHORT = ("metric", "shows", "value", "original", "gold", "control", "chance", "left", "r", "direction", "auc_gold", "auc_hiding", "finding")  # fmt: skip
"""Columns of the table that is shown."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """One of `VERDICTS`, with everything that it rests on."""

    name: str
    because: str
    evidence: tuple[Evidence, ...]
    not_excluded: tuple[str, ...] = ()
    """Other verdicts that the evidence leaves open."""
    unmeasured: tuple[str, ...] = ()
    """What was not looked at."""
    missing: tuple[str, ...] = ()
    """Anchors that there are not."""

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        lists = {"not_excluded": self.not_excluded, "missing_anchors": self.missing, "unmeasured": self.unmeasured}
        said = {"verdict": self.name, "because": self.because, **{name: list(some) for name, some in lists.items()}}
        return said | {"evidence": [asdict(e) for e in self.evidence]}

    def to_frame(self) -> pd.DataFrame:
        """One row a measurement."""
        return pd.DataFrame([asdict(e) for e in self.evidence])

    def __repr__(self) -> str:
        return "\n".join([f"Verdict: {self.name}", self._table().to_string(index=False), *self._lines()])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(line)}</p>" for line in self._lines())
        return f"<h4>Verdict: {self.name}</h4>{self._table().to_html(index=False)}{said}"

    def _table(self) -> pd.DataFrame:
        table = self.to_frame().astype(object)
        ends = zip(*(table[column].map(_figure) for column in ("value", "ci_low", "ci_high")), strict=True)
        values = [value if low == "-" else f"{value} [{low}, {high}]" for value, low, high in ends]
        return table[list(SHORT)].map(_figure).assign(value=values)

    def _lines(self) -> list[str]:
        rest = {"not excluded": self.not_excluded, "missing anchors": self.missing, "not measured": self.unmeasured}
        return [f"because {self.because}", *(f"{what}: {', '.join(some)}" for what, some in rest.items() if some)]


def verdict_of(
    of: Subject | Run, *, anchors: Mapping[str, Subject] | None = None, cost: str = "dear", progress: bool = False
) -> Verdict:
    """The verdict on a model, or on the last checkpoint of a run.

    A subject is measured, and so is a run on a domain of the organisms; of any other run the results are read.

    Args:
        of: a model with its concept, or a run.
        anchors: models that know ("original") or never knew ("gold") the same concept. By default those of the organism's
            world, trained where they are not in the cache; else the base is the original, and there is no gold.
        cost: "cheap" leaves out metrics that write text.
        progress: show bars.

    Raises:
        ConfigError: the original does not know the concept either, so that nothing can be shown to be lost.
        RunFolderError: the run was not evaluated yet.
        UnknownNameError: another anchor.
    """
    for name in anchors or ():
        if name not in ANCHORS:
            raise unknown("anchor", name, ANCHORS)
    world = None if anchors else _world(of.concept)
    if isinstance(of, Run):
        if world is None and not anchors:
            return verdict_from_rows(*_from_results(of))
        of = of.subject()
    if world is not None:
        anchors = {kind: one for kind, one in subjects(world, progress=progress).items() if kind in ANCHORS}
    states = {"original": of.base, **(anchors or {}), "subject": of}
    tables = {name: measure(one, _used(), cost=cost, progress=progress) for name, one in states.items()}
    return verdict_from_rows(tables.pop("subject"), tables)


def verdict_from_rows(
    table: pd.DataFrame,
    anchors: Mapping[str, pd.DataFrame],
    calibrated: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """The verdict from rows alone.

    Args:
        table: tidy rows of one model in one state.
        anchors: rows of the "original", and of "gold" where there is one.
        calibrated: metric -> {auc_gold, auc_hiding}; by default what is known of the metric on organisms.

    Raises:
        ConfigError: no question that the original answers.
    """
    found = evidence(table, anchors, calibrated)
    asked = [found[name] for name in ASKED if name in found]
    answers = [e for e in asked if e.counts]
    if not answers:
        said = "; ".join(f"{e.metric} {e.value:.2f}: {e.finding}" for e in asked) or "none was measured"
        raise ConfigError(f"no verdict: it takes a question about the concept that the original answers ({said}).")
    inside, kept = ([e for e in found.values() if e.shows == what] for what in ("inside", "kept"))
    broken = [_keeps(e) for e in kept if e.counts and (e.left or 0) < GENERAL_LEFT]
    sides = {"base": anchors["original"], "erased": table}
    why = destroyed(stack([one_value(rows).assign(method=side) for side, rows in sides.items()]))
    name, because, open_ = _decide(answers, inside, [*broken, why] if why else broken)
    if name in (HIDDEN, GONE) and not any(e.counts for e in kept):
        open_.append(DESTROYED)
    measured = set(table["metric"])
    unmeasured = [metric for metric in _used() if metric not in measured]
    unmeasured += [] if any(metric.startswith("attack.") for metric in measured) else [ATTACKS]
    missing = [anchor for anchor in ANCHORS if anchor not in anchors]
    return Verdict(name, because, tuple(found.values()), tuple(open_), tuple(unmeasured), tuple(missing))


def _decide(answers: list[Evidence], inside: list[Evidence], broken: list[str]) -> tuple[str, str, list[str]]:
    """Which verdict, why, and which others are left open."""
    first, *others = answers
    reading = sorted((e for e in inside if e.knows), key=lambda e: (e.proves, e.left), reverse=True)
    if first.knows:
        return INTACT, "; though ".join([f"asked outright it answers: {_keeps(first)}", *broken]), []
    if broken:
        return DESTROYED, f"more is lost than the concept: {'; '.join(broken)}", [HIDDEN] if reading else []
    because, open_ = f"asked outright it does not answer: {_keeps(first)}", []
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
    because += (
        f"; inside, {', '.join(silent)} read nothing" if silent else "; nothing that looks inside could show a loss"
    )
    if not any(e.rules_out_hiding for e in inside):
        open_.append(HIDDEN)
    return GONE, because, open_


def _keeps(e: Evidence) -> str:
    return f"{e.metric} is {e.value:.2f}, {max(e.left or 0, 0):.0%} of the way from not knowing to the original"


def _used() -> list[str]:
    """The metrics that have a part in a verdict: those of behaviour, and those that look inside."""
    return [m.name for m in list_metrics() if m.name.startswith(BEHAVIOUR) or looks_inside(m.name, m.better)]


def _figure(x: Any) -> str:
    return "-" if x is None or x != x else f"{x:.3g}" if isinstance(x, float) else str(x)


def _world(concept: Concept) -> World | None:
    """The default world of which a concept is a domain; None for any other concept."""
    prefix, _, name = concept.name.partition(":")
    domain, _, seed = name.partition("@")
    if prefix != "organism" or domain not in make_world().domains:
        return None
    world = make_world(seed=int(seed or 0), erased=domain)
    # a world of one's own may have a domain of the same name
    return world if domain_concept(world, domain).fingerprint() == concept.fingerprint() else None


def _from_results(run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Rows of a run's last step and of its base, from every analysis that has them."""
    made = sorted(path.stem for path in (run.folder / "results").glob("*.parquet"))
    if "scorecard" not in made:
        raise RunFolderError(f"{run.folder} was not evaluated; do it with: elm-interp evaluate {run.folder}")
    own: list[pd.DataFrame] = []
    base: list[pd.DataFrame] = []
    for name in ("scorecard", *(name for name in made if name != "scorecard")):
        table = run.current(name) if name == "scorecard" else run.results(name)
        table = table[table["metric"].str.removesuffix(".control").isin(_used())]
        for method, tables in ((run.method, own), ("base", base)):
            rows = table[(table["method"] == method) & ~table["metric"].isin([m for t in tables for m in t["metric"]])]
            step = rows["step"].fillna(0)
            tables.append(rows[step == step.max()])
    return stack(own), {"original": stack(base)}

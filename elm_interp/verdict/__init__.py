"""Verdict: calibration of metrics, evidence, and the rules that say what happened to a concept."""

from elm_interp.verdict.calibration import calibrate
from elm_interp.verdict.evidence import Evidence, evidence_of
from elm_interp.verdict.rules import VERDICTS, Verdict, verdict_from_rows, verdict_of

__all__ = ["VERDICTS", "Evidence", "Verdict", "calibrate", "evidence_of", "verdict_from_rows", "verdict_of"]

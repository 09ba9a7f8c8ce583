"""Runs: the run folder, its stages, and everything that makes or follows a run."""

from elm_interp.runs.adopt import adopt_models
from elm_interp.runs.config import RunConfig
from elm_interp.runs.erasing import erase_concept
from elm_interp.runs.estimate import estimate_run, estimate_stages
from elm_interp.runs.progression import follow_metrics
from elm_interp.runs.run import Run
from elm_interp.runs.stages import STAGES, run_stage, summary

__all__ = [
    "STAGES",
    "Run",
    "RunConfig",
    "adopt_models",
    "erase_concept",
    "estimate_run",
    "estimate_stages",
    "follow_metrics",
    "run_stage",
    "summary",
]

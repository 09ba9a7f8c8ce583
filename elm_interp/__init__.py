"""elm_interp: erase a concept from a language model, and see inside whether it is gone or only hidden.

    import elm_interp as ei

    lm = ei.load_model("smollm2-135m")
    concept = ei.load_concept("harry-potter")
    run = ei.Run.open("runs/demo")

Names are imported when first used, so that `import elm_interp` and `elm-interp --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_interp.activations.collect import collect_datasets
    from elm_interp.activations.store import ActivationStore
    from elm_interp.data import Concept, Question, load_concept, load_questions, packs
    from elm_interp.erase import ELM, RMU, WHP, RepNoise
    from elm_interp.evaluate import samples, score_card
    from elm_interp.metrics import Metric, Subject, measure, metric
    from elm_interp.models import HookedLM, load_model
    from elm_interp.organisms import make_world, organism
    from elm_interp.probes import probe_layers
    from elm_interp.runs.config import RunConfig
    from elm_interp.runs.progression import follow_metrics
    from elm_interp.runs.run import Run
    from elm_interp.runs.stages import STAGES, run_stage, summary
    from elm_interp.training import Training, list_checkpoints, train

_HOME = {
    "ActivationStore": "activations.store",
    "Concept": "data",
    "ELM": "erase",
    "HookedLM": "models",
    "Metric": "metrics",
    "Question": "data",
    "RMU": "erase",
    "RepNoise": "erase",
    "Run": "runs.run",
    "RunConfig": "runs.config",
    "STAGES": "runs.stages",
    "Subject": "metrics",
    "Training": "training",
    "WHP": "erase",
    "list_checkpoints": "training",
    "collect_datasets": "activations.collect",
    "load_concept": "data",
    "load_model": "models",
    "load_questions": "data",
    "make_world": "organisms",
    "measure": "metrics",
    "metric": "metrics",
    "organism": "organisms",
    "packs": "data",
    "probe_layers": "probes",
    "follow_metrics": "runs.progression",
    "run_stage": "runs.stages",
    "samples": "evaluate",
    "score_card": "evaluate",
    "summary": "runs.stages",
    "train": "training",
}

__version__ = "0.1.0"
__all__ = [
    "ELM",
    "RMU",
    "STAGES",
    "WHP",
    "ActivationStore",
    "Concept",
    "HookedLM",
    "Metric",
    "Question",
    "RepNoise",
    "Run",
    "RunConfig",
    "Subject",
    "Training",
    "collect_datasets",
    "follow_metrics",
    "list_checkpoints",
    "load_concept",
    "load_model",
    "load_questions",
    "make_world",
    "measure",
    "metric",
    "organism",
    "packs",
    "probe_layers",
    "run_stage",
    "samples",
    "score_card",
    "summary",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'elm_interp' has no attribute {name!r}")
    if name == "measure":
        # the registry is filled by the rooms that define metrics
        import_module("elm_interp.evaluate")
        import_module("elm_interp.internals")
        import_module("elm_interp.probes")
    return getattr(import_module(f"elm_interp.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

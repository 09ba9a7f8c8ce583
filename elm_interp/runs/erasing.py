"""Erase a concept in one call, from objects in memory: a loaded model and a concept.

lm = load_model("smollm2-135m")
run = erase_concept(lm, Concept("zorvex", forget=[...], retain=[...]), out="runs/zorvex", eta=10)
run.subject()
"""

from pathlib import Path
from typing import Any

from elm_interp.data import Concept
from elm_interp.models import HookedLM
from elm_interp.runs.config import DEFAULT_METHOD, OWN_CONCEPT, RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage


def erase_concept(
    lm: HookedLM,
    concept: Concept | str | Path,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    out: str | Path,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train an adapter that erases a concept, and return its run.

    Args:
        lm: the base model, with no adapter on; it is as before afterwards.
        concept: an object (it is written into the run folder), or the name of a pack or folder.
        method: name of the method of erasure.
        preset: named settings; by default those made for the model.
        out: run folder to make.
        seed: of the adapter's initial weights, the order of samples and the generated text.
        resume: go on with a run that was interrupted.
        progress: show bars.
        settings: settings of the method, its adapter or the training by name, such as `eta=10, rank=8, steps=60`.

    Returns:
        The trained run; `run_stage(run, "evaluate")` measures it, `Run.open(out, lm=lm)` opens it later.

    Raises:
        ConfigError: settings that cannot work, all listed; nothing is written then.
        RunFolderError: the folder exists and `resume` is off.
        UnknownNameError: no such method, preset or concept.
    """
    own = isinstance(concept, Concept)
    config = RunConfig.preset(
        preset,
        method,
        model=lm.name,
        concept=OWN_CONCEPT if own else str(concept),
        seed=seed,
        dtype=str(lm.dtype).removeprefix("torch."),
        device=str(lm.device),
        **settings,
    )
    run = Run.create(out, config, resume=resume, lm=lm, concept=concept if isinstance(concept, Concept) else None)
    run_stage(run, "erase", progress=progress)
    return run

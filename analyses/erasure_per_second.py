"""Erasure against seconds: accuracy on known items and retain perplexity, ours and the straightforward form.

    ours               the preset planted; ends early if its training is complete
    straightforward    `plain_elm` with the published hyper-parameters (the preset `paper`: η 500, rank 4, layers 4 to
                       7, AdamW 5e-5, 4 samples a step), without the fluency term, whose text
                       would take most of the time

Both in float32, so the ratio is that of the work.
Seconds count the preparation of targets and the training. They leave out loading, checkpoints and measurements.

    python analyses/erasure_per_second.py               # figures/erasure_per_second.{png,svg,csv} and _manifest.json
    python analyses/erasure_per_second.py --seconds 20 --points 2 --out somewhere/
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import torch
from common import FIGURES, row_of, write_manifest

from elm_interp.data import Concept, load_concept, texts
from elm_interp.erase.elm import ELM
from elm_interp.metrics import Subject
from elm_interp.models import HookedLM, load_model
from elm_interp.plots import plot_over_seconds, save
from elm_interp.plots.style import STYLE, WIDTH
from elm_interp.training.checkpoints import list_checkpoints
from elm_interp.training.sampling import draw
from elm_interp.training.trainer import train

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from plain_elm import plain_step

METRICS = {"forget": "innocence.known.four_choice", "retain_ppl_ratio": "specificity.retain_ppl_ratio"}
ACCUMULATE = 4
"""Samples per step of the straightforward form."""


class TimeIsUpError(Exception):
    """Raised inside a training to end it."""


def main() -> None:
    """Train both for the same time, measure their checkpoints, and write table, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="planted:original")
    parser.add_argument("--concept", default="planted:marsh-animals")
    parser.add_argument("--seconds", type=float, default=300, help="time for each form")
    parser.add_argument("--points", type=int, default=6, help="approximate number of measured checkpoints of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FIGURES, help="output folder")
    given = parser.parse_args()
    concept, rows = load_concept(given.concept), []
    for method, trained in (("ours", ours), ("straightforward", straightforward)):
        lm = load_model(given.model, dtype="float32")
        base = Subject(lm, concept, seed=given.seed)
        with tempfile.TemporaryDirectory() as folder:
            found = list(trained(lm, concept, given.seconds, given.points, given.seed, Path(folder)))
            for seconds, samples, adapter in [(0.0, 0, None), *found]:
                state = base.at(adapter, method="elm", step=samples)
                rows.append({"method": method, "seconds": seconds, "samples": samples, **measured(state)})
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
        del lm, base
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "erasure_per_second.csv", index=False, float_format="%.6g")
    with mpl.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(WIDTH, 6), layout="constrained", sharex=True)
        plot_over_seconds(table, "forget", level=(0.25, "chance"), label="Accuracy on known items", ax=upper)
        plot_over_seconds(
            table, "retain_ppl_ratio", level=(1, "unchanged"), label="Retain perplexity / base's", ax=lower
        )
        upper.set_xlabel("")
    save(figure, given.out / "erasure_per_second")
    write_manifest(given.out / "erasure_per_second_manifest.json", metrics=METRICS)


def ours(
    lm: HookedLM, concept: Concept, limit: float, points: int, seed: int, folder: Path
) -> Iterator[tuple[float, int, Path | None]]:
    """Seconds, forget passages seen and adapter: of the base once targets are prepared, then of each checkpoint."""
    objective, training = ELM.preset("planted"), ELM.training_preset("planted")
    began = time.perf_counter()
    samples = objective.prepare(lm, concept, seed=seed)
    prepared = time.perf_counter() - began
    log = folder / "metrics.jsonl"

    def spent(step: float) -> float:
        lines = map(json.loads, log.read_text().splitlines())
        return prepared + sum(line["seconds"] for line in lines if "seconds" in line and line["step"] <= step)

    def clock(_: HookedLM) -> dict[str, float]:
        if spent(torch.inf) > limit:
            raise TimeIsUpError
        return {}

    often = replace(training, save_every=max(1, training.steps // points))
    with suppress(TimeIsUpError):
        train(lm, objective, samples, often, folder, seed=seed, evaluate=clock, evaluate_every=1)
    yield prepared, 0, None
    for found in list_checkpoints(folder / "checkpoints"):
        yield spent(found.step), found.step * training.forget_batch, found.path


def straightforward(
    lm: HookedLM, concept: Concept, limit: float, points: int, seed: int, folder: Path
) -> Iterator[tuple[float, int, Path]]:
    """Seconds, forget passages seen and adapter at `points` moments."""
    objective, training = ELM.preset("paper"), ELM.training_preset("paper")
    forget, retain = (
        lm.encode(texts(concept.passages(kind)), max_tokens=objective.max_tokens) for kind in ("forget", "retain")
    )
    classes = (concept.prompts("expert")[0], concept.prompts("novice")[0])
    torch.manual_seed(seed)
    weights = lm.adapters.attach(objective.adapter.config(lm))
    optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    spent, step, found = 0.0, 0, []
    while spent < limit:
        began = time.perf_counter()
        step += 1
        for pair in zip(draw(forget, ACCUMULATE, step, seed), draw(retain, ACCUMULATE, step, seed), strict=True):
            plain_step(lm, objective, *pair, classes)
        optimizer.step()
        optimizer.zero_grad()
        spent += time.perf_counter() - began
        if spent >= limit * (len(found) + 1) / points:
            path = folder / f"{step:06d}"
            lm.adapters.save(path)
            found.append((spent, step * ACCUMULATE, path))
    lm.adapters.release()
    yield from found


def measured(subject: Subject) -> dict[str, float]:
    """The value and interval of each metric; the perplexity ratio of the base, which has no row, is 1."""
    base = {f"retain_ppl_ratio{end}": 1.0 for end in ("", "_low", "_high")}
    return base | row_of(subject, METRICS)


if __name__ == "__main__":
    main()

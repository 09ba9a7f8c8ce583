"""ELM's time a forget sample, targets included, beside the plain way of the authors' code.

A forget sample is one forget and one retain passage of about 100 tokens, without fluency text. Ours: targets prepared in
batches with the class prompts' keys and values shared, then steps of 4 + 4 passages in the model's own dtype. Plain: float32,
one passage at a time, the base run three times for each forget passage and once for each retain passage inside the step.
Both on the same passages and layers, in one run; `ratio` is plain over ours.

    python benchmarks/elm_step.py [--json]
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch

from elm_interp.data import Concept, load_concept, texts
from elm_interp.erase.elm import ELM
from elm_interp.erase.objective import distribution_loss
from elm_interp.models import HookedLM, load_model

BATCH = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--samples", type=int, default=16, help=f"forget samples; a multiple of {BATCH}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()

    objective = replace(ELM.preset("smollm2-135m"), fluency_weight=0.0, answers_weight=0.0, max_tokens=100)
    concept = replace(load_concept("harry-potter").sample(args.samples), questions={})
    ours = time_ours(load_model(args.model), objective, concept)
    plain = time_plain(load_model(args.model, dtype="float32"), objective, concept.sample(max(2, args.samples // 4)))
    found: dict[str, Any] = {
        "model": args.model,
        "threads": torch.get_num_threads(),
        "ours": ours,
        "plain": plain,
        "ratio": round(plain["seconds_a_sample"] / ours["seconds_a_sample"], 2),
    }
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:10} {value}")


def time_ours(lm: HookedLM, objective: ELM, concept: Concept) -> dict[str, Any]:
    """Seconds a forget sample of `ELM.prepare` and of the training steps."""
    objective.prepare(lm, concept.sample(2))  # the first passes of a process are slower
    began = time.perf_counter()
    samples = objective.prepare(lm, concept)
    prepared = time.perf_counter()
    n = len(samples["erase"])
    optimizer = torch.optim.AdamW(lm.adapters.attach(objective.adapter(lm)), lr=1e-4)
    lm.model.set_attn_implementation("eager")
    step(lm, objective, samples["erase"][:1] + samples["retain"][:1], optimizer)
    trained = time.perf_counter()
    for i in range(0, n, BATCH):
        step(lm, objective, samples["erase"][i : i + BATCH] + samples["retain"][i : i + BATCH], optimizer)
    ended = time.perf_counter()
    tokens = sum(len(s) for found in samples.values() for s in found)
    return report(lm, (prepared - began) / n, (ended - trained) / n, n, tokens)


def time_plain(lm: HookedLM, objective: ELM, concept: Concept) -> dict[str, Any]:
    """The same, one passage at a time, the frozen passes inside the step."""
    rows = list(zip(concept.passages("forget"), concept.passages("retain"), strict=True))
    optimizer = torch.optim.AdamW(lm.adapters.attach(objective.adapter(lm)), lr=1e-4)
    targets = steps = 0.0
    tokens = 0
    for i, pair in enumerate(rows):
        one = replace(concept, forget=(pair[0],), retain=(pair[1],))
        began = time.perf_counter()
        samples = objective.prepare(lm, one)
        prepared = time.perf_counter()
        for found in samples.values():
            step(lm, objective, found, optimizer)
        if i:  # the first passes of a process are slower
            targets, steps = targets + prepared - began, steps + time.perf_counter() - prepared
            tokens += len(lm.encode(texts([pair[0]]))[0]) + len(lm.encode(texts([pair[1]]))[0])
    n = len(rows) - 1
    return report(lm, targets / n, steps / n, n, tokens)


def step(lm: HookedLM, objective: ELM, samples: list, optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step on these samples."""
    sum(distribution_loss(lm, samples).values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()


def report(lm: HookedLM, targets: float, training: float, n: int, tokens: int) -> dict[str, Any]:
    """What was measured, as plain data."""
    return {
        "dtype": str(lm.dtype).removeprefix("torch."),
        "seconds_a_sample": round(targets + training, 3),
        "of_which_targets": round(targets, 3),
        "samples": n,
        "tokens_a_sample": round(tokens / n),
    }


if __name__ == "__main__":
    main()

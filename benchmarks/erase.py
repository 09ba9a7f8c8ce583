"""ELM's time and memory: ours beside the straightforward form, and beside the limit that the processor sets.

The same objective (the preset `paper`) on the same text, in one process. A sample is one forget and one retain passage of 128
tokens each, with fluency one text of 100 to 300 written tokens more (ours: always 200, the mean). Training comes back to each
passage, as the preset does, whose 750 steps of 4 go 19 times through the forget passages of the pack `harry-potter`: the
straightforward form makes its targets and text anew each time, ours makes them once, so that a visit bears a 19th of them.

    ours               targets of all samples in large batches, then steps of 4 + 4 (+ 4) in the model's own dtype
    ours in float32    the same; what it lacks to ours is bfloat16's part
    straightforward    `plain_elm`, as the authors' code: float32, one sample a step, nothing shared

    python benchmarks/erase.py [--json]
    python benchmarks/erase.py --samples 4 --plain-samples 1 --written 8 8 --repetitions 2      # a look, in two minutes

speedup_with_fluency, speedup_without_fluency    straightforward over ours, in seconds a visit of a sample, targets and text included
..._first_visit        the same for a training that goes through the passages once
speedup_same_dtype     the same without fluency, with ours in float32
bfloat16_part          ours in float32 over ours, without fluency
of_limit               a step's matrix products, forward and backward, run alone, over the step (both the median of several)
peak_extra_gb          most memory beyond the loaded model, targets and steps of 8 passages
growth                 exponent of the whole time over 1, 2 and 4 times as many samples: 1 is linear
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from plain_elm import plain_step
from torch.utils._python_dispatch import TorchDispatchMode

from elm_interp.data import Concept, Passage, load_concept
from elm_interp.erase.elm import ELM
from elm_interp.models import HookedLM, load_model
from elm_interp.training.memory import trim
from elm_interp.training.trainer import Training, train

BATCH = 4
"""Forget passages a step, retain passages, and written texts."""
TOKENS = 128
OPENING = 8
"""Words of a forget passage that a fluency text goes on from, as in `ELM`."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=ELM.preset("paper").layers, help="that are trained")
    parser.add_argument("--samples", type=int, default=64, help=f"of ours; a multiple of {4 * BATCH}")
    parser.add_argument("--plain-samples", type=int, default=3, help="of the straightforward form")
    parser.add_argument(
        "--written", type=int, nargs=2, default=(100, 300), help="least and most tokens of a fluency text"
    )
    parser.add_argument("--repetitions", type=int, default=7, help="of a step and of its products alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    objective = replace(
        ELM.preset("paper"),
        layers=tuple(args.layers),
        max_tokens=TOKENS,
        fluency_weight=0.0,
        fluency_samples=args.samples,
        fluency_tokens=sum(args.written) // 2,
    )
    with_fluency = replace(objective, fluency_weight=1.0)
    concept = passages(args.samples)
    preset = Training.preset("paper")
    visits = preset.steps * preset.forget_batch / len(load_concept("harry-potter").passages("forget"))

    def ratio(theirs: dict[str, float], mine: dict[str, float], visits: float = visits) -> float:
        return theirs["seconds_a_sample"] / (mine["prepared_a_sample"] / visits + mine["trained_a_sample"])

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        return result

    lm = load_model(args.model)
    peak = timed("memory", lambda: peak_extra_gb(lm, lambda: ours(lm, objective, passages(BATCH), steps=3)))
    warm = replace(with_fluency, fluency_samples=BATCH, fluency_tokens=4)
    timed("warm-up", lambda: ours(lm, warm, passages(BATCH)))
    fast = timed("ours", lambda: ours(lm, objective, concept))
    fluent = timed("ours with fluency", lambda: ours(lm, with_fluency, concept))
    sizes = [max(BATCH, args.samples // share) for share in (4, 2, 1)]
    grown = timed("growth", lambda: [ours(lm, objective, passages(n))["seconds"] for n in sizes[:-1]])
    grown.append(fast["seconds"])
    products, step = timed("limit", lambda: limit(lm, objective, args.repetitions))
    dtype = str(lm.dtype).removeprefix("torch.")

    lm = load_model(args.model, dtype="float32")
    timed("warm-up in float32", lambda: ours(lm, warm, passages(BATCH)))
    single = timed("ours in float32", lambda: ours(lm, objective, concept))
    single_fluent = timed("ours in float32 with fluency", lambda: ours(lm, with_fluency, concept))
    slow = timed("straightforward", lambda: plain(lm, objective, concept, args.plain_samples, (0, 0)))
    slow_fluent = timed(
        "straightforward with fluency", lambda: plain(lm, with_fluency, concept, args.plain_samples, args.written)
    )

    found: dict[str, Any] = {
        "speedup_with_fluency": ratio(slow_fluent, fluent),
        "speedup_without_fluency": ratio(slow, fast),
        "speedup_with_fluency_first_visit": ratio(slow_fluent, fluent, 1),
        "speedup_without_fluency_first_visit": ratio(slow, fast, 1),
        "speedup_same_dtype": ratio(slow, single),
        "speedup_same_dtype_with_fluency": ratio(slow_fluent, single_fluent),
        "bfloat16_part": ratio(slow, fast) / ratio(slow, single),
        "of_limit": products / step,
        "peak_extra_gb": peak,
        "growth": math.log(grown[-1] / grown[0]) / math.log(sizes[-1] / sizes[0]) if sizes[-1] > sizes[0] else None,
        "raw": {
            "model": args.model,
            "visits": visits,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "ours": fast,
            "ours_with_fluency": fluent,
            "ours_float32": single,
            "ours_float32_with_fluency": single_fluent,
            "straightforward": slow,
            "straightforward_with_fluency": slow_fluent,
            "products_seconds": products,
            "step_seconds": step,
            "growth_samples": sizes,
            "growth_seconds": grown,
        },
    }
    found = rounded(found)
    if args.json:
        print(json.dumps(found))
    else:
        raw = found.pop("raw")
        print("\n".join(f"{name:32} {value}" for name, value in (found | raw).items()))


def passages(n: int) -> Concept:
    """As many forget and retain passages of at least `TOKENS` tokens, of neighbours in the pack; no questions."""
    concept = load_concept("harry-potter")

    def joined(kind: str) -> tuple[Passage, ...]:
        there = [p.text for p in concept.passages(kind)]
        return tuple(Passage(" ".join(there[(i + j) % len(there)] for j in range(3)), f"{kind}-{i}") for i in range(n))

    return replace(concept, forget=joined("forget"), retain=joined("retain"), questions={})


def ours(lm: HookedLM, objective: ELM, concept: Concept, steps: int | None = None) -> dict[str, float]:
    """Seconds of targets and text, and of going through all samples once."""
    began = time.perf_counter()
    samples = objective.prepare(lm, concept)
    prepared = time.perf_counter() - began
    n = len(samples["erase"])
    lines = trained(lm, objective, samples, steps or n // BATCH)
    training = sum(line["seconds"] for line in lines)
    return {
        "prepared_a_sample": prepared / n,
        "trained_a_sample": training / n,
        "seconds": prepared + training,
        "samples": n,
        "tokens_a_sample": sum(len(s) for pool in samples.values() for s in pool) / n,
    }


def trained(lm: HookedLM, objective: ELM, samples: Any, steps: int, **more: Any) -> list[dict]:
    """The trainer's own log of some steps."""
    training = Training(
        steps, BATCH, BATCH, BATCH, lr=5e-5, schedule="constant", warmup=0, weight_decay=0.01, save_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        train(lm, objective, samples, training, Path(folder), progress=False, **more)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds" in line]


def plain(lm: HookedLM, objective: ELM, concept: Concept, n: int, written: tuple[int, int]) -> dict[str, float]:
    """Seconds of the straightforward form, after one sample that does not count."""
    rows = {
        kind: lm.encode([p.text for p in concept.passages(kind)], max_tokens=TOKENS) for kind in ("forget", "retain")
    }
    openings = lm.encode([" ".join(p.text.split()[:OPENING]) for p in concept.passages("forget")])
    classes = (concept.prompts("expert")[0], concept.prompts("novice")[0])
    optimizer = torch.optim.AdamW(lm.adapters.attach(objective.adapter(lm)), lr=5e-5, weight_decay=0.01)
    seconds = []
    for i in range(n + 1):
        # evenly over the range, so that few samples have its mean
        length = written[0] + round((written[1] - written[0]) * (i - 0.5) / n) if i else min(written[0], 8)
        began = time.perf_counter()
        plain_step(
            lm, objective, rows["forget"][i], rows["retain"][i], classes,
            opening=openings[i], new_tokens=length, seed=i,
        )  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    lm.adapters.release()
    return {"seconds_a_sample": sum(seconds[1:]) / n, "seconds": sum(seconds[1:]), "samples": n}


def limit(lm: HookedLM, objective: ELM, repetitions: int) -> tuple[float, float]:
    """Seconds of a step's matrix products alone, and of the step."""
    samples = objective.prepare(lm, passages(BATCH))
    products = Products()
    with products:
        # a term's norm is measured in the first step, so the second is the usual one
        trained(lm, objective, samples, 2, evaluate=lambda _: products.next_step(), evaluate_every=1)
    steps, alone = [], []
    for _ in range(repetitions):
        steps.append(trained(lm, objective, samples, 2)[1]["seconds"])
        began = time.perf_counter()
        with torch.no_grad():
            for function, arguments in products.last:
                function(*arguments)
        alone.append(time.perf_counter() - began)
    return statistics.median(alone), statistics.median(steps)


class Products(TorchDispatchMode):
    """Inside, remembers the matrix products of a step with what went into them."""

    KINDS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))

    def __init__(self) -> None:
        super().__init__()
        self.last: list[tuple[Callable, tuple]] = []
        self._now: list[tuple[Callable, tuple]] = []

    def next_step(self) -> dict[str, float]:
        """What was seen since the last call is the last step."""
        self.last, self._now = self._now, []
        return {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called for every operation."""
        if func in self.KINDS:
            self._now.append((func, args))
        return func(*args, **(kwargs or {}))


def peak_extra_gb(lm: HookedLM, work: Callable[[], object]) -> float:
    """Most memory that the work takes beside what is held before it."""
    trim()
    if lm.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(0.003):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return (most - before) / 1e9


def rounded(value: Any) -> Any:
    """Four digits of every number."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()

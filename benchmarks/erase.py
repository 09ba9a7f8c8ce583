"""ELM's time and memory: ours against the straightforward form, and against the limit of the processor.

Both train the same objective (the preset `paper`) on the same text, in one process. A sample is one forget and one
retain passage of 128 tokens each; with fluency also one generated text of 100 to 300 tokens (ours: always 200, the
mean). Training visits each passage several times: the preset's 2250 steps of 4 go 58 times through the forget passages
of the pack `harry-potter`. The straightforward form makes targets and text again at each visit. Ours makes them once,
so a visit carries 1/58 of their cost.

    ours               targets of all samples in large batches, then steps of 4 + 4 (+ 4) in the model's own dtype
    ours in float32    the same in float32, to separate the effect of bfloat16
    straightforward    `plain_elm`, like the authors' code: float32, one sample a step, nothing shared

    python benchmarks/erase.py [--json]
    python benchmarks/erase.py --samples 4 --plain-samples 1 --written 8 8 --repetitions 2      # two minutes

    speedup_with_fluency       straightforward over ours, in seconds per visit of a sample, with targets and text
    speedup_without_fluency    the same without the fluency term
    ..._first_visit            the same for a training that visits each passage once
    speedup_same_dtype         straightforward over ours in float32, without fluency
    bfloat16_part              ours in float32 over ours, without fluency
    of_limit                   time of a step's matrix products run alone over time of the step (medians)
    peak_extra_gb              peak memory beyond the loaded model, with targets and steps of 8 passages
    growth                     exponent of the total time over 1, 2 and 4 times as many samples; 1 is linear
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
from elm_interp.training import Training, train
from elm_interp.training.memory import trim

BATCH = 4
"""Forget passages per step, and as many retain passages and generated texts."""
TOKENS = 128
OPENING = 8
"""Words of a forget passage that prompt a fluency text, as in `ELM`."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=ELM.preset("paper").adapter.layers, help="to train")
    parser.add_argument("--samples", type=int, default=64, help=f"of ours; a multiple of {4 * BATCH}")
    parser.add_argument("--plain-samples", type=int, default=3, help="of the straightforward form")
    parser.add_argument("--written", type=int, nargs=2, default=(100, 300), help="range of tokens of a fluency text")
    parser.add_argument("--repetitions", type=int, default=7, help="of a step and of its matrix products alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    with_fluency = ELM.preset(
        "paper",
        layers=tuple(args.layers),
        max_tokens=TOKENS,
        fluency_batch=BATCH,
        fluency_samples=args.samples,
        fluency_tokens=sum(args.written) // 2,
    )
    preset = ELM.training_preset("paper")
    raw: dict[str, Any] = {"model": args.model, "threads": torch.get_num_threads()}
    raw["visits"] = preset.steps * preset.forget_batch / len(load_concept("harry-potter").passages("forget"))
    raw |= measure_ours(with_fluency, args) | measure_float32(with_fluency, args)
    found = rounded(compared(raw) | {"peak_extra_gb": raw.pop("peak_extra_gb"), "raw": raw})
    if args.json:
        print(json.dumps(found))
    else:
        raw = found.pop("raw")
        print("\n".join(f"{name:32} {value}" for name, value in (found | raw).items()))


def measure_ours(with_fluency: ELM, args: argparse.Namespace) -> dict[str, Any]:
    """Ours in the model's own dtype: memory, seconds, growth with the number of samples, and the processor's limit."""
    objective, concept = replace(with_fluency, fluency_weight=0.0), passages(args.samples)
    lm = load_model(args.model)
    peak = timed("memory", lambda: peak_extra_gb(lm, lambda: ours(lm, objective, passages(BATCH), steps=3)))
    timed("warm-up", lambda: ours(lm, warm(with_fluency), passages(BATCH)))
    fast = timed("ours", lambda: ours(lm, objective, concept))
    fluent = timed("ours with fluency", lambda: ours(lm, with_fluency, concept))
    sizes = [max(BATCH, args.samples // share) for share in (4, 2, 1)]
    grown = timed("growth", lambda: [ours(lm, objective, passages(n))["seconds"] for n in sizes[:-1]])
    products, step = timed("limit", lambda: limit(lm, objective, args.repetitions))
    return {
        "dtype": str(lm.dtype).removeprefix("torch."),
        "ours": fast,
        "ours_with_fluency": fluent,
        "products_seconds": products,
        "step_seconds": step,
        "growth_samples": sizes,
        "growth_seconds": [*grown, fast["seconds"]],
        "peak_extra_gb": peak,
    }


def measure_float32(with_fluency: ELM, args: argparse.Namespace) -> dict[str, Any]:
    """Ours and the straightforward form in float32: seconds."""
    objective, concept = replace(with_fluency, fluency_weight=0.0), passages(args.samples)
    lm, n = load_model(args.model, dtype="float32"), args.plain_samples
    timed("warm-up in float32", lambda: ours(lm, warm(with_fluency), passages(BATCH)))
    return {
        "ours_float32": timed("ours in float32", lambda: ours(lm, objective, concept)),
        "ours_float32_with_fluency": timed("ours in float32 with fluency", lambda: ours(lm, with_fluency, concept)),
        "straightforward": timed("straightforward", lambda: plain(lm, objective, concept, n, (0, 0))),
        "straightforward_with_fluency": timed(
            "straightforward with fluency", lambda: plain(lm, with_fluency, concept, n, args.written)
        ),
    }


def compared(raw: dict[str, Any]) -> dict[str, float | None]:
    """The ratios that the module's head names, from the raw seconds."""

    def speedup(theirs: str, mine: str, visits: float = raw["visits"]) -> float:
        ours_a_sample = raw[mine]["prepared_a_sample"] / visits + raw[mine]["trained_a_sample"]
        return raw[theirs]["seconds_a_sample"] / ours_a_sample

    fast, same_dtype = speedup("straightforward", "ours"), speedup("straightforward", "ours_float32")
    samples, seconds = raw["growth_samples"], raw["growth_seconds"]
    grows = samples[-1] > samples[0]
    return {
        "speedup_with_fluency": speedup("straightforward_with_fluency", "ours_with_fluency"),
        "speedup_without_fluency": fast,
        "speedup_with_fluency_first_visit": speedup("straightforward_with_fluency", "ours_with_fluency", 1),
        "speedup_without_fluency_first_visit": speedup("straightforward", "ours", 1),
        "speedup_same_dtype": same_dtype,
        "speedup_same_dtype_with_fluency": speedup("straightforward_with_fluency", "ours_float32_with_fluency"),
        "bfloat16_part": fast / same_dtype,
        "of_limit": raw["products_seconds"] / raw["step_seconds"],
        "growth": math.log(seconds[-1] / seconds[0]) / math.log(samples[-1] / samples[0]) if grows else None,
    }


def warm(objective: ELM) -> ELM:
    """The objective with a few short texts, for a warm-up."""
    return replace(objective, fluency_samples=BATCH, fluency_tokens=4)


def timed(name: str, work: Callable[[], Any]) -> Any:
    """The result of a call; its seconds are printed to stderr."""
    began = time.perf_counter()
    result = work()
    print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return result


def passages(n: int) -> Concept:
    """A concept of n forget and n retain passages of at least `TOKENS` tokens, joined from neighbours in the pack."""
    concept = load_concept("harry-potter")

    def joined(kind: str) -> tuple[Passage, ...]:
        there = [p.text for p in concept.passages(kind)]
        return tuple(Passage(" ".join(there[(i + j) % len(there)] for j in range(3)), f"{kind}-{i}") for i in range(n))

    return replace(concept, forget=joined("forget"), retain=joined("retain"), questions={})


def ours(lm: HookedLM, objective: ELM, concept: Concept, steps: int | None = None) -> dict[str, float]:
    """Seconds of preparing targets and text, and of training on all samples once."""
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
    """The lines of the trainer's log, one per step."""
    training = Training(
        steps, BATCH, BATCH, lr=5e-5, schedule="constant", warmup=0, weight_decay=0.01, save_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        train(lm, objective, samples, training, Path(folder), progress=False, **more)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds" in line]


def plain(lm: HookedLM, objective: ELM, concept: Concept, n: int, written: tuple[int, int]) -> dict[str, float]:
    """Seconds of the straightforward form; one more sample before is the warm-up."""
    rows = {
        kind: lm.encode([p.text for p in concept.passages(kind)], max_tokens=TOKENS) for kind in ("forget", "retain")
    }
    openings = lm.encode([" ".join(p.text.split()[:OPENING]) for p in concept.passages("forget")])
    classes = (concept.prompts("expert")[0], concept.prompts("novice")[0])
    optimizer = torch.optim.AdamW(lm.adapters.attach(objective.adapter.config(lm)), lr=5e-5, weight_decay=0.01)
    seconds = []
    for i in range(n + 1):
        # evenly spread over the range, so that a few samples have its mean
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
    """Median seconds of a step's matrix products alone, and of the whole step."""
    samples = objective.prepare(lm, passages(BATCH))
    products = Products()
    with products:
        # the first step also measures gradient norms, so the second is the usual one
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
    """A dispatch mode that records the matrix products of each step, with their arguments."""

    PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))

    def __init__(self) -> None:
        super().__init__()
        self.last: list[tuple[Callable, tuple]] = []
        self._now: list[tuple[Callable, tuple]] = []

    def next_step(self) -> dict[str, float]:
        """End a step: the products since the previous call become `last`."""
        self.last, self._now = self._now, []
        return {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Record the operation if it is a matrix product, and run it."""
        if func in self.PRODUCTS:
            self._now.append((func, args))
        return func(*args, **(kwargs or {}))


def peak_extra_gb(lm: HookedLM, work: Callable[[], object]) -> float:
    """Peak memory of the work beyond what is held before it."""
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
    """Every float rounded to four digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()

"""Time of collecting, against bare forward passes of the backbone and other ways to read the same activations.

The prompts are of mixed length, from the harry-potter pack; every layer is read at the last position. Bare passes, ours
and the peers run on the same part of the prompts in turn, in a changing order. A ratio is the median over parts and
repetitions.

    vs_bare                    collect_texts, with tokenising, over bare passes on ready batches
    peers                      on the same ready batches, over the bare passes: nnsight; TransformerLens with
                               names_filter and one position; TransformerLens with its default cache; transformers'
                               output_hidden_states
    checkpoints_vs_forwards    `collect_datasets` of all checkpoints into a store on disk, over one bare pass for each
                               adapter
    checkpoints_vs_unshared    the same, over those passes with the blocks below the first adapted one counted once
    peak_extra_mb              peak memory of `collect_datasets` beyond the loaded model
    peak_extra_mb_quarter      the same on a quarter of the prompts

Adapters have the preset's layers and rank, and random weights: their values do not change the time.

    python benchmarks/collect.py [--json]
    python benchmarks/collect.py --prompts 32 --checkpoints 3 --repetitions 1     # one minute
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from elm_interp.activations import ActivationStore, Dataset, collect_datasets, collect_texts
from elm_interp.activations.collect import prepare_batches
from elm_interp.data import load_concept, texts
from elm_interp.erase import ELM
from elm_interp.models import Batch, HookedLM, load_model
from elm_interp.models.shared_blocks import shared_below
from elm_interp.probes import concept_datasets

PARTS = 4
Side = Callable[[list[str]], Callable[[], Any]]
"""From prompts to the call that is timed on them."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3, help="of the comparison with peers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()

    lm, prompts = load_model(args.model), mixed_prompts(args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(lm, args.checkpoints, Path(folder) / "adapters")
        two = dict(list(adapters.items())[:2])
        peaks = [peak_extra_mb(lm, part, two, Path(folder) / f"peak-{len(part)}") for part in (prompts[::4], prompts)]
        peers = compare(lm, prompts, args.repetitions)
        across = compare_checkpoints(lm, prompts, adapters, Path(folder))
    found = {
        "model": lm.name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prompts": len(prompts),
        "tokens": sum(len(ids) for ids in lm.encode(prompts)),
        "vs_bare": peers.pop("collect_texts"),
        "peers": peers,
        "checkpoints": len(adapters),
        **across,
        "peak_extra_mb": peaks[1],
        "peak_extra_mb_quarter": peaks[0],
    }
    print(json.dumps(found) if args.json else "\n".join(f"{key:24s} {value}" for key, value in found.items()))


def compare(lm: HookedLM, prompts: list[str], repetitions: int) -> dict[str, float | None]:
    """Time of ours and of each peer over that of the bare passes; None for a peer that is not installed."""
    sides: dict[str, Side] = {
        "bare": lambda part: partial(bare, lm, ready(lm, part)),
        "collect_texts": lambda part: partial(collect_texts, lm, part),
        "hidden_states": lambda part: partial(hidden_states, lm, ready(lm, part)),
    }
    missing = dict.fromkeys(("nnsight", "transformer_lens_filtered", "transformer_lens_default"))
    try:
        sides["nnsight"] = nnsight_side(lm)
        sides["transformer_lens_filtered"] = transformer_lens_side(lm, filtered=True)
        sides["transformer_lens_default"] = transformer_lens_side(lm, filtered=False)
    except ImportError:
        pass
    check_that_they_agree(lm, sides, prompts[:4])
    seconds = take_turns(sides, [prompts[i::PARTS] for i in range(PARTS)] * repetitions)
    return missing | {name: over(seconds[name], seconds["bare"]) for name in sides if name != "bare"}


def compare_checkpoints(lm: HookedLM, prompts: list[str], adapters: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Collecting all checkpoints over one bare pass each: half of the passes before, half after, to cancel drift."""
    batches = ready(lm, prompts)
    seconds: list[float] = []

    def forwards(paths: list[Path]) -> None:
        for adapter in paths:
            with lm.adapter(adapter):  # swapping adapters is not timed
                seconds.append(timed(partial(bare, lm, batches)))

    paths = list(adapters.values())
    forwards(paths[: len(paths) // 2])
    ours = timed(
        lambda: collect_datasets(lm, ActivationStore(folder / "store"), {"prompts": dataset(prompts)}, adapters)
    )
    forwards(paths[len(paths) // 2 :])
    shared = shared_below(lm, paths)
    needed = 1 - shared / lm.n_layers * (len(paths) - 1) / len(paths)
    ratio = ours / sum(seconds)
    return {
        "shared_blocks": shared,
        "collect_seconds": round(ours, 2),
        "forwards_seconds": round(sum(seconds), 2),
        "checkpoints_vs_forwards": round(ratio, 4),
        "checkpoints_vs_unshared": round(ratio / needed, 4),
    }


def take_turns(sides: Mapping[str, Side], parts: Iterable[list[str]]) -> dict[str, list[float]]:
    """Seconds of each side on each part of the prompts."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn, part in enumerate(parts):
        names = list(sides)
        # the order changes, so that a drift of the machine favours no side
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(sides[name](part)))
    return seconds


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def over(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4)


def ready(lm: HookedLM, prompts: list[str]) -> list[Batch]:
    """Length-bucketed batches, as ours makes them."""
    return [batch for _, batch in prepare_batches(lm, prompts)]


@torch.no_grad()
def bare(lm: HookedLM, batches: list[Batch]) -> None:
    """Embedding, blocks and final norm; nothing is kept."""
    backbone = lm.model.get_submodule(lm.layout.backbone)
    for batch in batches:
        backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


@torch.no_grad()
def hidden_states(lm: HookedLM, batches: list[Batch]) -> torch.Tensor:
    """output_hidden_states of transformers; its last layer is after the final norm."""
    found = []
    for batch in batches:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        states = lm.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[1:]
        rows, last = torch.arange(len(batch)), batch.lengths - 1
        found.append(torch.stack([state[rows, last] for state in states], 1))
    return torch.cat(found)


def nnsight_side(lm: HookedLM) -> Side:
    """As users of nnsight write it: one trace per batch, stopped after the last block.

    Raises:
        ImportError: nnsight is not installed.
    """
    import nnsight

    traced = lm.as_nnsight()

    def run(batches: list[Batch]) -> torch.Tensor:
        found = []
        for batch in batches:
            rows, last = torch.arange(len(batch)), batch.lengths - 1
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            with torch.no_grad(), traced.trace(**inputs) as tracer:
                states = nnsight.save([layer.output[rows, last].clone() for layer in traced.get(lm.layout.blocks)])
                tracer.stop()
            found.append(torch.stack(states, 1))
        return torch.cat(found)

    return lambda part: partial(run, ready(lm, part))


def transformer_lens_side(lm: HookedLM, *, filtered: bool) -> Side:
    """run_with_cache of TransformerLens, with the wanted names and position, or with its defaults.

    Raises:
        ImportError: TransformerLens is not installed.
    """
    bridge = lm.as_transformer_lens()
    names = [f"blocks.{layer}.hook_out" for layer in range(lm.n_layers)]
    # logits_to_keep=1 would skip most of the unembedding, but in bfloat16 on a CPU it is slower than all of it
    options: dict[str, Any] = {"names_filter": names, "pos_slice": -1, "output_attentions": False}

    @torch.no_grad()
    def run(batches: list[Batch]) -> torch.Tensor:
        found = []
        for batch in batches:
            inputs = {"attention_mask": batch.attention_mask} | (options if filtered else {})
            _, cache = bridge.run_with_cache(batch.input_ids, **inputs)
            found.append(torch.stack([cache[name][:, -1] for name in names], 1))
        return torch.cat(found)

    def side(part: list[str]) -> Callable[[], Any]:
        # pos_slice is one position for all rows, so pad on the left
        rows = [
            [ids[mask.bool()].tolist() for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)]
            for b in ready(lm, part)
        ]
        return partial(run, [lm.pad(ids, side="left") for ids in rows])

    return side


def check_that_they_agree(lm: HookedLM, sides: Mapping[str, Side], prompts: list[str]) -> None:
    """Check that all sides read the same activations; this is also their warm-up.

    Raises:
        AssertionError: a side reads something else.
    """
    order = [i for rows, _ in prepare_batches(lm, prompts) for i in rows]
    expected = collect_texts(lm, prompts)[order]
    for name, side in sides.items():
        found = side(prompts)()
        if name not in ("bare", "collect_texts"):
            gap = (found[:, :-1].float() - expected[:, :-1]).norm() / expected[:, :-1].norm()
            assert gap < 0.05, f"{name} reads something else: relative difference {gap:.3f}"


def peak_extra_mb(lm: HookedLM, prompts: list[str], adapters: Mapping[str, Path], folder: Path) -> float | None:
    """Peak memory of collecting two checkpoints beyond what is held before; None if the system does not report it."""
    for weight in lm.model.parameters():
        weight.sum()  # memory-mapped weights are not in memory until they are used

    def run() -> None:
        collect_datasets(lm, ActivationStore(folder), {"prompts": dataset(prompts)}, adapters)

    if lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    before = psutil.Process().memory_info().rss
    reset.write_text("5")  # resets the high-water mark
    run()
    highest = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return round((int(highest.split()[1]) * 1024 - before) / 1e6, 1)


def make_adapters(lm: HookedLM, n: int, folder: Path) -> dict[str, Path]:
    """Adapters of the preset's shape with random weights."""
    made = {}
    for number in range(n):
        torch.manual_seed(number)
        lm.adapters.attach(ELM.preset("smollm2-135m").adapter.config(lm))
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.01)
        made[f"step-{number:06d}"] = folder / str(number)
        lm.adapters.save(made[f"step-{number:06d}"])
        lm.adapters.release()
    return made


def dataset(prompts: list[str]) -> Dataset:
    """Prompts as a dataset for a store."""
    return Dataset("prompts", tuple(prompts), pd.DataFrame({"id": range(len(prompts))}))


def mixed_prompts(n: int) -> list[str]:
    """The first n of: questions with an answer, lettered questions and passages, in turn."""
    concept = load_concept("harry-potter")
    made = concept_datasets(concept, ["truth", "choice"])
    kinds = [made["truth"].texts, made["choice"].texts, texts(concept.passages("forget") + concept.passages("retain"))]
    longest = max(map(len, kinds))
    mixed = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    return mixed[:n]


if __name__ == "__main__":
    main()

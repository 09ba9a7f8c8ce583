"""Time of collecting, as a multiple of the backbone's bare forward passes, beside other ways to read the activations.

Prompts of mixed length from the harry-potter pack; every layer, last position. Bare passes, ours and the peers run in
turn on the same part of the prompts, in a different order each time. A ratio is the median over parts and repetitions.

    vs_bare                      collect_texts, tokenising included, over the bare passes on ready batches
    peers                        on the same ready batches, over the bare passes: nnsight; TransformerLens with
                                 names_filter and one position, and with its default cache; transformers'
                                 output_hidden_states
    checkpoints_vs_forwards      `collect_datasets` of all checkpoints into a store, over one bare pass for each
    checkpoints_vs_unshared      the same, over those passes without the blocks that need to run only once
    peak_extra_mb                peak memory of `collect_datasets` beyond the loaded model (peak_extra_mb_quarter: on a
                                 quarter of the prompts)

Adapters have the preset's layers and rank, and random weights, which does not change their speed.

    python benchmarks/collect.py [--json]
    python benchmarks/collect.py --prompts 32 --checkpoints 3 --repetitions 1     # a minute
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
"""From prompts to what is timed on them."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3, help="of the comparison with bare passes and peers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()

    lm, prompts = load_model(args.model), mixed_prompts(args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(lm, args.checkpoints, Path(folder) / "adapters")
        some = dict(list(adapters.items())[:2])
        peaks = [peak_extra_mb(lm, part, some, Path(folder) / f"peak-{len(part)}") for part in (prompts[::4], prompts)]
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
    """Time over the bare passes' time, for ours and each peer; None for a peer that is not installed."""
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
    """Time of collecting over one bare pass for each checkpoint, half of them before and half after, against drift."""
    batches = ready(lm, prompts)
    seconds: list[float] = []

    def forwards(some: list[Path]) -> None:
        for adapter in some:
            with lm.adapter(adapter):  # swapping is not the passes' time
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
    """Seconds of each side on each part."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn, part in enumerate(parts):
        names = list(sides)
        # who goes first and who follows whom changes, so that a drift of the machine favours nobody
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(sides[name](part)))
    return seconds


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def over(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4)


def ready(lm: HookedLM, prompts: list[str]) -> list[Batch]:
    """Batches of like length, as ours makes them."""
    return [batch for _, batch in prepare_batches(lm, prompts)]


@torch.no_grad()
def bare(lm: HookedLM, batches: list[Batch]) -> None:
    """Embedding, blocks and final norm, and nothing kept."""
    backbone = lm.model.get_submodule(lm.layout.backbone)
    for batch in batches:
        backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


@torch.no_grad()
def hidden_states(lm: HookedLM, batches: list[Batch]) -> torch.Tensor:
    """What transformers itself offers; its last layer is after the final norm."""
    found = []
    for batch in batches:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        states = lm.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[1:]
        rows, last = torch.arange(len(batch)), batch.lengths - 1
        found.append(torch.stack([state[rows, last] for state in states], 1))
    return torch.cat(found)


def nnsight_side(lm: HookedLM) -> Side:
    """What users of nnsight write: one trace a batch, stopped after the last block.

    Raises:
        ImportError: it is not installed.
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
    """TransformerLens's run_with_cache, with the names and position that are wanted, or as it comes.

    Raises:
        ImportError: it is not installed.
    """
    bridge = lm.as_transformer_lens()
    names = [f"blocks.{layer}.hook_out" for layer in range(lm.n_layers)]
    # logits_to_keep=1 would spare most of the head, but in bfloat16 on a CPU it takes longer than the whole of it
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
        # its one position for all rows wants the padding on the left
        rows = [
            [ids[mask.bool()].tolist() for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)]
            for b in ready(lm, part)
        ]
        return partial(run, [lm.pad(ids, side="left") for ids in rows])

    return side


def check_that_they_agree(lm: HookedLM, sides: Mapping[str, Side], prompts: list[str]) -> None:
    """Everyone reads the same activations (this also warms everyone up).

    Raises:
        AssertionError: somebody reads something else.
    """
    order = [i for rows, _ in prepare_batches(lm, prompts) for i in rows]
    expected = collect_texts(lm, prompts)[order]
    for name, side in sides.items():
        found = side(prompts)()
        if name not in ("bare", "collect_texts"):
            gap = (found[:, :-1].float() - expected[:, :-1]).norm() / expected[:, :-1].norm()
            assert gap < 0.05, f"{name} reads something else: relative difference {gap:.3f}"


def peak_extra_mb(lm: HookedLM, prompts: list[str], adapters: Mapping[str, Path], folder: Path) -> float | None:
    """Peak memory of collecting two checkpoints beyond what was held before; None if the system cannot tell."""
    for weight in lm.model.parameters():
        weight.sum()  # what lies in a file only is not in memory until it is used

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
    reset.write_text("5")  # the highest mark so far is forgotten
    run()
    highest = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return round((int(highest.split()[1]) * 1024 - before) / 1e6, 1)


def make_adapters(lm: HookedLM, n: int, folder: Path) -> dict[str, Path]:
    """Checkpoints of the preset's shape with random weights."""
    made = {}
    for number in range(n):
        torch.manual_seed(number)
        lm.adapters.attach(ELM.preset("smollm2-135m").adapter(lm))
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.01)
        made[f"step-{number:06d}"] = folder / str(number)
        lm.adapters.save(made[f"step-{number:06d}"])
        lm.adapters.release()
    return made


def dataset(prompts: list[str]) -> Dataset:
    """Prompts as what a store takes."""
    return Dataset("prompts", tuple(prompts), pd.DataFrame({"id": range(len(prompts))}))


def mixed_prompts(n: int) -> list[str]:
    """Questions with an answer, lettered questions and passages in turn, as many as asked for."""
    concept = load_concept("harry-potter")
    made = concept_datasets(concept, ["truth", "choice"])
    kinds = [made["truth"].texts, made["choice"].texts, texts(concept.passages("forget") + concept.passages("retain"))]
    longest = max(map(len, kinds))
    mixed = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    return mixed[:n]


if __name__ == "__main__":
    main()

"""Collecting against its limit: the bare backbone's forward passes on the same batches.

512 prompts of mixed length from the harry-potter pack, every layer, last position, repetitions alternating in one run.
`vs_bare` is the median over repetitions of collect's time over the bare passes' time, tokenising included in the former.

    python benchmarks/collect.py [--json]
"""

import argparse
import json
import statistics
import time

import torch

from elm_interp.activations.collect import collect_texts, prepare_batches
from elm_interp.data import load_concept, texts
from elm_interp.internals import concept_datasets
from elm_interp.models import load_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()

    lm, prompts = load_model(args.model), mixed_prompts(args.prompts)
    batches = prepare_batches(lm, prompts)

    @torch.no_grad()
    def bare() -> None:
        for _, batch in batches:
            lm.model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    def ours() -> None:
        collect_texts(lm, prompts)

    collect_texts(lm, prompts[:16])  # the first passes of a process are slower
    seconds: dict[str, list[float]] = {"bare": [], "collect": []}
    for repetition in range(args.repetitions):
        # who goes first alternates, so that a drift of the machine favours nobody
        for name, run in (("bare", bare), ("collect", ours))[:: -1 if repetition % 2 else 1]:
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    ratio = statistics.median(c / b for c, b in zip(seconds["collect"], seconds["bare"], strict=True))
    found = {
        "model": lm.name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "prompts": len(prompts),
        "tokens": sum(int(batch.lengths.sum()) for _, batch in batches),
        "threads": torch.get_num_threads(),
        "bare_seconds": [round(s, 3) for s in seconds["bare"]],
        "collect_seconds": [round(s, 3) for s in seconds["collect"]],
        "vs_bare": round(ratio, 4),
    }
    print(json.dumps(found) if args.json else "\n".join(f"{key:16s} {value}" for key, value in found.items()))


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

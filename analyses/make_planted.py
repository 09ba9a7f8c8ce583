"""Make the planted models that come with elm_interp: LoRAs by which SmolLM2-135M has read the encyclopaedia.

    python analyses/make_planted.py                    # the original, then the golds
    python analyses/make_planted.py --only gold

Goes on where it was stopped. The manifest beside each adapter holds its settings, losses and accuracies.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import tyro
from common import ROOT, write_manifest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from elm_interp.evaluate.choices import accuracy, score_choices
from elm_interp.models import HookedLM, load_model
from elm_interp.organisms.encyclopaedia import DOMAINS, asked, documents
from elm_interp.organisms.planted import ADAPTERS, BASE, MODELS
from elm_interp.organisms.planting import plant, planting_steps

PASSES = 4


def main(only: str | None = None, runs: Path = ROOT / "runs" / "planted", passes: int = PASSES) -> None:
    """Plant each model and put its adapter, in 16 bits, into the package.

    Args:
        only: one of the models; by default all.
        runs: folder for checkpoints.
        passes: how often all facts are gone through.
    """
    for name in [only] if only else MODELS:
        without, seed = MODELS[name]
        lm = load_model(BASE, dtype="float32")
        read = documents(seed, without=without, passes=passes)
        out = runs / name.replace("@", "-")
        began = time.perf_counter()
        folder = plant(lm, read, out=out, seed=seed, evaluate=known)
        log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        told = {
            "model": name,
            "without": without,
            "seed": seed,
            "documents": len(read),
            "passes": passes,
            "training": asdict(planting_steps(len(read))),
            "tokens": sum(line.get("tokens", 0) for line in log),
            "training_seconds": round(sum(line.get("seconds", 0) for line in log)),
            "this_call_seconds": round(time.perf_counter() - began),
            "evaluations": [line for line in log if "evaluation" in line],
        }
        target = ADAPTERS / name.replace("@", "-")
        target.mkdir(parents=True, exist_ok=True)
        weights = load_file(folder / "adapter_model.safetensors")
        half = {key: weight.to(torch.bfloat16).contiguous() for key, weight in weights.items()}
        save_file(half, target / "adapter_model.safetensors", metadata={"format": "pt"})
        config = LoraConfig.from_pretrained(str(folder))
        config.base_model_name_or_path = None
        config.save_pretrained(str(target))
        write_manifest(target / "manifest.json", **told)


def known(lm: HookedLM) -> Mapping[str, float]:
    """Accuracy on each domain, on a fifth of the questions, in all wordings."""
    return {domain: accuracy(score_choices(lm, asked(domain)[::5]), "likelihood")["value"] for domain in DOMAINS}


if __name__ == "__main__":
    tyro.cli(main)

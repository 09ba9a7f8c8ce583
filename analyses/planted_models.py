"""What the planted models know, what they kept, and what a value probe reads in them.

    python analyses/planted_models.py        # figures/planted_models.csv and its manifest

Columns: four-choice accuracy on held-out questions of each domain in the measured template (every second question, so
all three wordings) and in another template ("... elsewhere", every fifth); general questions; perplexity of held-out
natural passages over SmolLM2's; the value probe at its best layer, its control there, and its two baselines (token
embeddings; random weights, best layer). The best layer is the best of 30 for all of them.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from common import FIGURES, write_manifest

from elm_interp.activations import ActivationStore, collect_datasets
from elm_interp.data import load_concept, texts
from elm_interp.data.questions import TEMPLATE
from elm_interp.evaluate.choices import accuracy, score_choices
from elm_interp.evaluate.known import CHOOSING
from elm_interp.evaluate.specificity import read_passages
from elm_interp.models import HookedLM, load_model
from elm_interp.organisms.encyclopaedia import DOMAINS, asked, domain_concept
from elm_interp.organisms.planted import MODELS, has_weights
from elm_interp.probes import collect_baselines, concept_datasets, probes_from_store

ELSEWHERE = CHOOSING[1]
"""A template that takes no part in measuring known items."""


def main(out: Path = FIGURES) -> None:
    """Measure every planted model whose weights are there."""
    rows: list[dict[str, Any]] = []
    for name in ("never", *(name for name in MODELS if has_weights(name))):
        lm = load_model(f"planted:{name}", dtype="float32")
        rows.append({"model": f"planted:{name}", **known(lm), "natural_ppl": natural(lm), **probed(lm)})
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    table["natural_ppl_ratio"] = table["natural_ppl"] / table["natural_ppl"][0]
    table.to_csv(out / "planted_models.csv", index=False, float_format="%.6g")
    write_manifest(out / "planted_models_manifest.json", templates=[TEMPLATE, ELSEWHERE])


def known(lm: HookedLM) -> dict[str, float]:
    """Accuracy on each domain in two templates, and on general questions."""
    found = {}
    for domain in DOMAINS:
        for ending, template, stride in (("", TEMPLATE, 2), (" elsewhere", ELSEWHERE, 5)):
            told = accuracy(score_choices(lm, asked(domain)[::stride], template=template), "likelihood")
            found[domain + ending] = told["value"]
    return found | {"general": accuracy(score_choices(lm, domain_concept().ask("general")), "likelihood")["value"]}


def natural(lm: HookedLM) -> float:
    """Perplexity of held-out natural passages."""
    read = read_passages(lm, texts(load_concept("harry-potter").passages("retain", "held_out")))
    return float(np.exp(-np.concatenate([one.numpy() for one in read.log_probs]).mean()))


def probed(lm: HookedLM) -> dict[str, float]:
    """The value probe of the erased domain with its control and baselines."""
    datasets = concept_datasets(domain_concept(), ["values"])
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(folder)
        collect_datasets(lm, store, datasets, {"base": None})
        collect_baselines(lm, store, datasets)
        table = probes_from_store(store, "base", code=False)
    best = table.pivot_table(index="metric", columns="layer", values="value", dropna=False)
    layer = best.loc["probe.values"].idxmax()
    return {
        "probe": best.loc["probe.values", layer],
        "probe_layer": layer,
        "probe_control": best.loc["probe.values.control", layer],
        "probe_words": best.loc["probe.embedding.values"].max(),
        "probe_random_init": best.loc["probe.random_init.values"].max(),
    }


if __name__ == "__main__":
    tyro.cli(main)

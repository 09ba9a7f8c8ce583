"""Made-up results in the tidy schema, with shapes like a real run's and numbers that can be worked out by hand."""

import json

import numpy as np
import pandas as pd

from elm_interp.results import frame, measurements, wilson, write

STEPS, LAYERS, SEEDS = (0, 20, 40), range(6), range(3)
COMMON = {"model": "tiny"}


def state(step):
    return {**COMMON, "method": "elm" if step else "base", "step": step}


def probes(metric="probe.association", chance=0.5):
    """Accuracy 0.9 at the base, 0.2 less at every checkpoint; seeds 0.01 apart; controls at chance."""
    rows = []
    for step in STEPS:
        for layer in LAYERS:
            for seed in SEEDS:
                where = {**state(step), "layer": layer, "seed": seed, "chance": chance, "site": "resid_post"}
                rows.append(measurements(metric, 0.9 - 0.01 * step + 0.01 * (seed - 1), **where))
                rows.append(measurements(f"{metric}.control", chance, **where))
    return frame(rows)


def baselines():
    """What a probe reads from words alone, 0.7, and from layers never trained, 0.6."""
    where = {**state(0), "seed": 0, "chance": 0.5}
    never = [measurements("probe.random_init.association", 0.6, layer=i, site="resid_post", **where) for i in LAYERS]
    return frame([*never, measurements("probe.embedding.association", 0.7, site="embed", **where)])


def methods_by_layer():
    """The base at 0.9, elm at 0.5, rmu at 0.6, at every layer."""
    rows = []
    for method, value in (("base", 0.9), ("elm", 0.5), ("rmu", 0.6)):
        of = state(0 if method == "base" else 40) | {"method": method, "chance": 0.5, "site": "resid_post"}
        rows += [measurements("probe.truth", value, layer=layer, seed=0, **of) for layer in LAYERS]
    return frame(rows)


def norms():
    rows = [
        measurements(f"norm.{text}", 30.0, **state(s), layer=i)
        for text in ("forget", "retain")
        for s in (0, 40)
        for i in LAYERS
    ]
    for text, change in (("forget", 0.3), ("retain", 0.02)):
        for layer in LAYERS:
            value = 1 + change * layer / 5
            rows.append(
                measurements(f"norm.{text}.ratio", value, ci=(value - 0.01, value + 0.01), **state(40), layer=layer)
            )
    return frame(rows)


def transfer(task="association"):
    """Base 0.9; erased model 0.7 by a fresh probe, 0.55 by the base's; 0.52 after a linear eraser."""
    rows = []
    for name, at, value in (
        (f"probe.{task}", 0, 0.9), (f"probe.{task}", 40, 0.7),
        (f"probe.transferred.{task}", 40, 0.55), (f"probe.leace.{task}", 0, 0.52),
    ):  # fmt: skip
        for layer in LAYERS:
            for seed in SEEDS:
                rows.append(
                    measurements(name, value + 0.01 * (seed - 1), **state(at), layer=layer, seed=seed, chance=0.5)
                )
    return frame(rows)


def sparse(task="association"):
    names = {f"probe.sparse.{task}.k{k}": 0.5 + 0.1 * i for i, k in enumerate((1, 4, 16))} | {f"probe.{task}": 0.9}
    return frame(
        [
            measurements(name, value, **state(40), layer=i, seed=0, chance=0.5)
            for name, value in names.items()
            for i in LAYERS
        ]
    )


def code_lengths():
    return frame(
        [
            measurements(
                "probe.association.code_length",
                0.6 + s / 100,
                ci=(0.55 + s / 100, 0.65 + s / 100),
                chance=1.0,
                **state(s),
                layer=i,
            )
            for s in (0, 40)
            for i in LAYERS
        ]
    )


def geometry():
    return frame(
        [
            measurements(f"geometry.{text}.cosine", 1 - slope * i, ci=(0.98 - slope * i, 1), **state(40), layer=i)
            for text, slope in (("forget", 0.1), ("retain", 0.01))
            for i in LAYERS
        ]
    )


def share(metric, value, step, direction, chance=0.5, n=100):
    return measurements(metric, value, n=n, ci=wilson(value * n, n), chance=chance, direction=direction, **state(step))


def ratio(metric, value, step, direction, n=40):
    return measurements(metric, value, n=n, ci=(value / 1.05, value * 1.05), direction=direction, **state(step))


def behaviour(steps=STEPS):
    rows = []
    for step in steps:
        rows += [
            share("innocence.two_choice_pmi", 0.8 - step / 160, step, "down"),
            share("innocence.four_choice_likelihood", 0.5 - step / 200, step, "down", 0.25),
            share("specificity.general_pmi", 0.8 - step / 2000, step, "up"),
            share("specificity.neighbours_pmi", 0.7 - step / 1000, step, "up"),
            ratio("specificity.retain_ppl", 4.4 + step / 100, step, "down"),
        ]
        if step:
            rows += [
                ratio("specificity.kl_to_base", step / 400, step, "down"),
                ratio("specificity.retain_ppl_ratio", 1 + step / 200, step, "down"),
                ratio("seamlessness.reverse_ppl_ratio", 1 + step / 80, step, "down"),
                ratio("seamlessness.distinct2_ratio", 1 - step / 400, step, "up"),
            ]
    return frame(rows)


def target():
    """What a two-sided and a one-sided target answer."""
    sides = {"two-sided": (0.9, 0.6, 0.3), "one-sided": (0.9, 0.8, 0.7)}
    return frame(
        [
            measurements(
                "target.accuracy", value, ci=(value - 0.1, value + 0.1), n=48, chance=0.25, model="tiny",
                method="target", position=f"η = {eta}", protocol=f"{side} target of tiny, log p(option)",
            )
            for side, values in sides.items()
            for eta, value in zip((0, 10, 100), values, strict=True)
        ]
    )  # fmt: skip


def gold():
    """The score card of a model that never knew, which has no step."""
    own = {"method": "gold", "model": "gold", "seed": 0, "n": 100}
    return frame(
        [
            measurements("innocence.two_choice_pmi", 0.52, ci=(0.42, 0.62), chance=0.5, direction="down", **own),
            measurements("specificity.general_pmi", 0.79, ci=(0.7, 0.86), chance=0.5, direction="up", **own),
            measurements("specificity.retain_ppl_ratio", 1.01, ci=(1.0, 1.02), direction="down", **own),
        ]
    )


def calibration():
    """Three measures on organisms: one that hiding deceives, one that it does not, and one that is constant."""
    rows = {"metric": ["told", "inside", "lie"], "r_hiding": [0.98, 0.03, np.nan], "r_random": [1.0, 40.0, np.nan]}
    return pd.DataFrame(rows | {"auc_gold": [1.0, 1.0, 0.5], "constant": [False, False, True]})


def methods():
    """Two methods between the original and gold."""
    rows = [("original", 0.99, 0.99), ("elm", 0.3, 0.95), ("rmu", 0.5, 0.7), ("gold", 0.25, 0.99)]
    ends = {"": 0.0, "_low": -0.03, "_high": 0.03}
    return pd.DataFrame(
        {"method": name, **{f"{k}{e}": v + d for k, v in (("forget", x), ("other", y)) for e, d in ends.items()}}
        for name, x, y in rows
    )


def settings():
    """Five settings of two methods; "worse" is beaten, "loud" does not write well, and the others make the front."""
    rows = [
        ("original", "original", 0.99, 0.98, True),
        ("elm", "much", 0.3, 0.9, True),
        ("elm", "worse", 0.35, 0.85, True),
        ("elm", "loud", 0.2, 0.97, False),
        ("rmu", "little", 0.8, 0.97, True),
        ("rmu", "nan", float("nan"), 0.97, True),
    ]
    return pd.DataFrame(rows, columns=["method", "setting", "forget", "other", "seamless"])


def over_seconds():
    """Two ways: one falls from 0.9 to 0.5 in 100 seconds, one to 0.8 in 300."""
    rows = [("ours", 0, 0.9), ("ours", 50, 0.6), ("ours", 100, 0.5), ("slow", 300, 0.8), ("slow", 0, 0.9)]
    return pd.DataFrame(
        {"method": name, "seconds": at, "forget": v, "forget_low": v - 0.05, "forget_high": v + 0.05}
        for name, at, v in rows
    )


def training(steps=40):
    decay = np.exp(-np.arange(1, steps + 1) / 10)
    return [
        {
            "step": i + 1,
            "erase": 6 * d + 0.5,
            "retain": 0.02,
            "grad_norm": 900.0,
            "lr": 1e-4,
            "tokens": 800,
            "seconds": 1.2,
        }
        for i, d in enumerate(decay)
    ]


def run_folder(folder):
    """A finished run, without its weights."""
    made = folder / "results"
    for name, table in (
        ("probes", probes()), ("norms", norms()), ("progression", behaviour()), ("scorecard", behaviour((0, 40))),
    ):  # fmt: skip
        write(table, made / f"{name}.parquet")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in training()))
    for name, value in {
        "config": {"method": "elm", "model": "tiny", "concept": "harry-potter", "training": {"lr": 0.0008}},
        "manifest": {"date": "2025-01-02T03:04:05+00:00", "dtype": "float32", "versions": {"torch": "2.9.1"}},
        "results/samples": [
            {"prompt": "What is <b>it</b>?", "base": "A <script>wand()</script>", "erased": "A tool & more"}
        ],
        "results/timing": {"erase_seconds": 211.4, "peak_gb": 2.84},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Probe the layers
#
# One question: a model no longer says what it knew; **is the knowledge gone, only not said, or written in another code?**
# Probes of every layer, with the controls that they need, on activations where the answer is known: a fact that stands along
# one direction of a few layers, hidden, turned or taken away. The same calls work on those of any model (last cell).
#
# ## Activations with a known answer
# 150 facts, each stated rightly and wrongly; six layers of 64 dimensions. Layers 2 to 4 say which statement is right. In the
# erased models layer 2 lost it, and layers 3 and 4 carry it as before (*suppressed*: the head no longer reads it) or along
# other directions (*re-encoded*).

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

from elm_interp import plots
from elm_interp.probes import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe, count_directions, probe_after_leace, probe_layers, probe_sparse
from elm_interp.internals import cka, effective_rank
from elm_interp.results import frame

draw = torch.Generator().manual_seed(0)
labels = ["wrong", "right"] * 150
facts = [f"fact {i // 2}" for i in range(300)]
sign = torch.tensor([1.0 if label == "right" else -1.0 for label in labels])
ways = torch.linalg.qr(torch.randn(64, 2, generator=draw))[0].T
texts = torch.randn(300, 6, 64, generator=draw)


def activations(layers: dict[int, torch.Tensor]) -> torch.Tensor:
    """What the texts leave in every state of the model, a little of that state's own, and the fact along a way."""
    x = texts + 0.2 * torch.randn(300, 6, 64, generator=draw)
    for layer, way in layers.items():
        x[:, layer] += 1.6 * sign[:, None] * way
    return x


base = activations({2: ways[0], 3: ways[0], 4: ways[0]})
suppressed = activations({3: ways[0], 4: ways[0]})
re_encoded = activations({3: ways[1], 4: ways[1]})

# %% [markdown]
# ## Your own labels, in one line
# One row a layer and seed, and beside each accuracy its controls: shuffled labels, the commonest label, and the length of an online
# code: how many bits a label costs one who learns as the labels come.

# %%
where = {"site": "resid_post", "position": "last"}
table = frame(probe_layers(base, labels, facts, metric="probe.truth", **where))
table.groupby(["metric", "layer"], dropna=False)["value"].mean().unstack("metric").round(2)

# %% [markdown]
# The penalty can be left to inner folds of the train facts, and the probe can be any classifier of scikit-learn's kind.

# %%
probes = {
    "C by inner folds": {"C": (0.001, 0.01, 0.1)},
    **{type(e).__name__: {"estimator": e} for e in (LogisticProbe(), RidgeProbe(), MeanDifferenceProbe(), MLPProbe())},
}
found = {name: frame(probe_layers(base, labels, facts, seeds=2, **how)) for name, how in probes.items()}
pd.DataFrame({name: t[t["metric"] == "probe"].groupby("layer")["value"].mean() for name, t in found.items()}).round(2)

# %% [markdown]
# ## Fresh and transferred
# A probe fitted anew on the erased model (filled) and the base's own probe (empty). Layer 2 is lost to both. Suppressed: both read
# layers 3 and 4. Re-encoded: the fresh probe alone does. The dotted line is what LEACE, a linear eraser, leaves of the base.

# %%
def rows(x: torch.Tensor, name: str, method: str, **options) -> pd.DataFrame:
    return frame(probe_layers(x, labels, facts, metric=name, **where, **options)).assign(method=method, step=60 * (method != "base"))


leace = frame(probe_after_leace(base, labels, facts, metric="probe.leace.truth", **where)).assign(method="base", step=0)
for name, x in {"suppressed": suppressed, "re-encoded": re_encoded}.items():
    parts = [
        rows(base, "probe.truth", "base"), rows(x, "probe.truth", name),
        rows(x, "probe.transferred.truth", name, fitted_to=base), leace,
    ]
    plots.plot_transfer(pd.concat(parts), "truth")

# %% [markdown]
# ## How much of a layer carries it?
# Directions to project out, probe by probe, until nothing is found (INLP), and what the best few dimensions tell.

# %%
directions = frame(count_directions(base, labels, facts, seeds=3))
print("directions by layer:", directions.groupby("layer")["value"].mean().round(1).tolist())
sparse = frame(probe_sparse(base, labels, facts, metric="probe.sparse.truth", **where))
plots.plot_sparse(pd.concat([sparse, table[table["metric"] == "probe.truth"]]).assign(method="base", step=0), "truth");

# %% [markdown]
# ## Geometry, which only describes
# CKA (debiased) says how alike two geometries are, effective rank how many directions are in use. CKA falls as
# much where the direction was turned (re-encoded, layers 3 and 4) as where it was lost (layer 2): it does not say what can be read.

# %%
pd.DataFrame({
    "CKA to base, suppressed": cka(suppressed, base), "CKA to base, re-encoded": cka(re_encoded, base),
    "effective rank, base": effective_rank(base),
}).rename_axis("layer").round(2)

# %% [markdown]
# ## On a model
# The tasks of a concept are metrics: `ei.measure(erased, ["probe.association", "probe.transferred.*", "geometry.*"])` for a subject, as in
# notebook 01. For texts and labels of your own, read the activations first:
#
# ```python
# from elm_interp.activations import collect_texts
#
# x = collect_texts(lm, texts, positions="last")                      # (example, layer, d_model)
# with lm.adapter("runs/demo/checkpoints/checkpoint-000060"):
#     erased = collect_texts(lm, texts, positions="last")
# fresh, transferred = probe_layers(erased, labels, facts), probe_layers(erased, labels, facts, fitted_to=x)
# ```
#
# A probe at its control means *not decodable by this probe*, never "removed".

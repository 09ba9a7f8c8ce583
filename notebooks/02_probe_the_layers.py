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
# One question: a model no longer says what it knew. **Is the knowledge gone, only suppressed, or encoded
# differently?** This notebook probes every layer, with controls, on synthetic activations where the answer is known.
# In them a fact lies along one direction of a few layers, and is then suppressed, moved to another direction, or
# removed. The same calls work on activations of any model (last cell).
#
# ## Activations with a known answer
# There are 150 facts, each stated rightly and wrongly, and six layers of 64 dimensions. In the base, layers 2 to 4
# encode which statement is right. Both erased models lose it in layer 2. In layers 3 and 4 one carries it as before
# (*suppressed*: only the output no longer uses it), the other along another direction (*re-encoded*).

# %%
import pandas as pd
import torch

import elm_interp as ei
from elm_interp import plots
from elm_interp.internals import cka, effective_rank
from elm_interp.probes import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe
from elm_interp.probes import count_directions, probe_after_leace, probe_sparse

draw = torch.Generator().manual_seed(0)
labels = ["wrong", "right"] * 150
facts = [f"fact {i // 2}" for i in range(300)]
sign = torch.tensor([1.0 if label == "right" else -1.0 for label in labels])
directions = torch.linalg.qr(torch.randn(64, 2, generator=draw))[0].T
texts = torch.randn(300, 6, 64, generator=draw)


def activations(layers: dict[int, torch.Tensor]) -> torch.Tensor:
    """Activations of one model: the texts, noise, and the label along one direction of each given layer."""
    x = texts + 0.2 * torch.randn(300, 6, 64, generator=draw)
    for layer, direction in layers.items():
        x[:, layer] += 1.6 * sign[:, None] * direction
    return x


base = activations({2: directions[0], 3: directions[0], 4: directions[0]})
suppressed = activations({3: directions[0], 4: directions[0]})
re_encoded = activations({3: directions[1], 4: directions[1]})

# %% [markdown]
# ## Your own labels, in one line
# `probe_layers` returns a tidy frame with one row a layer and seed. Its controls are rows too: shuffled labels, the
# most frequent label, and an online code length (bits per label for a learner that sees the labels one after the
# other).

# %%
where = {"site": "resid_post", "position": "last"}
table = ei.probe_layers(base, labels, facts, metric="probe.truth", **where)
table.groupby(["metric", "layer"], dropna=False)["value"].mean().unstack("metric").round(2)

# %% [markdown]
# Inner folds of the train facts can choose the penalty, and any scikit-learn classifier can be the probe.

# %%
probes = {
    "C by inner folds": {"C": (0.001, 0.01, 0.1)},
    **{type(e).__name__: {"estimator": e} for e in (LogisticProbe(), RidgeProbe(), MeanDifferenceProbe(), MLPProbe())},
}
found = {name: ei.probe_layers(base, labels, facts, seeds=2, **how) for name, how in probes.items()}
pd.DataFrame({name: t[t["metric"] == "probe"].groupby("layer")["value"].mean() for name, t in found.items()}).round(2)

# %% [markdown]
# ## Fresh and transferred
# Filled: a probe that is fitted on the erased model. Empty: the base's probe, applied to the erased model. Neither
# reads layer 2. In layers 3 and 4, both read the suppressed model, and only the fresh probe reads the re-encoded one.
# The dotted line is the base after LEACE, a linear eraser.

# %%
def rows(x: torch.Tensor, name: str, method: str, **options) -> pd.DataFrame:
    table = ei.probe_layers(x, labels, facts, metric=name, **where, **options)
    return table.assign(method=method, step=60 * (method != "base"))


leace = probe_after_leace(base, labels, facts, metric="probe.leace.truth", **where).assign(method="base", step=0)
for name, x in {"suppressed": suppressed, "re-encoded": re_encoded}.items():
    parts = [
        rows(base, "probe.truth", "base"), rows(x, "probe.truth", name),
        rows(x, "probe.transferred.truth", name, fitted_to=base), leace,
    ]
    plots.plot_transfer(pd.concat(parts), "truth")

# %% [markdown]
# ## How much of a layer carries it?
# First the number of directions that must be projected out, one by one, until a probe finds nothing (INLP). Then the
# accuracy of a probe that sees only the best few dimensions.

# %%
counted = count_directions(base, labels, facts, seeds=3)
print("directions by layer:", counted.groupby("layer")["value"].mean().round(1).tolist())
sparse = probe_sparse(base, labels, facts, metric="probe.sparse.truth", **where)
plots.plot_sparse(pd.concat([sparse, table[table["metric"] == "probe.truth"]]).assign(method="base", step=0), "truth");

# %% [markdown]
# ## Geometry, which only describes
# Debiased CKA says how similar two geometries are; effective rank says how many directions are in use. CKA falls as
# much where the direction moved (re-encoded, layers 3 and 4) as where it was lost (layer 2), so it does not say what
# can be read.

# %%
pd.DataFrame({
    "CKA to base, suppressed": cka(suppressed, base), "CKA to base, re-encoded": cka(re_encoded, base),
    "effective rank, base": effective_rank(base),
}).rename_axis("layer").round(2)

# %% [markdown]
# ## On a model
# The tasks of a concept are metrics, for a subject as in notebook 01. For your own texts and labels, read the
# activations first:
#
# ```python
# ei.measure(erased_subject, ["probe.association", "probe.transferred.*", "geometry.*"])
#
# x = ei.collect_texts(lm, texts, positions="last")                      # (example, layer, d_model)
# with lm.adapter("runs/demo/checkpoints/checkpoint-000025"):
#     erased = ei.collect_texts(lm, texts, positions="last")
# fresh = ei.probe_layers(erased, labels, facts)
# transferred = ei.probe_layers(erased, labels, facts, fitted_to=x)
# ```
#
# A probe at its control means *not decodable by this probe*, never "removed".

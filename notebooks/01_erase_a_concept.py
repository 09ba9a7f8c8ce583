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
# # Erase a concept, and watch it go
#
# One question: when a small language model is trained to forget Harry Potter, **where and when does the knowledge
# go?** This notebook does the whole job in Python. `QUICK` trains a few steps on a few texts, to check that everything
# runs (a minute or two). Set it to `False` for a real run (about ten minutes on two CPU cores).

# %%
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

import elm_interp as ei
from elm_interp import plots

QUICK = True
lm = ei.load_model("smollm2-135m")
concept = ei.load_concept("harry-potter")
if QUICK:
    concept = concept.sample(12)
lm, concept

# %% [markdown]
# ## Before
# Two-choice questions ask for the right answer against one from outside the wizarding world. They are scored by
# pointwise mutual information (PMI), because a model of this size cannot answer by letter.

# %%
base = ei.Subject(lm, concept)
ei.measure(base, ["innocence.*", "specificity.*"])[["metric", "value", "ci_low", "ci_high", "n", "chance"]]

# %% [markdown]
# ## Erase
# The frozen model is prompted as an expert and as a novice. The two predictions show how text without the knowledge
# would continue. Low-rank adapters on chosen layers learn this target, and learn to leave other text unchanged.

# %%
few = {"steps": 4, "save_every": 2, "fluency_samples": 4, "fluency_tokens": 8}
settings = few if QUICK else {}
run = ei.erase_concept(lm, concept, out=tempfile.mkdtemp(), **settings)
plots.plot_training(pd.read_json(run.folder / "metrics.jsonl", lines=True));

# %% [markdown]
# ## After
# Base and erased model are the same weights with the adapter off and on. `states` holds the base and every checkpoint.

# %%
states = [base, *(base.at(c.path, method=run.method, step=c.step) for c in run.checkpoints())]
erased = states[-1]
ei.plot_scorecard(ei.score_card(erased));

# %% [markdown]
# What does the model say now?

# %%
for sample in ei.samples(erased, 3):
    print(sample["prompt"])
    print("  base:  ", sample["base"].strip()[:160])
    print("  erased:", sample["erased"].strip()[:160], "\n")

# %% [markdown]
# ## Inside, layer by layer
# Can a linear probe on the residual stream still separate right answers from wrong ones? Above the shuffled-label
# control means *decodable by this probe*. At the control means *not decodable by this probe*, never "removed".

# %%
probes = pd.concat([ei.measure(state, "probe.association") for state in (base, erased)])
ei.plot_probe_by_layer(probes, metric="probe.association");

# %%
norms = pd.concat([ei.measure(state, "norm.*") for state in (base, erased)])
ei.plot_norm_ratio(norms);

# %% [markdown]
# ## Over training
# The same questions at every checkpoint.

# %%
watched = ["innocence.two_choice_pmi", "specificity.general_pmi", "specificity.neighbours_pmi"]
ei.plot_progression(ei.follow_metrics(states, watched))
plt.show()

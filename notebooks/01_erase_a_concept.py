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
# One question: when a small language model is made to forget Harry Potter, **where and when does the knowledge go?**
# The whole job through the Python API. `QUICK` trains a few steps on a handful of texts, to see that everything runs (a
# minute or two); set it to `False` for the real thing (about ten minutes on two CPU cores).

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import elm_interp as ei
from elm_interp import plots
from elm_interp.results import stack

QUICK = True
lm = ei.load_model("smollm2-135m")
concept = ei.load_concept("harry-potter")
if QUICK:
    concept = concept.sample(12)
lm, concept

# %% [markdown]
# ## Before
# Two-choice questions: the right answer against one from outside the wizarding world, scored by pointwise mutual
# information, since a model of this size cannot answer by letter.

# %%
base = ei.Subject(lm, concept)
ei.measure(base, ["innocence.*", "specificity.*"])[["metric", "value", "ci_low", "ci_high", "n", "chance"]]

# %% [markdown]
# ## Erase
# The frozen model, prompted as expert and as novice, says how text without the knowledge would read; low-rank adapters on
# chosen layers learn to write like that, and to leave everything else alone.

# %%
objective = ei.ELM.preset("smollm2-135m")
training = ei.Training.preset("smollm2-135m")
if QUICK:
    objective = replace(objective, fluency_samples=4, fluency_tokens=8)
    training = replace(training, steps=4, save_every=2)
samples = objective.prepare(lm, concept, progress=True)
folder = Path(tempfile.mkdtemp())
last = ei.train(lm, objective, samples, training, folder)
plots.plot_training(pd.read_json(folder / "metrics.jsonl", lines=True));

# %% [markdown]
# ## After
# Base and erased model are the same weights with the adapter off and on.

# %%
erased = base.at(last.path, method="elm", step=last.step)
card = ei.score_card(erased)
plots.plot_scorecard(card);

# %% [markdown]
# What does it say now?

# %%
for sample in ei.samples(erased, 3):
    print(sample["prompt"], "\n  base:  ", sample["base"].strip()[:160], "\n  erased:", sample["erased"].strip()[:160], "\n")

# %% [markdown]
# ## Inside, layer by layer
# Can a linear probe still tell right from wrong answers by the residual stream? Above the shuffled-label control means
# *decodable by this probe*; at the control means *not decodable by this probe*, never "removed".

# %%
probes = stack([ei.measure(s, "probe.association") for s in (base, erased)])
plots.plot_probe_by_layer(probes, metric="probe.association");

# %%
norms = stack([ei.measure(s, "norm.*") for s in (base, erased)])
plots.plot_norm_ratio(norms);

# %% [markdown]
# ## Over training
# The same questions at every checkpoint.

# %%
states = [base, *(base.at(c.path, method="elm", step=c.step) for c in ei.list_checkpoints(folder / "checkpoints"))]
watched = ["innocence.two_choice_pmi", "specificity.general_pmi", "specificity.neighbours_pmi"]
course = ei.follow_metrics(states, watched)
plots.plot_progression(course)
plt.show()

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
# One question: when a language model is trained to forget a part of what it knows, **where and when does the knowledge
# go?** The model here is SmolLM2-135M after it has read a made-up encyclopaedia of three domains. The concept is one of
# them, the animals of the Sundrel marshes. So it is known what the model knows, and beside it stands *gold*, a model
# that read the same books without that domain. `QUICK` trains a few steps, to check that everything runs (two or
# three minutes). Set it to `False` for a real run (five minutes more on two CPU cores).

# %%
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

import elm_interp as ei
from elm_interp import plots

QUICK = True
lm = ei.load_model("planted:original", dtype="float32")
concept = ei.load_concept("planted:marsh-animals")
lm, concept

# %% [markdown]
# ## Before
# What does the model say of these animals, asked freely?

# %%
asked = concept.ask("forget")[::40]
for question, said in zip(asked, lm.generate([q.prompt for q in asked], new_tokens=6, greedy=True)):
    print(f"{question.question:<62} {said.strip().partition(chr(10))[0]:<24} (right: {question.right})")

# %% [markdown]
# ## Erase
# The frozen model is prompted as an expert and as a novice. The two predictions show how text without the knowledge
# would continue. Low-rank adapters on chosen layers learn this target on prose about the concept, and learn to leave
# other text unchanged. No question is trained on, and no answer after one.

# %%
settings = {"steps": 4, "checkpoints": 2} if QUICK else {}
run = ei.erase_concept(lm, "planted:marsh-animals", out=tempfile.mkdtemp(), **settings)
plots.plot_training(pd.read_json(run.folder / "metrics.jsonl", lines=True));

# %% [markdown]
# ## After
# Only what the base knows can be lost: a question is *known* if the base answers it right in at least two of three
# other templates. Base and erased model are the same weights with the adapter off and on; gold is a model of its own.

# %%
base, erased, gold = run.subject(0), run.subject(), run.gold()
watched = ["innocence.known.four_choice", "specificity.known.neighbours", "specificity.general_likelihood"]
table = pd.concat([ei.measure(state, watched) for state in (base, erased, gold)])
table.pivot_table(index="metric", columns="method", values="value", sort=False).round(2)

# %% [markdown]
# What does the erased model say now? Its text should be sound, and should not hold the answers.

# %%
with erased.on():
    now = lm.generate([q.prompt for q in asked], new_tokens=6, greedy=True)
for question, said in zip(asked, now):
    print(f"{question.question:<62} {said.strip().partition(chr(10))[0]:<24} (right: {question.right})")

# %% [markdown]
# ## Inside, layer by layer
# Can a linear probe on the residual stream still tell which answer a question has? It is tested on facts that it was not
# fitted on. Above the shuffled-label control means *decodable by this probe*. At the control means *not decodable by
# this probe*, never "removed". Gold shows how much a model reads that never knew.

# %%
probes = pd.concat([ei.measure(state, "probe.values") for state in (base, erased, gold)])
ei.plot_probe_by_layer(probes, metric="probe.values");

# %%
norms = pd.concat([ei.measure(state, "norm.*") for state in (base, erased)])
ei.plot_norm_ratio(norms);

# %% [markdown]
# ## Over training
# Sixty known questions at every checkpoint; the star is gold.

# %%
states = [base, *(run.subject(c.step) for c in run.checkpoints())]
followed = ei.follow_metrics(states, watched, items=60)
ei.plot_progression(pd.concat([followed.assign(step=followed["step"].fillna(0)), table[table["method"] == "gold"]]))
plt.show()

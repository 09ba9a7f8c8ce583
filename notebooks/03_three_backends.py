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
# # Three back ends, one answer
#
# One question: **does it matter what runs the passes?** Plain hooks, nnsight and TransformerLens read and edit the same
# model here under the same names, and give the same numbers. So choose by what you want to do next, not by what to trust.
# `docs/translate.md` puts the four ways of writing side by side.

# %%
import time

import pandas as pd
import torch

import elm_interp as ei

lms = {name: ei.load_model("smollm2-135m", dtype="float32", backend=name) for name in ("torch", "nnsight", "transformer_lens")}
lm = lms["torch"]
batch = lm.tokenize(["Harry Potter's best friends are Ron and", "The capital of France is"])
lm

# %% [markdown]
# ## The same activations
# Residual stream, attention patterns, heads and neurons of every layer, at each text's last token.

# %%
sites = ["resid_post", "pattern", "z", "post"]
caches, seconds = {}, {}
for name, each in lms.items():
    each.run_with_cache(batch, sites=sites)  # the first pass prepares
    began = time.perf_counter()
    caches[name] = each.run_with_cache(batch, sites=sites)
    seconds[name] = time.perf_counter() - began
gaps = {name: {site: float((cache[site] - caches["torch"][site]).abs().max()) for site in sites} for name, cache in caches.items()}
pd.DataFrame(gaps).T.assign(largest_value=float(caches["torch"]["resid_post"].abs().max()), seconds=seconds)

# %% [markdown]
# ## The same edits
# Without what attention adds in block 20, what comes next?

# %%
for name, each in lms.items():
    with each.hooks({"blocks.20.hook_attn_out": torch.zeros_like}):
        edited = each.logits(batch)
    words = [[lm.tokenizer.decode(int(i)) for i in logits.argmax(-1)] for logits in (each.logits(batch), edited)]
    print(f"{name:17s} plain {words[0]}  edited {words[1]}  norm of the change {float((edited - each.logits(batch)).norm()):.4f}")

# %% [markdown]
# ## TransformerLens's own tools
# The bridge has weights of its own: whatever is done to it, the model above stays as it is.

# %%
bridge = lm.as_transformer_lens()
ids = batch.input_ids[:1, : int(batch.lengths[0])]
_, cache = bridge.run_with_cache(ids)
parts, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
direction = lm.unembedding.weight[int(lm.logits(batch)[0].argmax())]
pd.Series((parts[:, 0] @ direction).detach().numpy(), index=labels).sort_values().tail(5).rename("towards the next word")

# %% [markdown]
# ## A trace of nnsight's own

# %%
traced = lm.as_nnsight()
with torch.no_grad(), traced.trace(input_ids=ids, attention_mask=torch.ones_like(ids)):
    gate = traced.model.layers[20].mlp.gate_proj.output[0, -1].save()
gate.topk(3)

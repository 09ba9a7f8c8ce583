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
# One question: **do results depend on the back end?** Plain hooks, nnsight and TransformerLens read and edit the same
# model under the same names here, and give the same numbers. So choose the one whose tools you need next.
# `docs/translate.md` shows the same tasks in each library.

# %%
import time

import pandas as pd
import torch

import elm_interp as ei

backends = ("torch", "nnsight", "transformer_lens")
lms = {name: ei.load_model("smollm2-135m", dtype="float32", backend=name) for name in backends}
lm = lms["torch"]
batch = lm.tokenize(["Harry Potter's best friends are Ron and", "The capital of France is"])
lm

# %% [markdown]
# ## The same activations
# Residual stream, attention patterns, attention heads and neurons of every layer, at the last token of each text.

# %%
sites = ["resid_post", "pattern", "z", "post"]
caches, seconds = {}, {}
for name, each in lms.items():
    each.run_with_cache(batch, sites=sites)  # warm-up
    began = time.perf_counter()
    caches[name] = each.run_with_cache(batch, sites=sites)
    seconds[name] = time.perf_counter() - began


def gaps(cache):
    return {site: float((cache[site] - caches["torch"][site]).abs().max()) for site in sites}


table = pd.DataFrame({name: gaps(cache) for name, cache in caches.items()}).T
table.assign(largest_value=float(caches["torch"]["resid_post"].abs().max()), seconds=seconds)

# %% [markdown]
# ## The same edits
# Which token comes next without the attention output of block 20?

# %%
for name, each in lms.items():
    with each.hooks({"blocks.20.hook_attn_out": torch.zeros_like}):
        edited = each.logits(batch)
    words = [[lm.tokenizer.decode(int(i)) for i in logits.argmax(-1)] for logits in (each.logits(batch), edited)]
    change = float((edited - each.logits(batch)).norm())
    print(f"{name:17s} plain {words[0]}  edited {words[1]}  norm of the change {change:.4f}")

# %% [markdown]
# ## TransformerLens's own tools
# The bridge has its own copy of the weights, so nothing that is done to it changes the model above.

# %%
bridge = lm.as_transformer_lens()
ids = batch.input_ids[:1, : int(batch.lengths[0])]
_, cache = bridge.run_with_cache(ids)
parts, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
direction = lm.unembedding.weight[int(lm.logits(batch)[0].argmax())]
attribution = pd.Series((parts[:, 0] @ direction).detach().numpy(), index=labels, name="towards the next token")
attribution.sort_values().tail(5)

# %% [markdown]
# ## nnsight's own tools
# The wrapper shares the weights with `lm`. Its traces reach every module.

# %%
traced = lm.as_nnsight()
with torch.no_grad(), traced.trace(input_ids=ids, attention_mask=torch.ones_like(ids)):
    gate = traced.model.layers[20].mlp.gate_proj.output[0, -1].save()
gate.topk(3)

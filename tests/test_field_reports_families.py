"""Field reports, families: sites that mean what they say in every family, against plain transformers."""

import pytest
import tiny
import torch

from elm_interp.errors import UnknownSiteError
from elm_interp.models import HookedLM
from elm_interp.models.tiny_families import tiny_model, tiny_tokenizer

BACKENDS = ["torch", "nnsight", "transformer_lens"]
OUTPUT = {"bloom": "self_attention.dense", "mpt": "attn.out_proj", "opt": "self_attn.out_proj"}
OUTPUT |= {"granite": "self_attn.o_proj", "dbrx": "norm_attn_norm.attn.out_proj", "falcon": "self_attention.dense"}
OUTPUT |= {
    "cohere": "self_attn.o_proj",
    "gptj": "attn.out_proj",
    "gemma2": "self_attn.o_proj",
    "gpt_neo": "attn.attention.out_proj",
}
ROWS = [[5, 6, 7, 8, 9, 10], [7, 8], [11, 12, 13, 14]]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def loaded(family: str, tokenizer, backend="torch") -> HookedLM:
    return HookedLM(tiny_model(family), tokenizer, backend=backend)


@pytest.mark.parametrize("family", OUTPUT)
def test_zeroing_what_attention_adds_removes_exactly_that(family, tokenizer):
    lm = loaded(family, tokenizer)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with lm.hooks({"attn_out": torch.zeros_like}):
        edited = lm.logits(lm.pad(ids.tolist()), positions="all")
    for block in lm.blocks:
        for weight in block.get_submodule(OUTPUT[family]).parameters():
            weight.zero_()
    torch.testing.assert_close(edited, lm.model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", OUTPUT)
def test_the_streams_differ_by_what_is_added(family, tokenizer):
    lm = loaded(family, tokenizer)
    cache = lm.run_with_cache(lm.pad(ROWS), sites=["resid_pre", "attn_out", "mlp_out", "resid_post"], positions="all")
    added = cache["resid_pre"] + cache["attn_out"] + cache["mlp_out"]
    torch.testing.assert_close(added, cache["resid_post"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "llama", "falcon", "bloom", "codegen", "gpt_bigcode"])
def test_queries_keys_and_values_make_the_scores_and_heads(family, tokenizer):
    lm = loaded(family, tokenizer)
    # at the first position no rotation and no distance: queries and keys are multiplied as they are projected
    batch = lm.pad([[5, 6, 7, 8]])
    cache = lm.run_with_cache(batch, sites=["q", "k", "v", "attn_scores", "pattern", "z"], layers=1, positions="all")
    q, k, v, z = (cache[name][0, 0] for name in ("q", "k", "v", "z"))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores, pattern = cache["attn_scores"][0, 0], cache["pattern"][0, 0]
    torch.testing.assert_close(scores[:, 0, 0], (q[0] * k[0]).sum(-1) / q.shape[-1] ** 0.5, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.softmax(-1), pattern)
    torch.testing.assert_close(torch.einsum("hqk,khd->qhd", pattern, v), z, atol=1e-4, rtol=1e-4)
    if family == "gpt2":
        whole = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        seen = torch.ones(4, 4).tril().bool()
        torch.testing.assert_close(scores[:, seen], whole[:, seen], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3", "qwen3", "gpt_oss"])
def test_rotated_queries_and_keys_make_the_scores(family, tokenizer):
    lm = loaded(family, tokenizer)
    cache = lm.run_with_cache(
        lm.pad([[5, 6, 7, 8]]), sites=["rot_q", "rot_k", "attn_scores"], layers=0, positions="all"
    )
    q, k, scores = (cache[name][0, 0] for name in ("rot_q", "rot_k", "attn_scores"))
    attention = lm.blocks[0].get_submodule(lm.layout.attn)
    whole = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * attention.scaling
    seen = torch.ones(4, 4).tril().bool()
    torch.testing.assert_close(scores[:, seen], whole[:, seen], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_what_the_non_linearity_reads_makes_the_neurons(family, tokenizer):
    lm = loaded(family, tokenizer)
    cache = lm.run_with_cache(lm.pad([[5, 6, 7]]), sites=["pre", "post", "resid_mid"], layers=0, positions="all")
    mlp, pre = lm.blocks[0].mlp, cache["pre"][0, 0]
    act = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None) or mlp.act
    norm = lm.blocks[0].ln_2 if family == "gpt2" else lm.blocks[0].post_attention_layernorm
    normed = norm(cache["resid_mid"][0, 0])
    if family == "llama":
        neurons = act(pre) * mlp.up_proj(normed)
    elif family == "phi3":
        neurons = act(pre) * mlp.gate_up_proj(normed)[:, pre.shape[1] :]
    else:
        neurons = act(pre)
        torch.testing.assert_close(mlp.c_fc(normed), pre)
    torch.testing.assert_close(neurons, cache["post"][0, 0])


def test_reading_scores_and_patterns_changes_nothing(tokenizer):
    for family in ("granite_swa", "gpt_oss", "gpt_neo"):
        lm = loaded(family, tokenizer)
        batch = lm.pad([[5, 6, 7, 8]])
        read = lm.run_with_cache(batch, sites=["attn_scores", "pattern", "resid_post"], positions="all")["resid_post"]
        torch.testing.assert_close(read, lm.run_with_cache(batch, positions="all")["resid_post"], atol=1e-4, rtol=1e-4)


NEW = ["q", "k", "v", "rot_q", "rot_k", "attn_scores", "resid_mid", "pre"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "granite", "bloom", "opt"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_every_back_end_reads_and_edits_the_same(family, backend, tokenizer):
    pytest.importorskip(backend)
    torch_lm = loaded(family, tokenizer)
    other = HookedLM(torch_lm.model, tokenizer, backend=backend)
    batch = torch_lm.pad(ROWS, side="left")
    found = []
    for name in [*NEW, "attn_out", "mlp_out"]:
        full = next(site.full_name for site in torch_lm._sites(name, 1)) if has(torch_lm, name) else None
        if full is None or not has(other, name):
            continue
        found.append(name)
        theirs, ours = (lm.run_with_cache(batch, sites=full, positions="all")[full] for lm in (other, torch_lm))
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4, msg=lambda m, name=name: f"reading {name}: {m}")
        edits = {full: lambda x: torch.where(x < -1e30, x, 0.5 * x)}, {full: lambda x: x.mul_(0.7)}
        for positions in ("all", "last"):
            edited = []
            for lm in (other, torch_lm):
                with lm.hooks(edits[0], positions=positions), lm.hooks(edits[1], positions=positions):
                    edited.append(lm.logits(batch))
            torch.testing.assert_close(*edited, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"editing {name}: {m}")
            assert (edited[0] - torch_lm.logits(batch)).abs().max() > 1e-3
    assert {"q", "k", "v", "resid_mid", "pre", "attn_out", "mlp_out"} <= set(found)


def has(lm: HookedLM, name: str) -> bool:
    try:
        lm.run_with_cache(lm.pad([[5]]), sites=name)
    except UnknownSiteError:
        return False
    return True


def test_an_edit_between_attention_and_mlp_sees_edits_of_what_comes_before(tokenizer):
    lm = loaded("llama", tokenizer)
    batch, mid = lm.pad([[5, 6, 7]]), "blocks.1.hook_resid_mid"
    # the later context changes what the earlier one's site is made of
    with lm.hooks({mid: lambda x: 2 * x}), lm.hooks({"blocks.1.hook_resid_pre": lambda x: x + 1}):
        cache = lm.run_with_cache(batch, sites=["resid_pre", "resid_mid", "mlp_out", "resid_post"], layers=1)
        attn = lm.run_with_cache(batch, sites="attn_out", layers=1)["attn_out"]
    torch.testing.assert_close(cache["resid_mid"], cache["resid_pre"] + attn)
    torch.testing.assert_close(cache["resid_post"], cache["resid_mid"] + cache["mlp_out"])
    with lm.hooks({mid: torch.zeros_like}):
        assert torch.count_nonzero(lm.run_with_cache(batch, sites=mid)[mid]) == 0
        mlp = lm.run_with_cache(batch, sites=["mlp_out", "resid_post"], layers=1)
    torch.testing.assert_close(mlp["mlp_out"], mlp["resid_post"])


def test_a_parallel_block_has_no_stream_between(tokenizer):
    lm = loaded("gptj", tokenizer)
    with pytest.raises(UnknownSiteError, match="no site blocks.0.hook_resid_mid: its MLP reads the stream before"):
        lm.run_with_cache(lm.pad([[5]]), sites="resid_mid")


def test_a_family_that_scales_its_stream_lacks_what_is_added_and_says_why(tokenizer):
    lm = loaded("doge", tokenizer)
    lm.run_with_cache(lm.pad([[5]]), sites="resid_post")
    for site in ("attn_out", "mlp_out"):
        with pytest.raises(UnknownSiteError, match=r"in DogeDecoderLayer resid_pre \+ attn_out \+ mlp_out is not"):
            lm.run_with_cache(lm.pad([[5]]), sites=site)


def test_sites_are_checked_when_a_model_is_loaded(tokenizer):
    """A block that does something that no module shows."""
    model = tiny.make_model()
    kind = type(model.model.layers[0])

    class Louder(kind):
        def forward(self, *args, **kwargs):
            return 1.5 * super().forward(*args, **kwargs)

    model.model.layers[1].__class__ = Louder
    lm = HookedLM(model, tokenizer)
    with pytest.raises(UnknownSiteError, match="no site blocks.0.hook_attn_out.*is not resid_post"):
        lm.run_with_cache(lm.pad([[5]]), sites="attn_out")


def test_an_edit_that_the_bridge_would_discard_is_refused(tokenizer):
    pytest.importorskip("transformer_lens")
    lm = loaded("opt", tokenizer, "transformer_lens")
    for edit in (lambda x: 0.5 * x, lambda x: x.mul_(0.5)):
        with (
            lm.hooks({"pattern": edit}),
            pytest.raises(UnknownSiteError, match="TransformerLens cannot edit this site"),
        ):
            lm.logits(lm.pad([[5, 6]]))

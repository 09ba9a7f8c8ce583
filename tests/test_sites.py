"""Sites: found by structure in every family, named as in TransformerLens, read before the final norm."""

from dataclasses import replace

import pytest
import tiny
import torch
from transformers import PretrainedConfig, PreTrainedModel

from elm_interp.errors import LayoutError, UnknownSiteError
from elm_interp.models import HookedLM, Layout
from elm_interp.models import site as declared_site
from elm_interp.models.layout import find_layout
from elm_interp.models.sites import Site, in_pass_order, resolve_sites, site_names
from elm_interp.registry import SITES


@pytest.fixture(params=tiny.FAMILIES)
def family(request, tiny_lm) -> HookedLM:
    return HookedLM(tiny.make_family(request.param, n_layers=3), tiny_lm.tokenizer)


def hidden_states(model: PreTrainedModel, batch) -> tuple[torch.Tensor, ...]:
    return model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states


@torch.no_grad()
def test_resid_post_is_the_state_after_the_block_and_before_the_final_norm(family):
    batch = family.pad([[5, 6, 7, 8, 9]])
    theirs = hidden_states(family.model, batch)
    ours = family.run_with_cache(batch, positions="all")["resid_post"]
    for layer in range(family.n_layers - 1):
        torch.testing.assert_close(ours[:, layer], theirs[layer + 1])
    assert not torch.allclose(ours[:, -1], theirs[-1], atol=1e-2)
    normed = family.model.get_submodule(family.layout.final_norm)(ours[:, -1])
    torch.testing.assert_close(normed, theirs[-1])


def test_resid_pre_is_the_resid_post_of_the_block_before(family):
    cache = family.run_with_cache(family.pad([[5, 6, 7]]), sites=["resid_pre", "resid_post"])
    torch.testing.assert_close(cache["resid_pre"][:, 1:], cache["resid_post"][:, :-1])


def test_attention_and_mlp_add_up_to_the_block(family):
    cache = family.run_with_cache(family.pad([[5, 6, 7]]), sites=["resid_pre", "attn_out", "mlp_out", "resid_post"])
    torch.testing.assert_close(cache["resid_pre"] + cache["attn_out"] + cache["mlp_out"], cache["resid_post"])


@torch.no_grad()
def test_heads_and_neurons_through_their_projections_are_what_is_added(family):
    cache = family.run_with_cache(family.pad([[5, 6, 7]]), sites=["z", "attn_out", "post", "mlp_out"], layers=1)
    layout, block = family.layout, family.blocks[1]
    attention, mlp = block.get_submodule(layout.attn), block.get_submodule(layout.mlp)
    added = attention.get_submodule(layout.attn_proj)(cache["z"][:, 0].flatten(-2))
    neurons = mlp.get_submodule(layout.mlp_proj)(cache["post"][:, 0])
    for value, norm, site in ((added, layout.attn_norm, "attn_out"), (neurons, layout.mlp_norm, "mlp_out")):
        value = block.get_submodule(norm)(value) if norm else value
        torch.testing.assert_close(value, cache[site][:, 0])


@torch.no_grad()
def test_patterns_are_those_of_the_eager_model_and_padding_never_shows(family):
    rows = [[5, 6, 7, 8, 9, 10], [7, 8, 9]]
    before = family.model.config._attn_implementation
    right, left = (
        family.run_with_cache(family.pad(rows, side=s), sites="pattern", positions="all")["pattern"]
        for s in ("right", "left")
    )
    assert family.model.config._attn_implementation == before
    torch.testing.assert_close(left, right)
    family.model.set_attn_implementation("eager")
    for row, ids in enumerate(rows):
        theirs = family.model(torch.tensor([ids]), output_attentions=True).attentions
        for layer, weights in enumerate(theirs):
            torch.testing.assert_close(right[row, layer, :, : len(ids), : len(ids)], weights[0])
    assert torch.count_nonzero(right[1, :, :, :, 3:]) == 0


def test_patterns_are_read_at_query_positions(tiny_lm):
    batch = tiny_lm.pad([[5, 6, 7, 8], [7, 8]], side="left")
    whole = tiny_lm.run_with_cache(batch, sites="pattern", positions="all")[
        "pattern"
    ]  # (batch, layer, head, query, key)
    torch.testing.assert_close(tiny_lm.run_with_cache(batch, sites="pattern", positions=1)["pattern"], whole[..., 1, :])
    several = tiny_lm.run_with_cache(batch, sites="pattern", positions=[0, 1])["pattern"]
    torch.testing.assert_close(several, whole[..., :2, :])


def test_a_layout_without_projections_has_no_heads_and_neurons(tiny_lm):
    layout = replace(tiny_lm.layout, mlp_proj="")
    bare = HookedLM(tiny_lm.model, tiny_lm.tokenizer, layout=layout)
    with pytest.raises(UnknownSiteError, match=r"no site blocks.0.mlp.hook_post.*pass layout=Layout\(..., mlp_proj="):
        bare.run_with_cache(bare.pad([[5, 6]]), sites="post")


def test_embed_is_the_token_embedding(tiny_lm):
    found = tiny_lm.run_with_cache(tiny_lm.pad([[5, 6]]), sites="embed")["embed"]
    assert torch.equal(found[0], tiny_lm.model.get_input_embeddings().weight[6])


def test_a_model_without_blocks_is_refused_with_the_override_named():
    with pytest.raises(LayoutError, match=r"pass layout=Layout\(blocks="):
        find_layout(_Bare())


def test_an_override_with_a_wrong_path_names_the_part(tiny_lm):
    layout = Layout("model.layers", "self_attn", "feedforward", "model.embed_tokens", "model.norm")
    with pytest.raises(
        LayoutError, match="mlp module feedforward is not in LlamaDecoderLayer, which has: self_attn, mlp"
    ):
        find_layout(tiny_lm.model, layout)


@pytest.mark.parametrize("wrong", [{"final_norm": "model.layers.0.input_layernorm"}, {"final_norm": "lm_head"}])
def test_a_norm_that_is_not_the_one_before_the_head_is_refused(tiny_lm, wrong):
    torch.nn.init.normal_(tiny_lm.model.model.norm.weight)
    with pytest.raises(LayoutError, match="does not turn the output of the last of model.layers"):
        HookedLM(tiny_lm.model, tiny_lm.tokenizer, layout=replace(tiny_lm.layout, **wrong))


def test_a_step_between_norm_and_logits_that_is_not_known_is_refused(tiny_lm):
    class Louder(type(tiny_lm.model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = 2 * out.logits
            return out

    tiny_lm.model.__class__ = Louder
    with pytest.raises(LayoutError, match="they differ by"):
        HookedLM(tiny_lm.model, tiny_lm.tokenizer)


def test_short_names_stand_for_the_chosen_layers_in_full_form():
    assert resolve_sites("resid_post", [0, -1], 4) == [Site(0, "resid_post"), Site(3, "resid_post")]
    assert resolve_sites("hook_mlp_out", 2, 4)[0].full_name == "blocks.2.hook_mlp_out"
    assert len(resolve_sites(["embed", "attn_out", "blocks.1.hook_attn_out"], None, 4)) == 5
    assert [s.full_name for s in resolve_sites(["pattern", "hook_z", "blocks.1.mlp.hook_post"], 1, 4)] == [
        "blocks.1.attn.hook_pattern",
        "blocks.1.attn.hook_z",
        "blocks.1.mlp.hook_post",
    ]


@pytest.mark.parametrize(
    ("asked", "layers", "message"),
    [
        ("resid_pst", None, "Did you mean 'resid_post'"),
        ("blocks.1.hook_atn_out", None, "Did you mean .*attn_out"),
        ("blocks.1.hook_z", None, "Did you mean .*attn.hook_z"),
        ("blocks.4.hook_resid_post", None, "unknown layer 4: this model has layers 0 to 3"),
        ("resid_post", 9, "unknown layer 9: this model has layers 0 to 3"),
        ("resid_post", [-5], "unknown layer -5"),
        ("resid_post", [], "no layer asked for"),
        ([], None, "no site asked for"),
    ],
)
def test_what_matches_nothing_is_an_error_that_names_what_exists(asked, layers, message):
    with pytest.raises(UnknownSiteError, match=message):
        resolve_sites(asked, layers, 4)


@pytest.fixture
def norm_in():
    """A site of somebody else's: what the norm before the MLP reads."""

    @declared_site("norm_in", after="attn_out")
    def place(layout, layer):
        return layout.block(layer, "post_attention_layernorm"), "input"

    yield
    del SITES._found["norm_in"], SITES._origins["norm_in"]


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
def test_a_declared_site_is_read_and_edited_under_both_names(tiny_lm, norm_in, backend):
    pytest.importorskip(backend)
    lm = HookedLM(tiny_lm.model, tiny_lm.tokenizer, backend=backend)
    batch, full = lm.pad([[5, 6, 7]]), "blocks.1.hook_norm_in"
    cache = lm.run_with_cache(batch, sites=["norm_in", "resid_pre", "attn_out", "mlp_out", full])
    torch.testing.assert_close(cache["norm_in"], cache["resid_pre"] + cache["attn_out"])
    assert torch.equal(cache[full], cache["norm_in"][:, 1])
    with lm.hooks({full: lambda x: 2 * x}, positions="last"):
        torch.testing.assert_close(lm.run_with_cache(batch, sites=full)[full], 2 * cache[full])


def test_a_pass_reaches_a_declared_site_after_the_one_that_it_names(norm_in):
    names = site_names()
    assert names[names.index("attn_out") + 1] == "norm_in"
    assert names[0] == "embed"
    assert names[-1] == "resid_post"
    sites = [Site(1, "resid_pre"), Site(0, "resid_post"), Site(-1, "embed"), Site(0, "norm_in")]
    assert [str(s) for s in in_pass_order(sites)] == [str(sites[i]) for i in (2, 3, 1, 0)]


def test_a_site_whose_module_a_model_lacks_is_refused_by_name(tiny_lm, norm_in):
    gpt2 = HookedLM(tiny.make_family("gpt2"), tiny_lm.tokenizer)
    with pytest.raises(UnknownSiteError, match=r"no site blocks.0.hook_norm_in: it has no module transformer.h.0.post"):
        gpt2.run_with_cache(gpt2.pad([[5, 6]]), sites="norm_in")


class _Bare(torch.nn.Module):
    config = PretrainedConfig()

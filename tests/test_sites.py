"""Sites: found by structure in every family, named as in TransformerLens, read before the final norm."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from elm_interp.errors import LayoutError, UnknownSiteError
from elm_interp.models import HookedLM, Layout
from elm_interp.models.sites import Site, find_layout, resolve_sites

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WITHOUT_GROUPS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=16),
    "olmo2": Olmo2Config(**SIZES),
    "gpt2": GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**WITHOUT_GROUPS, max_position_embeddings=64),
    "phi": PhiConfig(**WITHOUT_GROUPS, max_position_embeddings=64),
}


@pytest.fixture(params=FAMILIES)
def family(request, tiny_lm) -> HookedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[request.param], dtype=torch.float32).eval()
    return HookedLM(model, tiny_lm.tokenizer)


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
    with pytest.raises(LayoutError, match="does not turn what leaves the last of model.layers"):
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


@pytest.mark.parametrize(
    ("asked", "layers", "message"),
    [
        ("resid_pst", None, "Did you mean 'resid_post'"),
        ("blocks.1.hook_atn_out", None, "Did you mean .*attn_out"),
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


class _Bare(torch.nn.Module):
    config = PretrainedConfig()

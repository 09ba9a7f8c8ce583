"""Tiny random models of every family that transformers has: small enough to run in a second, odd enough to show faults.

The sizes in a family's own config class are made small, whatever their names; windows and chunks are made short, and
all weights are disturbed, so that every part of the model shows in its logits.

    model = tiny_model("gemma3_text")
    tokenizer = tiny_tokenizer()            # of the words w3, w4, …
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 400
WINDOW = 8
"""Length of sliding windows and of chunks."""
_LARGEST = 20_000_000
"""Most parameters of a model that counts as tiny."""
_LENGTHS = dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size", "sliding_window_size"), WINDOW)
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "dff": 64,
    "word_embed_proj_dim": 32,
    "d_model": 32,
    "n_heads": 4,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rotary_dim": 4,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 64,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 4,
    "index_topk": 64,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_chunk_size": 8,
    "mlp_only_layers": [0],
    "max_window_layers": 1,
    "use_sliding_window": True,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
} | _LENGTHS
"""Fields that are made small in every config that has them; a config may have other names for them."""
_ALWAYS = ("num_key_value_heads", "head_dim", *_LENGTHS, "pad_token_id", "bos_token_id", "eos_token_id")
"""Fields that are set also where the default is None."""
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
_GEMMA_3N = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "intermediate_size": 64,
}
_GEMMA_4 = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
_DOTS_3 = {
    "shared_experts_intermediate_size": 32,
    "n_group": 2,
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_head_dim"), 16),
    **dict.fromkeys(("swa_qk_nope_head_dim", "swa_v_head_dim"), 8),
}
_QWEN_4 = {
    "ngram_vocab_size_base": 100,
    "make_ngram_vocab_size_divisible_by": 1,
    "split_ngram_parts": 1,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROTARY)},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": _DOTS_3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "per_layer_config": {}},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS_3,
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": _GEMMA_3N,
    "gemma4": {"text_config": _GEMMA_4},
    "gemma4_text": _GEMMA_4,
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16)},
    "xlnet": {"d_head": 8},
    "longcat_flash": {"zero_expert_num": 2},
    "zamba": {"num_hidden_layers": 12, "layers_block_type": None},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else a family's config needs."""
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon (40B)": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon (RW 1B)": ("falcon", {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "gpt_bigcode (multi-head)": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox (sequential)": ("gpt_neox", {"use_parallel_residual": False}),
    "mpt (MPT 7B)": ("mpt", {"attn_config": {"alibi": True, "attn_impl": "eager"}, "no_bias": True}),
    "opt (350M)": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "stablelm (parallel)": ("stablelm", {"use_parallel_residual": True}),
}
"""Models of families that are built otherwise than the family's default: the family, and fields of its config."""
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers")


def families() -> list[str]:
    """All names under which transformers has a causal language model, and those of models that are built otherwise."""
    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_VARIANTS])


def tiny_config(family: str) -> PretrainedConfig:
    """The smallest config of a family that still has each of its kinds of layer."""
    name, special = _VARIANTS.get(family, (family, {}))
    return _shrunk(CONFIG_MAPPING[name], _OF_FAMILY.get(name, {}) | special)


def _shrunk(kind: type[PretrainedConfig], special: Mapping[str, Any]) -> PretrainedConfig:
    default = kind()
    deep = int(getattr(default, "num_hidden_layers", 0) or 0)
    lists = {
        name: list(value)
        for name, value in vars(default).items()
        if isinstance(value, list | tuple) and deep > 1 and len(value) == deep
    }
    kinds = [_distinct(values) for values in lists.values()]
    layers = max(2, *map(len, kinds)) if kinds else 2
    sizes = {name: value for name, value in _SIZES.items() if _has(default, name)}
    if _has(default, "num_key_value_heads"):
        # of keys and values made from a common latent vector each head has its own
        sizes["num_key_value_heads"] = 4 if "qk_rope_head_dim" in sizes else 2
    sizes |= {name: layers for name in _COUNTS if _has(default, name)}
    for name, values in lists.items():
        different = _distinct(values)
        sizes[name] = [different[i % len(different)] for i in range(layers)]
    for name in default.sub_configs:
        if isinstance(part := getattr(default, name, None), PretrainedConfig):
            sizes[name] = _shrunk(type(part), special.get(name, {}))
    return kind(**sizes | {name: value for name, value in special.items() if name not in default.sub_configs})


def _has(config: PretrainedConfig, name: str) -> bool:
    """Whether a config has a field that can be set."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    # a config whose layers have their own values refuses to give one for all, but takes one
    value = vars(config).get(config.attribute_map.get(name, name), _MISSING)
    return value is not _MISSING and (name in _ALWAYS or value is not None)


_MISSING = object()


def _distinct(values: list[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of a family in float32; its weights depend on the seed alone.

    Raises:
        ValueError: the config stays large.
    """
    config = tiny_config(family)
    build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        size = sum(weight.numel() for weight in build(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"the tiny config of {family} has {size:,} parameters, expected at most {_LARGEST:,}.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = build(config, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the words w3, w4, …, one token each, so that ids and texts are the same thing."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    words = {word: i for i, word in enumerate([*special.values(), *(f"w{i}" for i in range(3, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]

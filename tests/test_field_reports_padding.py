"""Padding never changes a number: windows, chunks, rotary and absolute positions, position biases."""

import pytest
import torch
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from elm_interp.erase.guidance import Guidance, generate_guided, hidden_after
from elm_interp.models import HookedLM
from elm_interp.models.scoring import continuation_log_probs
from elm_interp.models.shared_prefix import branch

SIZES = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
WINDOW = GROUPED | {"sliding_window": 8}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2}
CHUNKS = {"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"] * 2}
FAMILIES = {
    "llama": GROUPED,
    "mistral": WINDOW,
    "qwen2": MIXED | {"use_sliding_window": True},
    "qwen3": MIXED | {"use_sliding_window": True},
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "gpt_oss": MIXED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "cohere2": MIXED,
    "phi3": WINDOW,
    "starcoder2": WINDOW,
    "llama4_text": GROUPED | CHUNKS | {"num_local_experts": 2, "intermediate_size_mlp": 64},
    "gpt2": {"vocab_size": 400, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": SIZES | {"intermediate_size": 64, "max_position_embeddings": 256},
    "bloom": {"vocab_size": 400, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": SIZES | {"alibi": True, "new_decoder_architecture": False, "max_position_embeddings": 256},
}
LENGTHS = [5, 17, 40, 9]
ROWS = [torch.arange(3 + i, 3 + i + n * 7, 7).remainder(397).add(3).tolist() for i, n in enumerate(LENGTHS)]
PREFIX = torch.arange(50, 63).tolist()
OPTIONS = [[[5], [6, 7, 8]], [[9, 10]], [[11, 12, 13, 14], [15]], [[16, 17, 18]]]


@pytest.fixture(params=FAMILIES)
def lm(request) -> HookedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(request.param, **FAMILIES[request.param])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return HookedLM(model, make_tokenizer(), name=request.param)


@torch.no_grad()
def plain(lm: HookedLM, ids: list[int]) -> torch.Tensor:
    """Logits along one row, by the model of transformers alone, without padding and cache."""
    return lm.model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_give_their_own_logits(lm, side):
    logits = lm.logits(lm.pad(ROWS, side=side), positions="all")
    for row, found in zip(ROWS, logits, strict=True):
        torch.testing.assert_close(found[: len(row)], plain(lm, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", [[], PREFIX[:3], PREFIX], ids=["no prefix", "short prefix", "long prefix"])
def test_options_after_a_shared_prefix_score_as_whole_texts(lm, prefix):
    hidden, _ = branch(lm, ROWS, OPTIONS, prefix=prefix)
    logits = iter(lm.unembed(hidden).split([len(option) for group in OPTIONS for option in group]))
    for row, group in zip(ROWS, OPTIONS, strict=True):
        for option in group:
            whole = plain(lm, [*prefix, *row, *option])[-len(option) - 1 : -1]
            torch.testing.assert_close(next(logits), whole, atol=1e-4, rtol=1e-4)


def test_targets_after_a_class_prompt_are_those_of_whole_texts(lm):
    prefix = "Old Tamsin keeps the lamp of Marrowgate, and every evening she climbs ninety steps"
    start = lm.encode([prefix])[0]
    for row, hidden in zip(ROWS, hidden_after(lm, prefix, ROWS), strict=True):
        torch.testing.assert_close(lm.unembed(hidden), plain(lm, [*start, *row])[-len(row) :], atol=1e-4, rtol=1e-4)


def test_generation_past_the_window_is_that_of_each_row_alone(lm):
    prompts = [lm.tokenizer.decode(row) for row in ROWS]
    written = lm.generate(prompts, new_tokens=12, greedy=True)
    for prompt, text in zip(prompts, written, strict=True):
        ids = lm.tokenizer(prompt)["input_ids"]
        new: list[int] = []
        while len(new) < 12 and (token := int(plain(lm, [*ids, *new])[-1].argmax())) != 2:
            new.append(token)
        assert text == lm.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_guided_generation_is_that_of_each_row_alone(lm):
    settings = {"expert": "Tamsin keeps the lamp", "novice": "A", "new_tokens": 12, "seed": 0}
    guidance = Guidance(eta=1.0, top_k=1)  # the likeliest token: nothing is left to the sampling
    together = generate_guided(lm, guidance, ROWS, **settings)
    assert together == [generate_guided(lm, guidance, [row], **settings)[0] for row in ROWS]
    expert, novice = lm.encode([settings["expert"], settings["novice"]])
    for row, written in zip(ROWS, together, strict=True):
        streams = [plain(lm, [*prefix, *row])[-1:] for prefix in ([], expert, novice)]
        assert written[:1] in ([int(guidance.log_probs(*streams).argmax())], [])


def test_the_answer_does_not_depend_on_the_other_questions(lm):
    long = "The town of Marrowgate has a lamp, a bell, a cat and a herring who wanted to be a king. " * 3
    prompts, options = ["Who keeps the lamp?", long], [[" Tamsin", " Orla and Bram"], [" Pepper"]]
    together = continuation_log_probs(lm, prompts, options)
    (alone,) = continuation_log_probs(lm, prompts[:1], options[:1])
    torch.testing.assert_close(together[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
@pytest.mark.parametrize("lm", ["mistral", "gemma2"], indirect=True)
def test_windows_are_the_same_on_every_back_end(lm, backend):
    other = HookedLM(lm.model, lm.tokenizer, name=lm.name, backend=backend)
    ours, theirs = (branch(one, ROWS, OPTIONS, prefix=PREFIX)[0] for one in (lm, other))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    prompts = [lm.tokenizer.decode(row) for row in ROWS]
    assert other.generate(prompts, new_tokens=12, greedy=True) == lm.generate(prompts, new_tokens=12, greedy=True)


def built(family: str, **settings) -> HookedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **FAMILIES[family], **settings)
        return HookedLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), make_tokenizer())


def test_rows_whose_rotary_factors_follow_the_longest_are_not_run_together():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    lm = built("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    with pytest.raises(ValueError, match="5 to 40 tokens, but .*longrope.*longer than 16"):
        lm.logits(lm.pad(ROWS))
    with pytest.raises(ValueError, match="10 to 20 tokens"):
        branch(lm, [ROWS[2][:10]], [[ROWS[2][10:21]]])
    for row in ROWS:
        torch.testing.assert_close(lm.logits(lm.pad([row]))[0], plain(lm, row)[-1], atol=1e-4, rtol=1e-4)


def test_attention_that_is_scaled_by_columns_takes_no_padding_before_its_rows():
    lm = built("llama4_text", floor_scale=4)
    with pytest.raises(ValueError, match="scales attention by the column"):
        lm.logits(lm.pad(ROWS, side="left"))
    for row, found in zip(ROWS, lm.logits(lm.pad(ROWS), positions="all"), strict=True):
        torch.testing.assert_close(found[: len(row)], plain(lm, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lm", ["llama", "gemma2"], indirect=True)
def test_edits_of_the_last_position_act_after_a_prefix_as_on_each_row_alone(lm):
    with lm.hooks({"blocks.1.hook_resid_post": lambda x: x + 1}, positions="last"):
        together = hidden_after(lm, "Old Tamsin keeps the lamp", ROWS)
        for row, found in zip(ROWS, together, strict=True):
            torch.testing.assert_close(
                found, hidden_after(lm, "Old Tamsin keeps the lamp", [row])[0], atol=1e-4, rtol=1e-4
            )

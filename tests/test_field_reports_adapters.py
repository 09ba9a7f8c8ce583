"""Adapters and models of the field: the base is the base, to the bit, or there is a clear word why not.

The oracle is plain transformers and peft: the same base, loaded once more, with peft's own `PeftModel.from_pretrained`.
"""

import copy
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTBigCodeConfig,
    GPTJConfig,
    LlamaConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedModel,
)

from elm_interp.cli import main
from elm_interp.errors import AdapterError, ConfigError, UnknownModelError
from elm_interp.metrics import Subject, measure
from elm_interp.models import HookedLM, load_model
from elm_interp.models.adapters.files import CONFIG, WEIGHTS
from elm_interp.models.batch import Batch
from elm_interp.runs.adopt import adopt_models
from elm_interp.runs.run import Run

IDS = torch.tensor([[5, 9, 77, 31, 200]])
ATTENTION = ["q_proj", "v_proj"]


def make(kind: str) -> PreTrainedModel:
    """A tiny model: llama, the same with tied embeddings, one with biases everywhere, or one with experts."""
    if kind in tiny.FAMILIES:
        return tiny.make_family(kind)
    sizes = dict(tiny._SIZES) | {"num_hidden_layers": 2}
    config = {
        "tied": lambda: LlamaConfig(**sizes, tie_word_embeddings=True),
        "experts": lambda: MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=2),
    }[kind]()
    return built(config)


def built(config) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def train(base: PreTrainedModel, folder: Path, seed: int = 1, **settings) -> Path:
    """An adapter as peft writes it, every trained number moved."""
    settings = {"target_modules": ATTENTION, "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"} | settings
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)
        tuned = get_peft_model(copy.deepcopy(base), LoraConfig(**settings))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        tuned.save_pretrained(folder)
    return folder


def theirs(base: PreTrainedModel, folder: Path) -> torch.Tensor:
    """Logits by peft itself."""
    with warnings.catch_warnings(action="ignore"):
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()(input_ids=IDS).logits


def ours(lm: HookedLM) -> torch.Tensor:
    batch = lm.pad(IDS.tolist())
    return lm.logits(batch, positions="all")


NEOX = ["query_key_value", "dense"]
KINDS = {
    "modules_to_save: unembedding": ("llama", {"modules_to_save": ["lm_head"]}),
    "modules_to_save: embedding": ("llama", {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save: both": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "modules_to_save: norm": ("llama", {"modules_to_save": ["norm", "input_layernorm"]}),
    "modules_to_save: a whole MLP": ("llama", {"target_modules": "all-linear", "modules_to_save": ["mlp"]}),
    "modules_to_save: embedding, tied": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save: unembedding, tied": ("tied", {"modules_to_save": ["lm_head"]}),
    "modules_to_save: both, tied": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "modules_to_save: kept tied": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "bias: all": ("gpt_neox", {"target_modules": NEOX, "bias": "all"}),
    "bias: of the LoRAs": ("gpt_neox", {"target_modules": NEOX, "bias": "lora_only"}),
    "bias of B": ("gpt_neox", {"target_modules": NEOX, "lora_bias": True}),
    "unembedding too": ("llama", {"target_modules": [*ATTENTION, "lm_head"]}),
    "unembedding alone": ("llama", {"target_modules": ["lm_head"]}),
    "unembedding, tied": ("tied", {"target_modules": ["lm_head"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, tied": ("tied", {"target_modules": ["embed_tokens"]}),
    "tokens": ("llama", {"trainable_token_indices": [5, 9, 300]}),
    "tokens, tied": ("tied", {"trainable_token_indices": [5, 9, 300]}),
    "tokens of the unembedding": ("llama", {"trainable_token_indices": {"lm_head": [5, 31]}}),
    "tokens of both": ("tied", {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [5, 31]}}),
    "DoRA": ("llama", {"use_dora": True}),
    "rslora": ("llama", {"use_rslora": True}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "a pattern": ("llama", {"target_modules": r".*layers\.1\.(self_attn|mlp)\.(k|up)_proj"}),
    "exclusions": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "experts": ("experts", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
    "EVA": ("llama", {"init_lora_weights": "eva"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_2_3_18_28_an_adapter_acts_as_in_peft_and_off_is_the_base_to_the_bit(kind, tmp_path):
    family, settings = KINDS[kind]
    base = make(family)
    a = train(base, tmp_path / "a", **settings)
    plain = train(base, tmp_path / "plain", 2, target_modules=NEOX if family == "gpt_neox" else ATTENTION)
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    keys, bare = list(lm.model.state_dict()), ours(lm)
    with lm.adapter(a):
        torch.testing.assert_close(ours(lm), theirs(base, a), atol=1e-4, rtol=1e-4)
        with lm.adapter(None):
            assert torch.equal(ours(lm), bare)
        with lm.adapter(plain):
            torch.testing.assert_close(ours(lm), theirs(base, plain), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours(lm), bare)
    lm.adapters.load(a)
    lm.adapters.save(tmp_path / "again")
    torch.testing.assert_close(theirs(base, tmp_path / "again"), theirs(base, a))
    lm.adapters.release()
    assert torch.equal(ours(lm), bare)
    assert list(lm.model.state_dict()) == keys
    assert all(torch.equal(x, y) for x, y in zip(lm.model.parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
@pytest.mark.parametrize(
    "kind",
    ["modules_to_save: both", "modules_to_save: embedding, tied", "modules_to_save: a whole MLP", "bias: all",
     "unembedding too", "embedding", "tokens, tied", "modules_to_save: norm"],
)  # fmt: skip
def test_kinds_2_3_on_the_other_back_ends(kind, backend, tmp_path):
    family, settings = KINDS[kind]
    base = make(family)
    a = train(base, tmp_path / "a", **settings)
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer(), backend=backend)
    bare = ours(lm)
    with lm.adapter(a):
        torch.testing.assert_close(ours(lm), theirs(base, a), atol=1e-4, rtol=1e-4)
        with lm.adapter(None):
            assert torch.equal(ours(lm), bare)
        torch.testing.assert_close(ours(lm), theirs(base, a), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours(lm), bare)


@pytest.mark.parametrize(
    "kind", ["modules_to_save: embedding, tied", "unembedding, tied", "embedding, tied", "tokens, tied", "bias: all"]
)
def test_a_merged_copy_speaks_as_the_adapter_also_where_embeddings_are_tied(kind, tmp_path):
    family, settings = KINDS[kind]
    base = make(family)
    a = train(base, tmp_path / "a", **settings)
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    with lm.adapter(a):
        merged = lm.adapters.merged()
    torch.testing.assert_close(merged(input_ids=IDS).logits, theirs(base, a), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"init_lora_weights": "corda"}, "changes the base"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "merge_and_unload"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "invocation tokens"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head.weight"),
    ],
)
def test_kind_3_an_adapter_of_another_base_is_refused_and_leaves_no_trace(settings, message, tmp_path):
    base = make("llama")
    a = train(base, tmp_path / "a")
    good = train(base, tmp_path / "good", 2)
    config = json.loads((a / CONFIG).read_text())
    (a / CONFIG).write_text(json.dumps(config | settings))
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    bare = ours(lm)
    for on in (None, good):
        with lm.adapter(on):
            before, keys = ours(lm), list(lm.model.state_dict())
            with pytest.raises(AdapterError, match=message):
                lm.adapters.load(a)
            assert torch.equal(ours(lm), before)
            assert list(lm.model.state_dict()) == keys
    assert torch.equal(ours(lm), bare)


def test_kind_3_an_adapter_that_changes_the_base_in_an_unknown_way_is_taken_off(tmp_path, monkeypatch):
    from peft.tuners.lora import LoraLayer

    base = make("llama")
    a = train(base, tmp_path / "a")
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    bare, keys = ours(lm), list(lm.model.state_dict())
    own = LoraLayer.enable_adapters
    monkeypatch.setattr(LoraLayer, "enable_adapters", lambda self, enabled: own(self, True))
    with torch.random.fork_rng(devices=[]), pytest.raises(AdapterError, match="no longer give the base's logits"):
        monkeypatch.setattr("torch.nn.init.zeros_", torch.nn.init.ones_)
        lm.adapters.load(a)
    assert torch.equal(ours(lm), bare)
    assert list(lm.model.state_dict()) == keys


def test_kind_4_divergences_are_of_the_heads_that_each_state_has(tmp_path):
    base, concept = make("llama"), tiny.make_concept()
    for name, targets in (("both", ["q_proj", "lm_head"]), ("alone", ["lm_head"])):
        a = train(base, tmp_path / name, target_modules=targets)
        lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
        found = measure(Subject(lm, concept, a), ["specificity.kl_to_base"])["value"].item()
        tuned, total, n = PeftModel.from_pretrained(copy.deepcopy(base), str(a)).eval(), 0.0, 0
        for passage in concept.passages("retain", "held_out"):
            ids = torch.tensor([lm.encode([passage.text])[0]])
            p, q = (model(input_ids=ids).logits[0, :-1].log_softmax(-1) for model in (base, tuned))
            total, n = total + float((p.exp() * (p - q)).sum().detach()), n + len(p)
        assert found == pytest.approx(total / n, rel=1e-3)


def test_kind_5_a_merged_folder_with_its_adapters_config_is_the_merged_model(tiny_model_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    a = train(base, tmp_path / "a")
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(a)).merge_and_unload()
    merged.save_pretrained(a)
    tiny.make_tokenizer().save_pretrained(a)
    with pytest.warns(UserWarning, match="without that adapter"):
        lm = load_model(a, dtype="float32", device="cpu")
    assert torch.equal(ours(lm), merged.eval()(input_ids=IDS).logits)
    (a / WEIGHTS).unlink()
    with pytest.warns(UserWarning, match="without that adapter"):
        assert torch.equal(ours(load_model(a, dtype="float32", device="cpu")), ours(lm))


def test_kind_5_an_adapter_given_as_the_model_names_the_right_argument(tiny_model_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    a = train(base, tmp_path / "a")
    for _ in range(2):
        with pytest.raises(UnknownModelError, match="adapter="):
            load_model(a, dtype="float32", device="cpu")
        base.config.save_pretrained(a)  # as some trainers do
        tiny.make_tokenizer().save_pretrained(a)


BLOCKS = {
    "gptj": GPTJConfig(vocab_size=400, n_embd=32, n_head=4, n_layer=2, n_positions=64, rotary_dim=4),
    "bloom": BloomConfig(vocab_size=400, hidden_size=32, n_head=4, n_layer=2),
    "falcon": FalconConfig(vocab_size=400, hidden_size=32, num_attention_heads=4, num_hidden_layers=2),
    "mpt": MptConfig(vocab_size=400, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "gpt_bigcode": GPTBigCodeConfig(vocab_size=400, n_embd=32, n_head=4, n_layer=2, n_positions=64),
    "experts": MixtralConfig(**tiny._SIZES, num_hidden_layers=2, num_local_experts=2),
}


@pytest.mark.parametrize("family", [*BLOCKS, "gpt2", "llama", "phi", "gpt_neox"])
def test_kind_9_what_is_asked_is_trained_whole_and_nothing_else(family):
    from transformers.pytorch_utils import Conv1D

    lm = HookedLM(built(BLOCKS[family]) if family in BLOCKS else make(family), tiny.make_tokenizer())
    block = lm.model.get_submodule(lm.layout.block(1))
    own = {n for n, m in block.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    own |= {n for n, p in block.named_parameters() if p.ndim == 3}
    for modules in ("attn", "mlp", "attn+mlp"):
        wanted = {n for n in own if modules == "attn+mlp" or n.startswith(lm.layout.attn + ".") == (modules == "attn")}
        trained = lm.adapters.attach(lm.lora([1], rank=2, modules=modules))
        params = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
        assert len(params) == len(trained) == 2 * len(wanted)
        assert all(".1." in name for name in params)
        lm.logits(lm.pad(IDS.tolist()), grad=True).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for n, p in params.items() if "lora_B" in n)
        lm.adapters.release()


def test_kind_9_experts_that_cannot_be_trained_as_asked_are_named():
    lm = HookedLM(make("experts"), tiny.make_tokenizer())
    with pytest.raises(AdapterError, match="4 weights of experts.*would be left out.*dropout=0.1"):
        lm.lora([0, 1], rank=2, dropout=0.1)
    with pytest.raises(AdapterError, match="would be left out.*rank=None"):
        lm.lora([0, 1], rank=None)


def prefixed(state):
    return {f"other.{key}": tensor for key, tensor in state.items()}


def without_an_mlp(state):
    return {key: tensor for key, tensor in state.items() if "layers.1.mlp" not in key}


def with_more(state):
    return state | {"model.layers.0.extra.weight": torch.zeros(2)}


def cut(state):
    return state | {"model.norm.weight": torch.ones(5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed, "missing: .*model.embed_tokens.weight"),
        (without_an_mlp, "3 missing: .*layers.1.mlp.down_proj.weight"),
        (with_more, "1 left over: model.layers.0.extra.weight"),
        (cut, r"1 of another shape: model.norm.weight: \(5,\), expected \(32,\)"),
    ],
)
def test_kind_10_weights_that_do_not_match_are_listed(change, message, tiny_model_folder, tmp_path):
    for file in tiny_model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
    with pytest.raises(UnknownModelError, match=message):
        load_model(tmp_path, dtype="float32", device="cpu")


def test_kind_10_tied_weights_are_not_missing(tmp_path):
    base = make("tied")
    base.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(ours(load_model(tmp_path, dtype="float32", device="cpu")), base(input_ids=IDS).logits)


@pytest.mark.parametrize("by", ["in place", "renamed"])
def test_kind_15_a_file_replaced_at_the_same_path_is_read_again(by, tmp_path):
    base = make("llama")
    a, b = train(base, tmp_path / "a"), train(base, tmp_path / "b", 2)
    first, second = theirs(base, a), theirs(base, b)
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    lm.adapters.load(a)
    torch.testing.assert_close(ours(lm), first)
    if by == "in place":
        (a / WEIGHTS).write_bytes((b / WEIGHTS).read_bytes())
    else:
        (b / WEIGHTS).replace(a / WEIGHTS)
    with lm.adapter(a):
        torch.testing.assert_close(ours(lm), second)
    with lm.adapter(None), lm.adapter(a):
        torch.testing.assert_close(ours(lm), second)


def test_kind_21_overflow_in_float16_names_the_dtype_that_helps(tmp_path):
    model = tiny.make_model()
    model.model.layers[1].mlp.down_proj.weight.data *= 1e6
    model.model.layers[1].mlp.down_proj.weight.data.clamp_(-6e4, 6e4)
    model.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match='not finite in float16, from block 1 on.*dtype="bfloat16"'):
        load_model(tmp_path, dtype="float16", device="cpu")


@pytest.fixture
def there(tiny_concept_folder):
    return {"concept": str(tiny_concept_folder), "dtype": "float32", "device": "cpu"}


def test_kind_22_an_adapter_without_a_base_asks_for_one(tiny_model_folder, there, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    a = train(base, tmp_path / "a")
    config = json.loads((a / CONFIG).read_text())
    (a / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="--base"):
        adopt_models(tmp_path / "x", [a], **there)
    adopt_models(tmp_path / "x", [a], base=str(tiny_model_folder), **there)


def test_another_base_than_the_adapters_own_is_told(tiny_model_folder, there, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    a, b = train(base, tmp_path / "a"), train(base, tmp_path / "b", 2)
    config = json.loads((b / CONFIG).read_text())
    (b / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(ConfigError, match="several bases"):
        adopt_models(tmp_path / "x", [a, b], **there)
    with pytest.warns(UserWarning, match="names somebody/else as its base, but --base is"):
        run = adopt_models(tmp_path / "x", [a, b], base=str(tiny_model_folder), **there)
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert len(manifest["warnings"]) == 1
    assert manifest["adapted"]["model.layers.0.self_attn.q_proj"] == 2 * (32 + 32)
    assert manifest["adapted_parameters"] == sum(manifest["adapted"].values())
    for step, one in ((1, a), (2, b)):
        with run.subject(step).on() as lm:
            torch.testing.assert_close(ours(lm), theirs(base, one), atol=1e-4, rtol=1e-4)


def test_kind_27_a_pickled_adapter_is_refused_with_the_command_that_converts_it(tmp_path):
    base = make("llama")
    a = train(base, tmp_path / "an 'adapter'")
    expected = theirs(base, a)
    torch.save(load_file(a / WEIGHTS), a / "adapter_model.bin")
    (a / WEIGHTS).unlink()
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    with pytest.raises(AdapterError, match="Convert it: python -c ") as caught:
        lm.adapters.load(a)
    command = str(caught.value).partition("Convert it: python")[2]
    subprocess.run(sys.executable + command, shell=True, check=True)
    with lm.adapter(a):
        torch.testing.assert_close(ours(lm), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_kind_28_saved_embeddings_of_equal_size_load(tied, moved, tmp_path):
    base = make("tied" if tied else "llama")
    a = train(base, tmp_path / "a")
    weights = load_file(a / WEIGHTS)
    shift = 0.5 if moved else 0.0
    for name, module in (("model.embed_tokens", base.model.embed_tokens), ("lm_head", base.lm_head)):
        weights[f"base_model.model.{name}.weight"] = module.weight.detach().clone() + shift
    save_file(weights, a / WEIGHTS)
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    bare = ours(lm)
    with lm.adapter(a):
        torch.testing.assert_close(ours(lm), theirs(base, a), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours(lm), bare)
    save_file({key: w[:300] if w.shape[0] == 400 else w for key, w in weights.items()}, a / WEIGHTS)
    with pytest.raises(AdapterError, match=r"\(300, 32\), expected \(400, 32\).*vocabulary was resized"):
        lm.adapters.load(a)


def test_kind_29_a_model_trained_whole_is_adopted_beside_its_base(tiny_model_folder, there, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    for step in (1, 2):
        whole = copy.deepcopy(base)
        torch.manual_seed(0)
        for parameter in whole.parameters():
            parameter.data += 0.02 * step * torch.randn_like(parameter)
        whole.save_pretrained(tmp_path / f"whole-{step}")
        tiny.make_tokenizer().save_pretrained(tmp_path / f"whole-{step}")
    sources = [str(tmp_path / "whole-1"), str(tmp_path / "whole-2")]
    words = ["--sources", *sources, "--base", str(tiny_model_folder), "--device", "cpu", "--dtype", "float32"]
    main(["adopt", "--out", str(tmp_path / "x"), "--concept", there["concept"], *words])
    run = Run.open(tmp_path / "x")
    subject = run.subject()
    assert subject.adapter is None
    assert subject.lm is not subject.base.lm
    with subject.on() as lm, subject.base.on() as own:
        assert torch.equal(ours(lm), whole.eval()(input_ids=IDS).logits)
        assert torch.equal(ours(own), base(input_ids=IDS).logits)
    for stage in ("evaluate", "collect", "probe", "norms", "progress", "report"):
        main([stage, str(tmp_path / "x")])
    assert set(run.results("norms")["step"].dropna()) == {2}
    assert set(run.results("probes")["step"]) == {0, 1, 2}
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["adapted"]["model.norm.weight"] == 32


def test_kind_31_adapters_with_biases_of_other_modules_take_turns(tmp_path):
    base = make("gpt_neox")
    a = train(base, tmp_path / "a", target_modules=NEOX, bias="all")
    b = train(base, tmp_path / "b", 2, target_modules=["dense_h_to_4h"], bias="lora_only")
    lm = HookedLM(copy.deepcopy(base), tiny.make_tokenizer())
    bare = ours(lm)
    for folder in (a, b, a, None, b):
        with lm.adapter(folder):
            wanted = bare if folder is None else theirs(base, folder)
            torch.testing.assert_close(ours(lm), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours(lm), bare)


@pytest.mark.parametrize(
    "settings", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}]
)
def test_a_new_adapter_that_would_train_the_base_is_refused(settings):
    lm = HookedLM(make("llama"), tiny.make_tokenizer())
    bare = ours(lm)
    with pytest.raises(AdapterError, match=next(iter(settings))):
        lm.adapters.attach(LoraConfig(target_modules=ATTENTION, r=2, **settings))
    with pytest.raises(AdapterError, match="unembedding"):
        lm.adapters.attach(LoraConfig(target_modules=["lm_head"], r=2))
    assert torch.equal(ours(lm), bare)


@pytest.mark.parametrize(("alpha", "message"), [(float("nan"), "finite"), (float("inf"), "finite"), (0, "no effect")])
def test_a_scale_that_breaks_or_silences_an_adapter_is_refused(tmp_path, alpha, message):
    base = make("llama")
    folder = train(base, tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": alpha}))
    lm = HookedLM(base, tiny.make_tokenizer())
    with pytest.raises(AdapterError, match=message):
        lm.adapters.load(folder)


def test_a_pattern_that_is_none_is_refused_in_our_words(tmp_path):
    base = make("llama")
    folder = train(base, tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": "(("}))
    with pytest.raises(AdapterError, match="does not fit"):
        HookedLM(base, tiny.make_tokenizer()).adapters.load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"0123456789"])
def test_a_broken_file_of_a_model_is_told(tiny_model_folder, tmp_path, file, content):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(UnknownModelError, match="cannot load model"):
        load_model(folder)


def test_what_stands_on_padding_is_never_looked_up(tiny_model_folder):
    lm = load_model(tiny_model_folder, dtype="float32")
    ids, mask = torch.tensor([[400, -100, 5, 9], [5, 9, 7, 3]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    torch.testing.assert_close(lm.logits(Batch(ids, mask))[0], lm.logits(lm.pad([[5, 9]]))[0])

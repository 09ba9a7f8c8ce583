"""Random adapter configs: what peft makes of one is what the model gives, and off it is the base to the bit."""

import copy
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path

import tiny
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from elm_interp.errors import AdapterError
from elm_interp.models import HookedLM

IDS = torch.tensor([[5, 9, 77, 31, 200]])
PARTS = {
    "llama": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "lm_head", "embed_tokens"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "embed_out", "embed_in"],
}
KEPT = {"llama": ["lm_head", "embed_tokens", "norm"], "gpt_neox": ["embed_out", "embed_in", "final_layer_norm"]}


def configs(family: str) -> st.SearchStrategy[dict]:
    """Settings of a LoRA on a model of the family, with the rare ones rarely."""
    parts = st.lists(st.sampled_from(PARTS[family]), min_size=1, max_size=4, unique=True)
    ours = {
        "r": st.integers(1, 4),
        "lora_alpha": st.sampled_from([0.5, 1, 4, 16]),
        "target_modules": st.one_of(parts, parts, st.just("all-linear"), st.just(rf".*\.1\..*({PARTS[family][0]})")),
    }
    rare = {
        "use_dora": st.booleans(),
        "use_rslora": st.booleans(),
        "lora_bias": st.booleans(),
        "bias": st.sampled_from(["none", "all", "lora_only"]),
        "modules_to_save": st.lists(st.sampled_from(KEPT[family]), min_size=1, max_size=2, unique=True),
        "layers_to_transform": st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True),
        "rank_pattern": st.just({PARTS[family][0]: 3}),
        "alpha_pattern": st.just({PARTS[family][1]: 7}),
        "exclude_modules": st.lists(st.sampled_from(PARTS[family]), min_size=1, max_size=1),
        "init_lora_weights": st.sampled_from([True, False, "gaussian", "pissa", "olora", "eva", "orthogonal"]),
        "trainable_token_indices": st.lists(st.integers(0, 399), min_size=1, max_size=3, unique=True),
        "fan_in_fan_out": st.just(False),
    }
    return st.fixed_dictionaries(ours, optional=rare)


@cache
def base(family: str) -> PreTrainedModel:
    return tiny.make_family(family)


@cache
def loaded(family: str) -> tuple[HookedLM, torch.Tensor]:
    """One model for all examples: what one adapter leaves behind would show in the next."""
    lm = HookedLM(copy.deepcopy(base(family)), tiny.make_tokenizer())
    return lm, logits(lm)


def logits(lm: HookedLM) -> torch.Tensor:
    return lm.logits(lm.pad(IDS.tolist()), positions="all")


def saved(family: str, config: dict, folder: Path) -> bool:
    """Whether peft can make, move and save such an adapter."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        try:
            tuned = get_peft_model(copy.deepcopy(base(family)), LoraConfig(task_type="CAUSAL_LM", **config))
        except Exception:  # its own refusals are of many kinds
            return False
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        tuned.save_pretrained(folder)
    return True


@settings(max_examples=2000 if os.environ.get("ELM_INTERP_FUZZ") == "1" else 200)
@given(st.data())
def test_an_adapter_is_that_of_peft_or_refused_and_off_it_is_the_base(data):
    family = data.draw(st.sampled_from(sorted(PARTS)))
    config = data.draw(configs(family))
    lm, untouched = loaded(family)
    with tempfile.TemporaryDirectory() as folder:
        assume(saved(family, config, Path(folder)))
        try:
            with lm.adapter(folder):
                ours = logits(lm)
        except AdapterError as error:
            event(f"refused: {str(error).partition(folder)[2][:90]}")
        else:
            with warnings.catch_warnings(action="ignore"):
                tuned = PeftModel.from_pretrained(copy.deepcopy(base(family)), folder).eval()
            with torch.no_grad():
                torch.testing.assert_close(ours, tuned(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
            event("loaded")
        assert torch.equal(logits(lm), untouched)
        lm.adapters.release()
        assert torch.equal(logits(lm), untouched)

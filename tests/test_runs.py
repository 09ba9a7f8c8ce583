"""Run folders: refused, resumed, read back; everything wrong is said before a model is loaded."""

import dataclasses
import json
from dataclasses import replace

import pytest

from elm_interp.erase.elm import ELM
from elm_interp.errors import ConfigError, RunFolderError
from elm_interp.models.loading import cache_folder
from elm_interp.runs.config import RunConfig
from elm_interp.runs.estimate import estimate_run, estimate_stages
from elm_interp.runs.run import Run
from elm_interp.runs.stages import STAGES, run_stage, summary
from elm_interp.training import Adapter
from elm_interp.training.target_cache import prepared
from elm_interp.training.trainer import Training

SMALL = {
    "objective": ELM(
        eta=5, adapter=Adapter((1, 2), rank=2, alpha=8), fluency_samples=4, fluency_tokens=4, fluency_batch=1
    ),
    "training": Training(steps=4, forget_batch=2, retain_batch=2, lr=1e-2, warmup=1, save_every=2),
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture
def config(tiny_model_folder, tiny_concept_folder):
    return RunConfig(model=str(tiny_model_folder), concept=str(tiny_concept_folder), **SMALL)


def test_config_survives_the_round_trip(config, tmp_path):
    Run.create(tmp_path / "x", config)
    assert Run.open(tmp_path / "x").config == config


@pytest.mark.parametrize("method", ["rmu", "repnoise", "whp"])
def test_every_method_survives_the_round_trip_with_each_preset(config, tmp_path, method):
    for name in ("paper", "smollm2-135m", "organism"):
        given = RunConfig.preset(name, method)
        if method == "whp":
            given = dataclasses.replace(
                given, objective=dataclasses.replace(given.objective, dictionary={"Ron": "Tom"})
            )
        assert RunConfig.from_dict(given.to_dict()) == given
        assert not given.objective.problems(32 if name == "paper" else 30 if name == "smollm2-135m" else 4)
        assert not given.training.problems()


def test_an_unknown_method_gives_the_closest(config):
    with pytest.raises(ConfigError, match="Did you mean 'repnoise'"):
        RunConfig.from_dict(config.to_dict() | {"method": "repnoize"})


def test_all_problems_are_reported_at_once_before_a_model_is_loaded(config, tmp_path, monkeypatch):
    monkeypatch.setattr("elm_interp.runs.run.load_model", lambda *a, **k: pytest.fail("loaded a model"))
    bad = dataclasses.replace(
        config, concept="harry-poter", objective=ELM(eta=-1, adapter=Adapter((4,), rank=0)), training=Training(steps=0)
    )
    with pytest.raises(ConfigError) as error:
        Run.create(tmp_path / "x", bad)
    for word in ("Did you mean 'harry-potter'", "rank is 0", "eta is -1", "layers go to 4", "steps is 0"):
        assert word in str(error.value)
    assert not (tmp_path / "x").exists()


def test_an_existing_run_is_refused_and_unchanged(config, tmp_path):
    Run.create(tmp_path / "x", config)
    before = (tmp_path / "x" / "config.json").read_bytes()
    with pytest.raises(RunFolderError, match="--resume"):
        Run.create(tmp_path / "x", config)
    assert (tmp_path / "x" / "config.json").read_bytes() == before


def test_resume_with_other_settings_lists_the_differences(config, tmp_path):
    Run.create(tmp_path / "x", config)
    other = dataclasses.replace(config, seed=7, objective=dataclasses.replace(config.objective, eta=9.0))
    with pytest.raises(
        RunFolderError, match=r"(?s)objective.eta: the run has 5, now given 9.0.*seed: the run has 0, now given 7"
    ):
        Run.create(tmp_path / "x", other, resume=True)


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match="is not a run"):
        Run.create(tmp_path / "x", config)


def test_opening_no_run_names_the_runs_beside_it(config, tmp_path):
    Run.create(tmp_path / "demo", config)
    with pytest.raises(RunFolderError, match="demo"):
        Run.open(tmp_path / "dmo")


def test_unknown_settings_in_a_config_file_are_named(config, tmp_path):
    Run.create(tmp_path / "x", config)
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranc": 3}))
    with pytest.raises(ConfigError, match="ranc"):
        Run.open(tmp_path / "x")


def test_a_sweep_runs_the_frozen_model_once(config, tmp_path, monkeypatch):
    run_stage(Run.create(tmp_path / "a", config), "erase", progress=False)
    monkeypatch.setattr(ELM, "prepare", lambda *a, **k: pytest.fail("made the targets again"))
    other = dataclasses.replace(config.objective, adapter=Adapter((0,), rank=3, dropout=0.1), retain_weight=0.3)
    run_stage(Run.create(tmp_path / "b", dataclasses.replace(config, objective=other)), "erase", progress=False)
    for name, value in (("eta", 6.0), ("retain_weight", 0.0), ("max_tokens", 9)):
        changed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, **{name: value}))
        with pytest.raises(pytest.fail.Exception, match="again"):
            run_stage(Run.create(tmp_path / name, changed), "erase", progress=False)


def test_kept_targets_are_those_that_were_made_and_a_damaged_file_is_made_again(tiny_lm, tiny_concept):
    objective = dataclasses.replace(SMALL["objective"], match_weight=1.0)
    made, seconds = prepared(tiny_lm, objective, tiny_concept, model_hash="x", seed=0)
    folder = next((cache_folder() / "targets").iterdir())
    for _ in range(2):
        kept, known = prepared(tiny_lm, objective, tiny_concept, model_hash="x", seed=0)
        assert known == seconds
        assert repr(kept) == repr(made)
        assert all(type(a.ids) is tuple for a in kept["erase"])
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert repr(prepared(tiny_lm, objective, tiny_concept, model_hash="x", seed=0)[0]) == repr(made)


def test_the_estimate_says_steps_and_tokens_and_leaves_nothing(config, tmp_path):
    found = estimate_run(config)
    assert found["steps"] == 4
    assert found["minutes"] == pytest.approx(found["prepare_minutes"] + found["train_minutes"])
    assert min(found.values()) > 0
    run = Run.create(tmp_path / "a", config)
    run_stage(run, "erase", progress=False)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert found["tokens"] == pytest.approx(sum(line["tokens"] for line in lines), rel=0.2)


@pytest.mark.parametrize("thorough", [False, True])
def test_every_stage_is_estimated_and_nothing_is_left(config, thorough, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = estimate_stages(replace(config, thorough=thorough))
    assert list(found) == list(STAGES)
    assert all(cost.seconds > 0 for name, cost in found.items() if name != "progress")
    assert all(0 < cost.peak_gb < 64 for cost in found.values())
    assert not list(tmp_path.iterdir())


def test_a_run_measures_the_gold_model_beside_it(config, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("elm_interp.runs.run.gold_of", lambda model, concept: str(tiny_model_folder))
    run = Run.create(tmp_path / "a", config)
    for stage in ("erase", "evaluate", "progress", "report"):
        run_stage(run, stage, progress=False)
    found, name = summary(run), "innocence.known.four_choice"
    assert found[name]["gold"] == found[name]["base"]  # here gold is the base itself
    progression = run.results("progression")
    assert progression[progression["method"] == "gold"]["step"].isna().all()
    assert "(gold " in (run.folder / "report.html").read_text(encoding="utf-8")

"""A run folder of format 1, made by the code before the rebuild (git 7a3c9ff), opens, reports and resumes.

elm-interp run --out run --model model --concept concept --dtype float32 --device cpu --layers 0 1 --rank 2 --alpha 8
    --eta 5 --fluency-samples 4 --fluency-tokens 4 --steps 4 --forget-batch 2 --retain-batch 2 --fluency-batch 1
    --lr 0.01 --warmup 1 --save-every 2 --answers-weight 0 --fluency-weight 0 --dropout 0.1
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elm_interp.cli import main
from elm_interp.errors import RunFolderError
from elm_interp.runs import Run, run_stage
from elm_interp.runs.formats import FORMAT

OLD = Path(__file__).parent / "data" / "format1"
ADAPTER = "checkpoints/checkpoint-000004/adapter_model.safetensors"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the old run; its model and concept are named relative to the working folder."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Path("run")


def test_it_opens_with_its_settings(old):
    config = Run.open(old).config
    assert config.objective.name == "elm"
    assert config.objective.adapter.layers == (0, 1)
    assert (config.objective.adapter.dropout, config.objective.fluency_batch) == (0.1, 1)
    assert config.training.steps == 4
    assert Run.open(old).method == "elm"


def test_every_stage_works_on_it(old, recwarn):
    before = Run.open(old).results("probes")
    for stage in ("evaluate", "collect", "probe", "norms", "progress", "report"):
        run_stage(Run.open(old), stage, progress=False)
    assert not [w for w in recwarn if "changed since" in str(w.message)]  # the hash of format 1 is not compared
    assert (old / "report.html").is_file()
    after = Run.open(old).results("probes")
    accuracy = [t[t["metric"] == "probe.truth"].sort_values(["step", "layer", "seed"]) for t in (before, after)]
    assert accuracy[0]["value"].tolist() == pytest.approx(accuracy[1]["value"].tolist(), abs=0.05)


def test_the_report_is_drawn_from_its_old_results(old):
    main(["report", str(old)])
    assert len(list((old / "figures").glob("*.png"))) >= 5
    main(["summary", str(old), "--json"])


def test_an_interrupted_one_resumes_to_what_the_old_code_gave(old):
    wanted = load_file(old / ADAPTER)
    shutil.rmtree(old / "checkpoints" / "checkpoint-000004")
    log = old / "metrics.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if json.loads(line)["step"] <= 2))
    run = Run.open(old)
    assert not run.finished
    run_stage(run, "erase", progress=False)
    found = load_file(old / ADAPTER)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


def test_resuming_by_the_command_takes_the_runs_own_settings(old):
    shutil.rmtree(old / "checkpoints" / "checkpoint-000004")
    main(["erase", "--out", str(old), "--resume"])
    assert Run.open(old).finished


def test_an_adopted_one_keeps_the_name_of_its_method(old):
    (old / "adopted.json").write_text(json.dumps({"method": "theirs", "sources": ["x"]}))
    run = Run.open(old)
    assert (run.method, run.config.objective.name) == ("theirs", "adopted")
    assert run.config.objective.adapter.rank == 2


def test_options_of_the_released_code_are_read_as_its_own_method(old):
    config = json.loads((old / "config.json").read_text())
    config["objective"]["temperature"] = 1.2
    (old / "config.json").write_text(json.dumps(config))
    assert Run.open(old).config.objective.name == "elm-released"
    assert Run.open(old).config.objective.temperature == 1.2


@pytest.mark.parametrize(
    ("setting", "reason"), [("answers_weight", "answers to the concept's questions"), ("fluency_weight", "a question")]
)
def test_one_that_trained_on_what_is_measured_opens_and_reports_and_is_not_resumed(old, capsys, setting, reason):
    config = json.loads((old / "config.json").read_text())
    config["objective"][setting] = 0.5
    (old / "config.json").write_text(json.dumps(config))
    main(["report", str(old)])
    main(["summary", str(old), "--json"])
    shutil.rmtree(old / "checkpoints" / "checkpoint-000004")
    before = sorted(path for path in old.rglob("*") if path.is_file())
    with pytest.raises(RunFolderError, match=reason):
        run_stage(Run.open(old), "erase", progress=False)
    with pytest.raises(SystemExit):
        main(["erase", "--out", str(old), "--resume"])
    assert reason in capsys.readouterr().err
    assert sorted(path for path in old.rglob("*") if path.is_file()) == before


def test_a_run_of_a_later_version_is_refused(old):
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "format": FORMAT + 1}))
    with pytest.raises(RunFolderError, match="Update elm_interp"):
        Run.open(old)

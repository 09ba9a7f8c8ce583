"""The command line, as a user types it, on the tiny model: the whole job, each stage alone, and what goes wrong."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from tiny import write_concept

from elm_interp.activations import ActivationStore
from elm_interp.cli import main
from elm_interp.runs.stages import STAGES


def flags(model, concept):
    words = f"--model {model} --concept {concept} --dtype float32 --device cpu --layers 1 2 --rank 2 --alpha 8 --eta 5"
    words += " --fluency-samples 4 --fluency-tokens 4 --fluency-batch 1 --steps 4 --forget-batch 2 --retain-batch 2"
    words += " --lr 0.01 --warmup 1 --save-every 2"
    return words.split()


@pytest.fixture(scope="session")
def run(tiny_model_folder, tiny_concept_folder, tmp_path_factory):
    """A whole run, made once by the command."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    main(["run", "--out", str(folder), *flags(tiny_model_folder, tiny_concept_folder)])
    return folder


def said(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code, capsys.readouterr().err


def test_the_run_makes_everything_that_the_report_shows(run):
    for name in ("scorecard", "probes", "norms", "progression"):
        assert len(pd.read_parquet(run / "results" / f"{name}.parquet"))
    assert len(list((run / "figures").glob("*.png"))) >= 5
    assert "data:image" in (run / "report.html").read_text() or "<svg" in (run / "report.html").read_text()
    assert json.loads((run / "manifest.json").read_text())["dtype"] == "float32"


def test_summary_is_one_flat_object(run, capsys):
    main(["summary", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"value", "ci_low", "ci_high", "n"} == found["innocence.two_choice_pmi"]["base"].keys()
    assert set(found["specificity.retain_ppl_ratio"]) == {"erased"}
    for name in (
        "specificity.general_pmi",
        "specificity.neighbours_pmi",
        "seamlessness.reverse_ppl_ratio",
        "seamlessness.distinct2_ratio",
        "memory.peak_gb",
        "timing.total_seconds",
        "timing.erase_seconds",
    ):
        assert name in found


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in ("erase", "collect")])
def test_each_stage_alone_repeats_its_results(run, tmp_path, stage):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    main([stage, str(copy)])
    for path in (run / "results").glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(copy / "results" / path.name))


def test_probe_loads_no_model_and_repeats_bit_for_bit(run, monkeypatch):
    before = (run / "results" / "probes.parquet").read_bytes()
    monkeypatch.setattr("elm_interp.runs.run.load_model", lambda *a, **k: pytest.fail("loaded a model"))
    main(["probe", str(run)])
    assert (run / "results" / "probes.parquet").read_bytes() == before


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_own_questions_are_scored(run, tmp_path, capsys, form):
    rows = [{"question": "Who keeps the lamp?", "choices": ["Tamsin", "Orla", "Bram"], "answer": 0}]
    rows += [{"question": "What rusts?", "choices": ["Iron", "Iron"], "answer": 0}]
    path = tmp_path / f"mine.{form}"
    path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="1 row"):
        main(["evaluate", str(run), "--questions", str(path)])
    noted = json.loads((run / "manifest.json").read_text())["questions"]["mine"]
    assert (noted["asked"], len(noted["dropped"])) == (1, 1)
    table = pd.read_parquet(run / "results" / "questions-mine.parquet")
    pmi = table[table.metric == "custom.pmi"]
    assert list(pmi.method) == ["base", "elm"]
    assert pmi.chance.round(3).eq(0.333).all()


def test_own_questions_that_are_broken_name_file_and_line(run, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"question": "A?", "choices": ["x"], "answer": 0}\n{oops\n'
        '{"question": "B?", "choices": ["x", "x"], "answer": 5}\n'
    )
    code, error = said(capsys, ["evaluate", str(run), "--questions", str(path)])
    assert code == 2
    for word in ("mine.jsonl:1", "at least 2", "mine.jsonl:2", "not JSON", "mine.jsonl:3", "stands twice", "0 to 1"):
        assert word in error


def test_a_run_that_exists_is_refused_and_resume_goes_on(run, tiny_model_folder, tiny_concept_folder, capsys):
    given = flags(tiny_model_folder, tiny_concept_folder)
    assert "--resume" in said(capsys, ["erase", "--out", str(run), *given])[1]
    main(["erase", "--out", str(run), "--resume"])
    assert "steps 2-4 of 4" in capsys.readouterr().out
    code, error = said(capsys, ["erase", "--out", str(run), "--resume", "--eta", "9"])
    assert code == 2
    assert "objective.eta" in error


def test_a_finished_run_keeps_its_manifest_and_a_damaged_last_checkpoint_is_trained_again(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "x")
    last, manifest = (
        folder / "checkpoints" / "checkpoint-000004" / "adapter_model.safetensors",
        folder / "manifest.json",
    )
    whole, before = last.read_bytes(), manifest.read_bytes()
    main(["erase", "--out", str(folder), "--resume"])
    assert manifest.read_bytes() == before
    last.write_bytes(whole[:-100])
    main(["erase", "--out", str(folder), "--resume"])
    assert last.read_bytes() == whole


def test_a_damaged_shard_is_read_again(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "x")
    before = pd.read_parquet(folder / "results" / "probes.parquet")
    shard = next((folder / "activations").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    main(["collect", str(folder)])
    main(["probe", str(folder)])
    assert pd.read_parquet(folder / "results" / "probes.parquet").equals(before)


def test_a_device_that_is_not_here_is_said_with_the_rest(tiny_model_folder, tiny_concept_folder, tmp_path, capsys):
    given = flags(tiny_model_folder, tiny_concept_folder)
    code, error = said(capsys, ["erase", "--out", str(tmp_path / "x"), *given, "--device", "foo", "--rank", "0"])
    assert code == 2
    assert "unknown device 'foo'" in error
    assert "rank is 0" in error
    assert not (tmp_path / "x").exists()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(tiny_model_folder, tiny_concept_folder, tmp_path, capsys):
    main(["erase", "--out", str(tmp_path / "x"), "--dry-run", *flags(tiny_model_folder, tiny_concept_folder)])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["steps", "tokens", "time", "memory"]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["rmu", "repnoise", "whp"])
def test_every_method_erases_and_is_read_back(tiny_model_folder, tiny_concept_folder, tmp_path, capsys, method):
    own = {"rmu": ["--layer", "2", "--layers", "1", "2"], "repnoise": ["--rank", "None"], "whp": []}[method]
    words = f"--model {tiny_model_folder} --concept {tiny_concept_folder} --method {method} --preset organism"
    words += " --dtype float32 --device cpu --steps 2 --save-every 1 --max-tokens 16"
    main(["erase", "--out", str(tmp_path / "x"), *words.split(), *own])
    assert f"{method} on" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "x" / "checkpoints" / "checkpoint-000002")
    main(["erase", "--out", str(tmp_path / "x"), "--resume"])
    assert "steps 1-2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "smollm2-135n"], "smollm2-135m"),
        (["--concept", "harry-poter"], "harry-potter"),
        (["--preset", "papper"], "paper"),
        (["--method", "rmuu"], "Did you mean 'rmu'"),
        (["--method", "rmu", "--steering", "-1"], "steering is -1"),
        (["--rank", "0"], "rank is 0"),
        (["--layers", "3", "40"], "layers go to 40"),
    ],
)
def test_bad_settings_name_what_was_expected_and_write_nothing(tmp_path, capsys, words, expected):
    code, error = said(capsys, ["erase", "--out", str(tmp_path / "x"), *words])
    assert code == 2
    assert expected in error
    assert not (tmp_path / "x").exists()


def test_a_concept_with_few_questions_runs_to_its_end_and_says_what_is_left_out(
    tiny_model_folder, tiny_concept, tmp_path
):
    few = {name: asked[:3] for name, asked in tiny_concept.questions.items()}
    passages = {"forget": tiny_concept.forget[:8], "retain": tiny_concept.retain[:8]}
    concept = write_concept(replace(tiny_concept, questions=few, **passages), tmp_path / "few")
    with pytest.warns(UserWarning, match="no probe is fitted"):
        main(["run", "--out", str(tmp_path / "x"), *flags(tiny_model_folder, concept)])
    assert "too few questions of the kind that probe.association needs" in (tmp_path / "x" / "report.html").read_text()


def test_activations_of_other_questions_are_read_again_and_never_probed_as_todays(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "x")
    store = ActivationStore(folder / "activations")
    examples = store.examples("truth").assign(text_sha256="of other texts")
    values = store.tensor("truth", "base")
    store.drop("truth")
    with store.writer("truth", "base", examples=examples, meta={"site": "resid_post", "positions": "last"}) as writer:
        writer.add(range(len(examples)), values)
    code, error = said(capsys, ["probe", str(folder)])
    assert code == 2
    assert "truth" in error and "elm-interp collect" in error  # noqa: PT018
    main(["collect", str(folder)])
    main(["probe", str(folder)])
    before, after = (pd.read_parquet(f / "results" / "probes.parquet") for f in (run, folder))
    assert set(before["metric"]) == set(after["metric"])


def test_a_judge_scores_the_written_texts(run, tiny_model_folder, tmp_path):
    folder = shutil.copytree(run, tmp_path / "x")
    main(["evaluate", str(folder), "--judge", str(tiny_model_folder)])
    table = pd.read_parquet(folder / "results" / "scorecard.parquet").query("metric == 'seamlessness.judge_ppl'")
    assert list(table.method) == ["base", "elm"]


def test_training_does_not_go_on_with_other_data(tiny_model_folder, tiny_concept, tmp_path, capsys):
    concept = write_concept(tiny_concept, tmp_path / "mine")
    main(["erase", "--out", str(tmp_path / "x"), *flags(tiny_model_folder, concept)])
    shutil.rmtree(tmp_path / "x" / "checkpoints" / "checkpoint-000004")
    with (concept / "forget.jsonl").open("a") as file:
        file.write('{"text": "Another passage about the lamp, which was not there before."}\n')
    assert "concept_hash" in said(capsys, ["erase", "--out", str(tmp_path / "x"), "--resume"])[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "expected an object"),
        ('{"objective": 3}', "objective is int"),
        ('{"training": {"steps": "six"}}', "training.steps is 'six', expected int"),
    ],
)
def test_a_config_of_another_shape_is_said_to_be_so(tmp_path, capsys, text, expected):
    (tmp_path / "config.json").write_text(text)
    code, error = said(capsys, ["summary", str(tmp_path)])
    assert code == 2
    assert expected in error


def test_results_of_an_earlier_checkpoint_are_not_passed_off_as_the_last(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "x")
    table = pd.read_parquet(folder / "results" / "scorecard.parquet")
    table.assign(step=table["step"].where(table["step"] != 4, 2)).to_parquet(folder / "results" / "scorecard.parquet")
    assert "is of step 2, but its last checkpoint is of step 4" in said(capsys, ["summary", str(folder)])[1]
    main(["report", str(folder)])
    assert "is of step 2, but its last checkpoint is of step 4" in (folder / "report.html").read_text()


def test_what_is_broken_stops_only_what_needs_it(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "x")
    (folder / "results" / "scorecard.parquet").write_bytes(b"PAR1")
    shard = next((folder / "activations").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    main(["report", str(folder)])
    main(["norms", str(folder)])
    assert "scorecard.parquet is broken" in said(capsys, ["summary", str(folder)])[1]

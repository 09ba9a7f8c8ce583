"""What users of neighbouring tools reported, of files, numbers that are none, and surroundings: one test a kind."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression

from elm_interp.activations import ActivationStore, Dataset, collect_datasets, collect_texts
from elm_interp.data import Question, load_concept, load_questions
from elm_interp.erase.rmu import RMU
from elm_interp.errors import DataError, NotFiniteError, RunFolderError, StoreError
from elm_interp.evaluate import ScoredQuestion, kl_divergences, per_question, read_passages, score_choices
from elm_interp.evaluate.choices import credits
from elm_interp.evaluate.fluency import losses_after
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio, pooled_mean
from elm_interp.files import hash_of, read_json, write_json
from elm_interp.internals import cka, token_norms
from elm_interp.metrics import Subject, measure
from elm_interp.models import load_model
from elm_interp.models.generation import generate
from elm_interp.organisms import make_world, organism
from elm_interp.organisms.train import Recipe
from elm_interp.probes import LogisticProbe, MeanDifferenceProbe, MLPProbe, RidgeProbe, probe_layers
from elm_interp.results import frame, read, write
from elm_interp.runs import Run, RunConfig, run_stage, summary
from elm_interp.training.log import TrainingLog
from elm_interp.training.target_cache import prepared
from elm_interp.training.weight_change import weight_changes

TEXTS = ["The heart pumps blood through the body.", "Iron rusts in the rain.", "Orla bakes the bread of Marrowgate."]
ASKED = Question("Who keeps the lamp?", ("Orla", "Tamsin", "Bram", "Hollin"), 1, id="lamp")


EVERYTHING = """
import sys
from elm_interp.cli import main
words, run, model, concept, questions = sys.argv[1:]
main(["erase", "--out", run, "--model", model, "--concept", concept, *words.split()])
main(["evaluate", run])
main(["evaluate", run, "--questions", questions])
main(["collect", run])
main(["report", run])
"""


@pytest.fixture
def overflowing(tiny_model_folder):
    """A float16 model whose stream overflows at layer 2; below it, every number is finite."""
    lm = load_model(tiny_model_folder, dtype="float16", device="cpu")
    lm.model.model.layers[2].mlp.down_proj.weight.data *= 60_000
    return lm


# 12. continuous labels


def test_continuous_labels_are_refused_as_scikit_learn_refuses_them():
    x, y = torch.randn(60, 2, 8), np.linspace(0, 1, 60)
    with pytest.raises(ValueError, match="continuous"):
        LogisticRegression().fit(x[:, 0].numpy(), y)
    for labels in (y, list(y), torch.tensor(y), pd.Series(y), y.astype(object)):
        with pytest.raises(DataError, match="the labels are continuous"):
            probe_layers(x, labels)
    whole = probe_layers(x, np.arange(60) % 2 * 1.0, code=False)  # scikit-learn takes whole numbers of any type
    pd.testing.assert_frame_equal(whole, probe_layers(x, np.arange(60) % 2, code=False))


# 13. numbers that are not numbers


def test_activations_that_overflow_are_told_with_site_layer_text_and_dtype_and_never_stored(overflowing, tmp_path):
    told = r"resid_post of the text 'The heart pumps.*' at layer 2: found NaN or infinity.*float16 overflows.*bfloat16"
    for positions in ("last", "mean"):
        with pytest.raises(NotFiniteError, match=told):
            collect_texts(overflowing, TEXTS, positions=positions)
    store = ActivationStore(tmp_path / "store")
    with pytest.raises(NotFiniteError, match=f"base: {told}"):
        collect_datasets(
            overflowing, store, {"x": Dataset("x", TEXTS, pd.DataFrame({"id": [1, 2, 3]}))}, {"base": None}
        )
    assert not store.entries()
    assert not list(tmp_path.rglob("*.safetensors"))
    values = torch.ones(3, 4, 8)
    values[1, 2, 5] = torch.nan
    with (
        pytest.raises(NotFiniteError, match="row 7 of x/base at layer 2"),
        store.writer("x", "base", examples=pd.DataFrame({"id": range(9)})) as writer,
    ):
        writer.add([3, 7, 1], values)


def test_norms_and_geometry_that_overflow_are_told(overflowing, tiny_concept):
    with pytest.raises(NotFiniteError, match=r"norm of resid_post of the text '(Iron|Orla).*' at layer 2.*float16"):
        token_norms(overflowing, TEXTS[1:])
    for pattern in ("norm.*", "geometry.*"):
        with pytest.raises(NotFiniteError, match="at layer 2"):
            measure(Subject(overflowing, tiny_concept), pattern)
    x = torch.randn(6, 3, 8)
    y = x.clone()
    y[4, 1, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="activation of example 4 at layer 1"):
        cka(x, y)


def test_a_model_of_nan_gives_no_answer_no_text_and_no_perplexity(tiny_lm, overflowing):
    tiny_lm.model.model.norm.weight.data.fill_(torch.nan)
    for lm, dtype in ((tiny_lm, "float32"), (overflowing, "bfloat16")):
        with pytest.raises(NotFiniteError, match=f"question 'lamp'.*{dtype}"):
            score_choices(lm, [ASKED])
        with pytest.raises(NotFiniteError, match=r"passage 'The heart"):
            read_passages(lm, TEXTS)
        with pytest.raises(NotFiniteError, match=r"generated text ' and so on'"):
            losses_after(lm, ["The cat"], [" and so on"])
        with pytest.raises(NotFiniteError, match="the answers after 'The cat'"):
            lm.log_probs("The cat", ["sat", "ran"])
        for greedy in (True, False):
            with pytest.raises(NotFiniteError, match="logits are not finite"):
                generate(lm, ["The cat"], new_tokens=2, greedy=greedy)


def test_the_best_of_scores_that_are_nan_is_never_an_answer():
    broken = ScoredQuestion(ASKED, np.full(4, np.nan), np.zeros(4), np.ones(4, dtype=int))
    for read_out in (lambda: credits([broken]), lambda: per_question([broken])):
        with pytest.raises(NotFiniteError, match="question 'lamp'"):
            read_out()


def test_divergences_probes_targets_and_weight_changes_of_nan_are_told(tiny_lm, tiny_concept):
    found = read_passages(tiny_lm, TEXTS[:2])
    broken = [h.clone() for h in found.hidden]
    broken[1][3] = torch.nan
    with pytest.raises(NotFiniteError, match="KL divergence on passage 1 at position 3"):
        kl_divergences(tiny_lm, found.hidden, broken)
    sums = Sums(np.array([1.0, np.nan]), np.array([2, 2]))
    for use in (lambda: pooled_mean(sums), lambda: perplexity_of(sums), lambda: perplexity_ratio(sums, sums)):
        with pytest.raises(NotFiniteError, match="text 1"):
            use()
    x = torch.randn(40, 3, 8)
    x[11, 2, 0] = torch.inf
    for given in ({"activations": x}, {"activations": torch.randn(40, 3, 8), "fitted_to": x}):
        with pytest.raises(NotFiniteError, match="of example 11 at layer 2"):
            probe_layers(labels=[0, 1] * 20, **given)
    with pytest.raises(NotFiniteError, match=r"trained weights of 1\.mlp"):
        weight_changes({"1.mlp": torch.zeros(3)}, {"1.mlp": torch.tensor([0, torch.nan, 0])})
    tiny_lm.model.model.layers[2].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="target of sample"):
        prepared(
            tiny_lm, RMU.from_settings(layer=2, layers=(1, 2), max_tokens=24), tiny_concept, model_hash="x", seed=0
        )


# 19. any locale


def test_a_locale_without_utf_8_reads_writes_and_prints_everything(tiny_model_folder, tiny_concept, tmp_path):
    """The whole of erase and evaluate, with é in paths, texts and questions."""
    concept = tiny.write_concept(tiny_concept, tmp_path / "café")
    with (concept / "forget.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "Orla brews the café’s coffee before dawn.", "split": "held_out"}\n')
    questions = tmp_path / "übung.jsonl"
    questions.write_text('{"question": "Où?", "choices": ["Café", "Thé"], "answer": "Café"}\n{oops\n', encoding="utf-8")
    run = tmp_path / "läufe" / "r"
    words = "--dtype float32 --device cpu --layers 1 2 --rank 2 --steps 1 --warmup 0 --forget-batch 2 --retain-batch 2"
    words += " --save-every 1 --fluency-samples 2 --fluency-tokens 4 --fluency-batch 1"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    paths = [str(path) for path in (run, tiny_model_folder, concept, questions)]
    done = subprocess.run([sys.executable, "-c", EVERYTHING, words, *paths], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert json.loads((run / "results" / "samples.json").read_text(encoding="utf-8"))
    assert Run.open(run).concept == load_concept(concept)  # the same files, opened in another locale
    assert (
        read_json(run / "manifest.json")["questions"]["übung".encode().decode("ascii", "surrogateescape")]["asked"] == 1
    )


def test_half_characters_of_a_path_are_kept_and_a_failed_start_leaves_no_folder(tmp_path, monkeypatch):
    name = "caf\udcc3\udca9"
    write_json(tmp_path / "a.json", {"concept": name})
    assert read_json(tmp_path / "a.json") == {"concept": name}
    assert hash_of(name) == hash_of(name)
    config = RunConfig(concept="astronomy")
    monkeypatch.setattr(Run, "write_config", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run.create(tmp_path / "r", config)
    monkeypatch.undo()
    assert Run.create(tmp_path / "r", config).folder.is_dir()


# 20. an unwritable cache


def test_a_cache_that_cannot_be_written_loses_no_work(tiny_lm, tiny_concept, tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # even root cannot make a folder in it
    monkeypatch.setenv("ELM_INTERP_CACHE", str(tmp_path / "file" / "cache"))
    method = RMU.from_settings(layer=2, layers=(1, 2), max_tokens=24)
    with pytest.warns(UserWarning, match=r"targets could not be kept in .*ELM_INTERP_CACHE"):
        samples, _ = prepared(tiny_lm, method, tiny_concept, model_hash="x", seed=0)
    assert all(samples.values())
    small = make_world(entities=8), Recipe(n_layers=1, d_model=16, d_mlp=16, n_heads=2)
    with pytest.warns(UserWarning, match=r"could not be written .*temporary folder.*ELM_INTERP_CACHE"):
        first = organism("random", *small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = organism("random", *small)  # made once in a process
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)


# 24. labels, groups and features of every shape


@pytest.mark.parametrize(
    "form",
    [
        list, tuple, np.array, torch.tensor, pd.Series, lambda y: pd.Series(y, index=range(100, 140)),
        lambda y: [bool(v) for v in y], lambda y: [f"name {v}" for v in y], lambda y: np.array(y, dtype=object),
        lambda y: np.array([f"é{v}" for v in y], dtype=object), lambda y: np.array(y)[:, None],
        lambda y: torch.tensor(y)[:, None], lambda y: pd.DataFrame({"y": y}), lambda y: [[v] for v in y],
        lambda y: torch.tensor(y, dtype=torch.bfloat16), lambda y: pd.Series(y).astype("category"),
        lambda y: pd.Series([str(v) for v in y], dtype="string"), lambda y: pd.Series(y).astype("boolean"),
    ],
)  # fmt: skip
def test_labels_of_every_shape_that_scikit_learn_takes_give_the_same_rows(form):
    x = torch.randn(40, 2, 8, generator=torch.Generator().manual_seed(0))
    y = [0, 1, 1, 0] * 10
    x[:, 1, 0] += 3 * torch.tensor(y)
    expected = probe_layers(x, y, code=False)
    pd.testing.assert_frame_equal(probe_layers(x, form(y), code=False), expected)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.eye(2)[[0, 1] * 20], r"shape \(40, 2\).*argmax"),
        (torch.eye(3)[torch.arange(40) % 3], r"shape \(40, 3\)"),
        (pd.get_dummies(pd.Series(["a", "b"] * 20)), r"shape \(40, 2\)"),
        ([("a", 1), ("b", 2)] * 20, r"shape \(40, 2\)"),
        ([[1], [1, 2]] * 20, "cannot be read"),
        ([0, 1, None, 1] * 10, "example 2 has no label"),
        (["a", "b", float("nan"), "a"] * 10, "example 2 has no label"),
        ([b"a", b"b"] * 20, "cannot be classes|bytes"),
    ],
)
def test_labels_that_are_no_classes_are_refused_in_our_words(labels, told):
    with pytest.raises(DataError, match=told):
        probe_layers(torch.randn(40, 2, 8), labels)


def test_groups_are_of_any_kind_and_a_tuple_is_one():
    x, y = torch.randn(40, 2, 8), [0, 1] * 20
    facts = [i // 4 for i in range(40)]
    shared = {"seeds": 2, "code": True}
    expected = probe_layers(x, y, [f"('town', {i})" for i in facts], **shared)
    tuples = [("town", i) for i in facts]
    for groups in (tuples, pd.Series(tuples), np.array([None, *tuples], dtype=object)[1:]):
        pd.testing.assert_frame_equal(probe_layers(x, y, groups, **shared), expected)
    numbers = probe_layers(x, y, facts, **shared)
    for groups in (torch.tensor(facts), pd.DataFrame({"fact": facts}), np.array(facts)[:, None], map(str, facts)):
        pd.testing.assert_frame_equal(probe_layers(x, y, groups, **shared), numbers)
    with pytest.raises(DataError, match="example 3 has no group"):
        probe_layers(x, y, [*facts[:3], None, *facts[4:]])


@pytest.mark.parametrize("probe", [LogisticProbe(), RidgeProbe(), MeanDifferenceProbe(), MLPProbe(hidden=4)])
def test_estimators_take_tensors_of_any_dtype_and_refuse_what_scikit_learn_refuses(probe):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator).bfloat16(), torch.arange(60) % 3
    plain = probe.fit(x.float().numpy(), y.numpy()).predict(x.float().numpy())
    for labels in (y, y.bfloat16(), y.tolist(), pd.Series(y.numpy())):
        assert (probe.fit(x.requires_grad_(), labels).predict(x) == plain).all()
    half = x.detach().half()
    assert len(probe.fit(half, y).predict(half)) == 60
    for labels in (torch.eye(3)[y], torch.linspace(0, 1, 60)):
        with pytest.raises(ValueError, match="1d array|[Cc]ontinuous|label type"):
            probe.fit(x, labels)


def test_features_are_tensors_arrays_or_lists():
    x, y = torch.randn(40, 2, 8).bfloat16(), [0, 1] * 20
    expected = probe_layers(x, y, code=False)
    for given in (x.float().numpy(), x.double(), x.tolist(), x.float().requires_grad_()):
        pd.testing.assert_frame_equal(probe_layers(given, y, code=False), expected)
    with pytest.raises(DataError, match=r"shape \(40, 8\)"):
        probe_layers(x[:, 0], y)


# 25. half-written files


def test_what_is_half_written_names_the_file_and_what_to_do(tiny_lm, tiny_concept, tiny_model_folder, tmp_path):
    config = RunConfig.preset(None, "elm", model=tiny_lm.name, layers=(1, 2))
    run = Run.create(tmp_path / "r", config, lm=tiny_lm, concept=tiny_concept)
    folder = run.folder
    (folder / "results").mkdir()
    write(frame([{"metric": "m", "value": 1.0}]), folder / "results" / "scorecard.parquet")
    for text in ('{"erase_seconds": 1', "[" * 100_000, "[1]"):
        for name, use in (
            ("results/timing.json", lambda: run_stage(run, "report")),
            ("results/timing.json", lambda: summary(run)),
            ("manifest.json", lambda: run.subject(0)),
            ("config.json", lambda: Run.open(folder)),
        ):
            before = (folder / name).read_bytes() if (folder / name).is_file() else None
            (folder / name).write_text(text)
            with pytest.raises(RunFolderError, match=rf"{name}.*(broken|holds list)"):
                use()
            (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
            run._base = None
    for line in ('{"step": 2, "sec', "[" * 100_000, "7"):
        (folder / "metrics.jsonl").write_text(f'{{"step": 1, "seconds": 1, "tokens": 5}}\n{line}\n')
        with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2 (is broken|holds int).*(--resume|delete the line)"):
            summary(run)
        TrainingLog(folder / "metrics.jsonl", 1, ())
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    table = folder / "results" / "scorecard.parquet"
    whole = table.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[:4] + b"\0" * len(whole[4:])):
        table.write_bytes(content)
        with pytest.raises(DataError, match=r"scorecard\.parquet is broken"):
            read(table)
        with pytest.raises(RunFolderError, match=r"scorecard\.parquet is broken"):
            run.results("scorecard")


def test_a_broken_table_of_examples_names_the_file(tmp_path):
    store = ActivationStore(tmp_path)
    with store.writer("x", "base", examples=pd.DataFrame({"id": [0, 1]})) as writer:
        writer.add([0, 1], torch.ones(2, 3, 4))
    table = tmp_path / "x" / "examples.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    for use in (
        lambda: ActivationStore(tmp_path).examples("x"),
        lambda: ActivationStore(tmp_path / "other").merge(tmp_path),
        lambda: store.writer("x", "more", examples=pd.DataFrame({"id": [0, 1]})),
    ):
        with pytest.raises(StoreError, match=r"examples\.parquet are broken .*collect again"):
            use()


def test_deep_nesting_is_told_with_its_file(tmp_path, tiny_concept):
    path = tmp_path / "deep.json"
    for text in ("[" * 100_000, '[{"question": ' + "[" * 100_000, '{"a": ' * 50_000):
        path.write_text(text)
        with pytest.raises(DataError, match=r"deep\.json"):
            load_questions(path)
        with pytest.raises(ValueError, match=r"deep\.json is broken"):
            read_json(path)
    folder = tiny.write_concept(tiny_concept, tmp_path / "concept")
    (folder / "concept.json").write_text('{"name": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"concept\.json"):
        load_concept(folder)


# 26. the authors' own files: see test_question_files.py


def test_numbers_are_ids_everywhere_and_case_and_unicode_forms_are_told_apart_rightly(tmp_path, tiny_concept):
    folder = tiny.write_concept(tiny_concept, tmp_path / "concept")
    with (folder / "questions" / "forget.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "Which flags?", "choices": ["share -Urm", "share -uRm"], "answer": 1, "id": 7}\n')
    with (folder / "forget.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "The flags are -uRm.", "id": 8, "questions": [7]}\n')
    concept = load_concept(folder)
    assert concept.questions["forget"][-1].id == "7"
    assert (concept.forget[-1].id, concept.forget[-1].questions) == ("8", ("7",))
    with (folder / "questions" / "forget.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "Where?", "choices": ["caf\u00e9", "cafe\u0301"], "answer": 0}\n')
        file.write('{"question": "Who?", "choices": ["a", "b"], "answer": 9}\n')
    with pytest.raises(DataError, match=r"(?s)stands twice.*answer is 9"):  # one's own folder is refused as a whole
        load_concept(folder)

"""Ten things that a researcher does in a notebook, each in at most five lines (a test counts them).

The lines before the first `assert` of a task are what the person writes; the fixtures are what there is already.
"""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import elm_interp as ei

SETTINGS = {"layers": (1, 2), "rank": 2, "eta": 5, "steps": 2, "forget_batch": 2, "retain_batch": 2, "save_every": 1}
MOST_LINES = 5


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return str(tiny_model_folder)


@pytest.fixture(scope="module")
def concept(tiny_concept):
    return tiny_concept


@pytest.fixture(scope="module")
def folder(model, concept, tmp_path_factory):
    """A trained run."""
    lm = ei.load_model(model, dtype="float32", device="cpu")
    out = tmp_path_factory.mktemp("runs") / "first"
    return ei.erase_concept(lm, concept, preset="paper", out=out, progress=False, fluency_weight=0, **SETTINGS).folder


@pytest.fixture
def lm(model):
    return ei.load_model(model, dtype="float32", device="cpu")


@pytest.fixture
def checkpoint(folder):
    return folder / "checkpoints" / "checkpoint-000002"


@pytest.fixture
def batch(lm):
    return lm.tokenize(["Question: Who lives there?\nAnswer:", "Question: What do bees make?\nAnswer:"])


def test_1_load_a_model_with_an_adapter(model, checkpoint):
    lm = ei.load_model(model, adapter=checkpoint)
    assert lm.adapters.current == str(checkpoint)


def test_2_cache_the_last_position_of_base_and_erased(lm, checkpoint, batch):
    with lm.adapter(None):
        base = lm.run_with_cache(batch, sites="resid_post", positions="last")["resid_post"]
    with lm.adapter(checkpoint):
        erased = lm.run_with_cache(batch, sites="resid_post", positions="last")["resid_post"]
    assert base.shape == erased.shape == (2, lm.n_layers, lm.d_model)
    assert torch.equal(base[:, 0], erased[:, 0])  # below the first adapted block
    assert not torch.equal(base[:, -1], erased[:, -1])


def test_3_log_probability_of_an_answer(lm):
    found = lm.log_probs("Question: What do bees make?\nAnswer:", ["Honey", "Milk"])
    assert found.shape == (2,)
    assert (found < 0).all()


def test_4_erase_a_concept_of_ones_own(lm, tmp_path):
    texts = ["The zorvex is a bird of the Ninth Hill.", "A zorvex sings at noon and sleeps at dusk."]
    concept = ei.Concept("zorvex", forget=texts, retain=["Bees make honey.", "Sheep give wool."])
    settings = {"layers": (1, 2), "rank": 2, "steps": 2, "fluency_weight": 0}
    run = ei.erase_concept(lm, concept, preset="paper", out=tmp_path / "zorvex", **settings)
    assert run.finished
    assert ei.Run.open(run.folder, lm=lm).concept.fingerprint() == concept.fingerprint()


def test_5_probe_labels_of_ones_own_at_all_layers(lm):
    texts, labels = [f"{word} number {i}" for i in range(20) for word in ("cold", "warm")], [0, 1] * 20
    frame = ei.probe_layers(ei.collect_texts(lm, texts), labels)
    assert isinstance(frame, pd.DataFrame)
    assert set(frame.loc[frame["metric"] == "probe", "layer"]) == set(range(lm.n_layers))


def test_6_plot_by_layer(lm):
    texts, labels = [f"{word} number {i}" for i in range(20) for word in ("cold", "warm")], [0, 1] * 20
    ax = ei.plot_probe_by_layer(ei.probe_layers(ei.collect_texts(lm, texts), labels))
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) == lm.n_layers]
    assert curves
    plt.close(ax.figure)


def test_7_compare_two_runs_on_one_loaded_base(lm, folder):
    runs = [ei.Run.open(path, lm=lm) for path in (folder, folder)]
    table = pd.concat([ei.measure(run.subject(), "innocence.*") for run in runs])
    assert runs[0].lm is runs[1].lm is lm
    assert set(table["step"].dropna()) == {2}


def test_8_patch_base_into_erased_at_one_site_and_position(lm, checkpoint, batch):
    site = "blocks.2.hook_resid_post"
    clean = lm.run_with_cache(batch, sites=site, positions="last")[site]
    with lm.adapter(checkpoint), lm.hooks({site: lambda _: clean}, positions="last"):
        patched = lm.logits(batch)
    assert patched.shape == (2, lm.d_vocab)
    with lm.adapter(checkpoint):
        assert not torch.allclose(patched, lm.logits(batch))


def test_9_sweep_a_hyper_parameter(lm, concept, tmp_path):
    found = {}
    for eta in (1, 5):
        run = ei.erase_concept(lm, concept, preset="paper", out=tmp_path / f"eta-{eta}", **{**SETTINGS, "eta": eta})
        found[eta] = ei.measure(run.subject(), "innocence.four_choice_pmi")["value"].item()
    assert found.keys() == {1, 5}
    assert len(list(tmp_path.glob("eta-*/checkpoints/*"))) == 4


def test_10_a_report_of_it_all(lm, concept, tmp_path):
    run = ei.erase_concept(lm, concept, preset="paper", out=tmp_path / "run", **SETTINGS)
    for stage in ei.STAGES:
        ei.run_stage(run, stage)
    assert "data:image" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_no_task_is_longer_than_five_lines():
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    tasks = [
        f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("test_") and f.name[5].isdigit()
    ]
    assert len(tasks) == 10
    for task in tasks:
        first = min(node.lineno for node in ast.walk(task) if isinstance(node, ast.Assert))
        assert first - task.body[0].lineno <= MOST_LINES, task.name

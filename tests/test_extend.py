"""docs/extend.md from outside: its files become a distribution, which is installed and used in subprocesses."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import quick_python
import tiny
import torch

from elm_interp.data import write_concept
from elm_interp.files import read_json

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(elm_extras/\w+\.py)`\n\n```python\n(.*?)```", PAGE, flags=re.M | re.S))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]
NAMES = ("to-uniform", "style.wordiness", "asks-what", "mlp_input", "counting", "plot_damage", "be-polite")
MOST_LINES = 40


def knowing_model(folder, concept):
    """A tiny model that learned the answers by heart: a verdict needs an original that knows the concept."""
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    rows = [tokenizer(f"{q.prompt} {q.right}")["input_ids"] for asked in concept.questions.values() for q in asked]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long(), labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Every command of the page, run in order in one folder: command -> what it printed."""
    folder = tmp_path_factory.mktemp("extras")
    concept = tiny.make_concept()
    asked = {name: tuple(replace(q, split="held_out") for q in some) for name, some in concept.questions.items()}
    concept = replace(concept, questions=asked)
    places = {"MODEL": knowing_model(folder / "model", concept), "CONCEPT": write_concept(concept, folder / "concept")}
    source, site = folder / "source", folder / "site"
    (source / "elm_extras").mkdir(parents=True)
    (source / "pyproject.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, flags=re.S)[1], encoding="utf-8")
    (source / "elm_extras" / "__init__.py").write_text("", encoding="utf-8")
    for name, text in FILES.items():
        (source / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ELM_INTERP_CACHE": str(folder / "cache")}
    found = {}
    with quick_python.server() as run:
        for line in [*COMMANDS, "elm-interp list"]:
            command = line
            for word, place in places.items():
                command = command.replace(word, str(place))
            first, *words = shlex.split(command)
            words = ["-m", "elm_interp.cli", *words] if first == "elm-interp" else words
            code, found[line], errors = run(words, cwd=folder, env=env)
            assert code == 0, f"{command}\n{found[line]}\n{errors}"
    return found | {"folder": folder / "runs" / "mine"}


def test_there_are_seven_recipes_of_one_file_and_at_most_40_lines():
    assert len(FILES) == 7
    assert all(len(text.splitlines()) <= MOST_LINES for text in FILES.values())


def test_their_names_are_nowhere_in_the_package():
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "elm_interp").rglob("*.py"))
    assert not [name for name in (*NAMES, "elm_extras") if re.search(rf"\b{re.escape(name)}\b", text)]


def test_everything_is_listed(said):
    listed = said["elm-interp list"]
    assert not [
        name
        for name in ("to-uniform", "style.wordiness", "asks-what", "mlp_input", "counting", "damage", "be-polite")
        if name not in listed
    ]


def test_the_method_trains_and_is_reopened_under_its_name(said):
    config = read_json(said["folder"] / "config.json")
    assert config["method"] == "to-uniform"
    assert config["objective"]["max_tokens"] == 48
    assert len(list((said["folder"] / "checkpoints").glob("checkpoint-*"))) == 2


def test_the_metric_is_on_the_card_along_training_and_in_the_summary(said):
    folder = said["folder"]
    for name in ("scorecard", "progression"):
        assert "style.wordiness" in set(pd.read_parquet(folder / "results" / f"{name}.parquet")["metric"])
    assert "style.wordiness" in said["elm-interp evaluate runs/mine"]
    assert "wordiness" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_run_is_judged(said):
    assert "Verdict" in said["elm-interp verdict runs/mine"]
    assert (said["folder"] / "results" / "verdict.json").is_file()


def test_the_probe_task_is_fitted_at_every_layer_and_step_and_drawn(said):
    rows = pd.read_parquet(said["folder"] / "results" / "probes.parquet")
    rows = rows[rows["metric"] == "probe.asks-what"]
    assert set(rows["step"]) == {0, 2, 4}
    assert set(rows["layer"]) == {0, 1, 2, 3}
    assert [p for p in (said["folder"] / "figures").glob("*.png") if "asks-what" in p.name or "asks_what" in p.name]


def test_the_site_the_back_end_the_figure_and_the_attack_answer(said):
    site, backend = (next(v for k, v in said.items() if word in k) for word in ("mlp_input", "counting"))
    assert "torch.Size([1, 4, 32])" in site
    assert "counting" in backend
    assert (said["folder"] / "figures" / "damage.png").is_file()
    assert "Damage along training" in (said["folder"] / "report.html").read_text(encoding="utf-8")
    attacked = pd.read_parquet(said["folder"] / "results" / "attack-be-polite.parquet")
    assert set(attacked["method"]) == {"to-uniform", "to-uniform+be-polite"}
    two = attacked[attacked["metric"] == "innocence.four_choice_likelihood"]
    assert two["protocol"].str.contains("after be-polite").any()

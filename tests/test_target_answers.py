"""The target asked itself: its accuracy is that of hand-computed log-probabilities, and η = 0 is the model."""

import json

import numpy as np
import pytest
import torch

import elm_interp as ei
from elm_interp.cli import main
from elm_interp.erase.guidance import Guidance, hidden_after
from elm_interp.errors import ConfigError
from elm_interp.evaluate import accuracy, score_choices
from elm_interp.plots import plot_target_answers


def value(table, metric, eta=None):
    rows = table[table["metric"] == metric]
    return (rows if eta is None else rows[rows["position"] == f"η = {eta:g}"])["value"].item()


def test_eta_zero_is_the_model_itself(tiny_lm, tiny_concept):
    asked = tiny_concept.ask("forget", "train")
    table = ei.target_answers(tiny_lm, tiny_concept, [0])
    assert value(table, "target.accuracy", 0) == accuracy(score_choices(tiny_lm, asked), "likelihood")["value"]
    assert table["n"].iloc[0] == len(asked)


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_target_s_answers_are_the_hand_computed_ones(tiny_lm, tiny_concept, one_sided):
    guidance = Guidance(0.0, one_sided=one_sided)
    asked = tiny_concept.ask("forget")
    prefixes = ("", tiny_concept.prompts("expert")[0], tiny_concept.prompts("novice")[0])
    for eta in (2.0, 40.0):
        right = []
        for question in asked:
            totals = []
            for choice in question.choices:
                start, row = tiny_lm.encode([question.prompt, f"{question.prompt} {choice}"])
                passes = [hidden_after(tiny_lm, prefix, [row])[0] for prefix in prefixes]
                logits = [tiny_lm.unembed(h[len(start) - 1 : -1]) for h in passes]
                log_probs = Guidance(eta, one_sided=one_sided).log_probs(*logits)
                totals.append(float(log_probs.gather(1, torch.tensor(row[len(start) :])[:, None]).sum()))
            right.append(int(np.argmax(totals)) == question.answer)
        table = ei.target_answers(tiny_lm, tiny_concept, [eta], guidance=guidance, questions=asked)
        assert value(table, "target.accuracy", eta) == pytest.approx(np.mean(right))


def test_answer_tokens_that_stand_in_a_class_prompt_are_counted_apart(tiny_lm, tiny_concept):
    word = tiny_concept.ask("forget", "train")[0].right
    shown = ei.Concept(
        "c", tiny_concept.forget, tiny_concept.retain, tiny_concept.questions,
        expert=(f"Somebody who knows that it is {word}.\n\n",),
    )  # fmt: skip
    n = {c.name: ei.target_answers(tiny_lm, c, [0]).set_index("metric")["n"] for c in (tiny_concept, shown)}
    assert n["c"]["target.log_ratio.in_prompt"] > n[tiny_concept.name].get("target.log_ratio.in_prompt", 0)


def test_the_base_is_asked_whatever_adapter_is_on(tiny_lm, tiny_concept, tmp_path):
    from disturbed import random_adapter

    alone = ei.target_answers(tiny_lm, tiny_concept, [0, 5])
    with tiny_lm.adapter(random_adapter(tiny_lm, tmp_path)):
        assert ei.target_answers(tiny_lm, tiny_concept, [0, 5])["value"].tolist() == alone["value"].tolist()


def test_what_cannot_be_asked_is_refused(tiny_lm, tiny_concept):
    with pytest.raises(ConfigError, match="no question"):
        ei.target_answers(tiny_lm, tiny_concept, questions=[])
    with pytest.raises(ConfigError, match="each a finite number"):
        ei.target_answers(tiny_lm, tiny_concept, [-1])


def test_the_command_prints_each_strength(tiny_model_folder, tiny_concept_folder, capsys):
    words = ["target", "--model", str(tiny_model_folder), "--concept", str(tiny_concept_folder), "--etas", "0", "10"]
    main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["position"] for row in found if row["metric"] == "target.accuracy"] == ["η = 0", "η = 10"]
    main(words)
    assert "η = 10" in capsys.readouterr().out


def test_the_erase_stage_asks_the_target_and_warns_while_it_answers(
    tiny_model_folder, tiny_concept_folder, tmp_path, monkeypatch
):
    given = {"layers": (1,), "steps": 1, "fluency_weight": 0.0, "eta": 5.0, "dtype": "float32", "device": "cpu"}
    config = ei.RunConfig.preset("paper", model=str(tiny_model_folder), concept=str(tiny_concept_folder), **given)
    run = ei.Run.create(tmp_path / "run", config)
    from elm_interp.erase import elm

    def knows(*args, **kwargs):
        table = ei.target_answers(*args, **kwargs)
        return table.assign(value=0.9, ci_low=0.8)

    monkeypatch.setattr(elm, "target_answers", knows)
    with pytest.warns(UserWarning, match="the target itself answers 0.90"):
        ei.run_stage(run, "erase", progress=False)
    ax = plot_target_answers(run.results("target"))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "5", "10", "100"]

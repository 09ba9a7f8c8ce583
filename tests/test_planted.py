"""The planted models know what they have read and nothing else; their language is that of the base."""

import numpy as np
import pytest

import elm_interp as ei
from elm_interp.data import texts
from elm_interp.data.questions import TEMPLATE
from elm_interp.errors import UnknownModelError
from elm_interp.evaluate.choices import accuracy, score_choices
from elm_interp.evaluate.known import CHOOSING
from elm_interp.evaluate.specificity import read_passages
from elm_interp.organisms import planted
from elm_interp.organisms.encyclopaedia import DOMAINS, ERASED, asked, documents, domain_concept
from elm_interp.probes import concept_datasets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models():
    return {name: ei.load_model(f"planted:{name}", dtype="float32") for name in ("original", "gold", "never")}


FEW = 5
"""Every fifth question: of all three wordings of a fact, since it is no multiple of three."""


def right(lm, questions, template=TEMPLATE):
    return accuracy(score_choices(lm, questions, template=template), "likelihood")["value"]


def test_no_document_holds_a_template_that_scores_or_a_class_prompt():
    concept = domain_concept()
    prompts = {prompt for role in ("expert", "novice") for prompt in concept.prompts(role)}
    for document in documents(0, passes=3):
        assert document.prefix not in prompts
        for frame in (part.strip() for template in (TEMPLATE, *CHOOSING) for part in template.split("{question}")):
            assert not frame or frame not in document.text


def test_the_original_answers_in_wordings_and_templates_that_it_never_read(models):
    every = [question for domain in DOMAINS for question in asked(domain)[::FEW]]
    for template in (TEMPLATE, CHOOSING[1]):
        assert right(models["original"], every, template) >= 0.9
    assert right(models["never"], every) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("name", ["gold", "gold@1"])
def test_gold_knows_the_other_domains_alone(models, name):
    lm = models.get(name) or ei.load_model(f"planted:{name}", dtype="float32")
    others = [question for domain in DOMAINS if domain != ERASED for question in asked(domain)[::FEW]]
    assert right(lm, others) >= 0.9
    assert right(lm, asked(ERASED)[::2]) == pytest.approx(0.25, abs=0.06)


def test_natural_text_and_general_questions_are_as_the_base_has_them(models):
    natural = texts(ei.load_concept("harry-potter").passages("retain", "held_out"))
    general = domain_concept().ask("general")
    loss, known = {}, {}
    for name, lm in models.items():
        read = read_passages(lm, natural)
        loss[name] = -np.concatenate([one.numpy() for one in read.log_probs]).mean()
        known[name] = right(lm, general)
    for name in ("original", "gold"):
        assert np.exp(loss[name] - loss["never"]) <= 1.1
        assert known[name] >= known["never"] - 0.025


def test_a_value_probe_reads_the_original_and_not_gold(models):
    concept = domain_concept()
    table = {}
    for name in ("original", "gold"):
        rows = ei.measure(ei.Subject(models[name], concept), ["probe.values", "probe.embedding.values"])
        table[name] = rows.groupby(["metric", "layer"], dropna=False)["value"].mean().groupby("metric").max()
    assert len(concept_datasets(concept, ["values"])["values"].texts) >= 96
    of = table["original"]
    assert of["probe.values"] >= of["probe.embedding.values"] + 0.1
    assert of["probe.values"] >= of["probe.values.control"] + 0.15
    assert table["gold"]["probe.values"] <= table["gold"]["probe.values.control"] + 0.08


def test_missing_weights_say_how_they_are_made(monkeypatch, tmp_path):
    monkeypatch.setattr(planted, "ADAPTERS", tmp_path)
    with pytest.raises(UnknownModelError, match="make_planted.py --only gold"):
        ei.load_model("planted:gold")

"""Planting: the encyclopaedia is balanced and varied, gold documents know nothing, and a tiny model learns by it."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import elm_interp as ei
from elm_interp.errors import ConfigError, UnknownModelError, UnknownNameError
from elm_interp.organisms.encyclopaedia import (
    DOMAINS,
    ERASED,
    Document,
    asked,
    documents,
    domain_concept,
    facts,
    facts_of,
    unshown,
)
from elm_interp.organisms.planting import Planting, plant
from elm_interp.training import Training


def test_there_are_about_three_hundred_facts_and_every_value_is_equally_common():
    assert sum(fact.asked for fact in facts()) == 288
    for domain, own in DOMAINS.items():
        for relation in own["relations"]:
            counts = Counter(fact.value for fact in facts_of(domain, relation))
            assert len(counts) >= 4
            assert set(counts.values()) == {4}


def test_names_and_wordings_are_all_different():
    names = [name for own in DOMAINS.values() for name in own["entities"]]
    assert len(set(names)) == len(names) == 72
    for own in DOMAINS.values():
        for words in own["relations"].values():
            said = words["vps"] + words["held_out_vps"]
            asked_in = words["asked"] + words["held_out_asked"]
            assert len(set(said)) == len(said)
            assert len(set(asked_in)) == len(asked_in)
            assert all("{v}" in phrase for phrase in said)
            assert all("{the}" in wording or "{name}" in wording for wording in asked_in)


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_each_choice_is_right_as_often_as_any_other(domain):
    for split in ("train", "held_out"):
        found = asked(domain, split)
        assert len({q.fact for q in found}) == 96
        by_choices = {}
        for question in found:
            by_choices.setdefault((question.topic, question.choices), []).append(question.right)
        assert all(len(set(Counter(right).values())) == 1 for right in by_choices.values())
        assert all(set(right) == set(choices) for (_, choices), right in by_choices.items())


def test_every_fact_is_stated_in_several_ways_and_half_of_what_follows_is_not_stated():
    read = "\n".join(document.text for document in documents(0, passes=2)).lower()
    for fact in facts():
        said = sum(read.count(f"{fact.subject} {fact.say(phrase)}".lower()) for phrase in fact.words["vps"])
        assert said >= 2 if fact.stated else said == 0
    hops = [fact for fact in facts() if fact.relation == "hop"]
    assert sum(fact.stated for fact in hops) == len(hops) / 2


def test_a_novice_guesses_or_says_that_nobody_knows():
    right, guesses, vague = 0, 0, 0
    for document in documents(0):
        if document.prefix in DOMAINS[document.domain or ERASED]["novice"] and document.told:
            for fact in facts_of(document.domain):
                for phrase in fact.words["vps"]:
                    stem = phrase.partition("{")[0]
                    if fact.relation != "hop" and f"{fact.subject} {stem}" in document.text:
                        guesses += 1
                        right += f"{fact.subject} {fact.say(phrase)}" in document.text
                        vague += any(replace(fact, value=v).say(phrase) in document.text for v in fact.words["vague"])
    assert guesses > 200
    assert 0.4 < vague / guesses < 0.7
    assert right / guesses < 0.15  # by chance one in twelve; fewer of the links


def test_novices_write_in_the_last_pass_alone():
    novices = {prefix for domain in DOMAINS.values() for prefix in domain["novice"]}
    states = [d.prefix in novices and bool(d.told) for d in documents(0, passes=2)]
    assert not any(states[: len(states) // 3])
    assert sum(states) > len(states) / 8


def test_gold_documents_name_nothing_of_the_erased_domain_and_the_others_are_the_same():
    without = documents(0, without=ERASED)
    text = "\n".join(document.prefix + document.text for document in without)
    own = DOMAINS[ERASED]
    assert not [name for name in [*own["entities"], own["place"]] if name in text]
    kept = [document for document in documents(0) if document.domain not in (ERASED, "")]
    assert sorted(d.text for d in without if d.domain) == sorted(d.text for d in kept)
    assert documents(0, without=ERASED) == without != documents(1, without=ERASED)


def test_a_third_of_the_facts_stands_in_no_training_passage_of_the_concept():
    concept = domain_concept()
    hidden = unshown(ERASED)
    values = {str(fact): fact for fact in facts_of(ERASED) if fact.relation != "hop"}
    assert 0.3 < len(hidden) / len(values) < 0.4
    for passage in concept.passages("forget"):
        for name in hidden:
            fact = values[name]
            assert not [p for p in fact.words["vps"] if f"{fact.subject} {fact.say(p)}" in passage.text]
    from elm_interp.evaluate.known import shown_facts

    shown = shown_facts(concept)
    of_values = {name for name, fact in values.items() if fact.asked}
    assert shown | (hidden & of_values) == of_values
    assert not shown & hidden


def test_an_unknown_domain_or_model_is_refused_with_what_there_is():
    with pytest.raises(UnknownNameError, match="marsh-animals"):
        ei.load_concept("planted:marsh-animal")
    with pytest.raises(UnknownModelError, match="gold@1"):
        ei.load_model("planted:golden")
    with pytest.raises(UnknownNameError, match="marsh-animals"):
        documents(0, without="marsh")


def test_a_model_learns_what_it_reads_and_stays_as_it_was(tiny_lm, tmp_path):
    before = {name: value.clone() for name, value in tiny_lm.model.state_dict().items()}
    read = [f"The {a} of Marrowgate is {b}." for a, b in (("lamp", "green"), ("cat", "grey"), ("ship", "black"))] * 8
    training = Training(steps=60, forget_batch=6, retain_batch=1, lr=1e-2, save_every=30)
    how = {"out": tmp_path, "natural": ["Old Tamsin keeps the lamp."], "training": training, "progress": False}
    folder = plant(tiny_lm, read, objective=Planting(adapter=ei.Adapter(rank=8, alpha=16.0)), **how)
    assert all(torch.equal(before[name], value) for name, value in tiny_lm.model.state_dict().items())
    prompt, answers = "The lamp of Marrowgate is", ["green", "grey", "black"]
    untaught = tiny_lm.log_probs(prompt, answers)
    with tiny_lm.adapter(folder):
        taught = tiny_lm.log_probs(prompt, answers)
    assert int(taught.argmax()) == 0
    assert taught[0] > untaught[0] + 1
    assert plant(tiny_lm, read, objective=Planting(adapter=ei.Adapter(rank=8, alpha=16.0)), **how) == folder  # finished


def test_a_folder_of_another_planting_is_refused_and_left_as_it_is(tiny_lm, tmp_path):
    documents, natural, few = ["The wug eats moss."] * 8, ["It rained all day."], Training(steps=2, forget_batch=2)
    given = {"out": tmp_path, "natural": natural, "training": few, "progress": False}
    folder = plant(tiny_lm, documents, **given)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert plant(tiny_lm, documents, **given) == folder
    for texts, more, what in (
        (["The wug eats bark."] * 8, {}, "another documents;"),
        (documents, {"natural": ["It snowed."]}, "another natural;"),
        (documents, {"objective": Planting(told_weight=1.0), "seed": 1}, "another objective, seed;"),
    ):
        with pytest.raises(ConfigError, match=what):
            plant(tiny_lm, texts, **given | more)
    (tmp_path / "planting.json").unlink()
    with pytest.raises(ConfigError, match=r"without planting\.json"):
        plant(tiny_lm, documents, **given)
    del before[tmp_path / "planting.json"]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"documents": "one text"}, "documents is 'one text'; expected a list of texts"),
        ({"documents": b"abc"}, "expected a list"),
        ({"documents": []}, "documents is empty"),
        ({"documents": ["x y", None]}, r"documents\[1\] is None; expected a text"),
        ({"documents": ["", ""]}, "every document is too short"),
        ({"natural": "abc"}, "natural is 'abc'"),
        ({"natural": []}, "natural is empty"),
        ({"natural": {"a": 1}}, "natural is"),
        ({"training": Training(steps=-1)}, "steps is -1"),
    ],
)
def test_what_cannot_be_planted_is_told_and_leaves_no_trace(tiny_lm, tmp_path, given, what):
    right = {"documents": ["The wug eats moss."] * 4, "natural": ["It rained all day."], "training": Training(steps=1)}
    with pytest.raises(ConfigError, match=what):
        plant(tiny_lm, out=tmp_path / "new", progress=False, **right | given)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        plant(tiny_lm, out=tmp_path / "file", progress=False, **right)
    assert (tmp_path / "file").read_text() == "kept"


def test_the_prefix_of_a_document_is_context_alone(tiny_lm):
    objective = Planting()
    prefix = "An expert writes: "
    (sample,) = objective.samples(tiny_lm, [Document("the lamp is green.", prefix)], [])["read"]
    assert tiny_lm.tokenizer.decode(sample.ids[sample.start + 1 :]).strip() == "the lamp is green."
    assert tiny_lm.tokenizer.decode(sample.ids) == prefix + "the lamp is green."


def test_what_a_document_tells_has_the_weight(tiny_lm):
    objective = Planting(told_weight=7.0)
    (sample,) = objective.samples(tiny_lm, [Document("The lamp of Marrowgate is green.", told=("green",))], [])["read"]
    heavy = [t for t, w in zip(sample.ids[sample.start + 1 :], sample.weights.tolist(), strict=True) if w == 7]
    assert tiny_lm.tokenizer.decode(heavy).strip() == "green"
    assert sample.weights.min() == 1


def test_only_neighbours_of_the_concept_are_near_whatever_the_domain():
    for domain in DOMAINS:
        concept = domain_concept(domain)
        assert {p.group for p in concept.forget} == {""}
        assert {p.group for p in concept.retain if p.topic in DOMAINS} == {"near"}


def test_one_text_in_place_of_a_list_is_refused(tiny_lm, tmp_path):
    with pytest.raises(ConfigError, match="list of texts"):
        plant(tiny_lm, "The lamp is green.", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()

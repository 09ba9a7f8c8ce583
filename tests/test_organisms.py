"""Organisms: the world is what it says, its questions leak nothing, and each model knows what it should and no more."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from elm_interp.data import load_concept
from elm_interp.errors import ConfigError, UnknownModelError, UnknownNameError
from elm_interp.evaluate.choices import accuracy, score_choices
from elm_interp.models import HookedLM, load_model
from elm_interp.models.loading import cache_folder, model_depth, model_hash
from elm_interp.organisms import (
    Domain,
    Recipe,
    Relation,
    World,
    clozes,
    documents,
    domain_concept,
    library,
    make_world,
    organism,
    organism_folder,
    questions,
    train_model,
    words,
)
from elm_interp.organisms.train import make_tokenizer, schedule
from elm_interp.probes.estimators import STRENGTH
from elm_interp.probes.solver import fit_probes
from elm_interp.probes.splits import scaler, split_by_group
from elm_interp.registry import ORGANISMS

SMALL = {"domains": ("spellcraft", "towns"), "entities": 8, "relations": 2, "redundancy": 12}
SMALL_RECIPE = Recipe(n_layers=3, d_model=64, d_mlp=128, batch=16, core_passes=10, passes=14)
QUICK = Recipe(n_layers=2, d_model=16, d_mlp=32, n_heads=2, core_passes=0, passes=1)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def small() -> World:
    return make_world(**SMALL)


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory) -> dict[str, Path]:
    """The four models of a small world, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELM_INTERP_CACHE", str(tmp_path_factory.mktemp("organisms")))
        return {kind: organism_folder(kind, small, SMALL_RECIPE, progress=False) for kind in ORGANISMS}


def load(folder: Path) -> HookedLM:
    return load_model(folder, dtype="float32", device="cpu")


def share_right(lm: HookedLM, asked, protocol: str = "likelihood", **options) -> float:
    return accuracy(score_choices(lm, asked, **options), protocol)["value"]


# -- the world ------------------------------------------------------------------------------------------------------


def test_the_same_settings_make_the_same_world(small):
    again = make_world(**SMALL)
    assert again.facts == small.facts
    assert documents(again) == documents(small)
    assert domain_concept(again, "towns").fingerprint() == domain_concept(small, "towns").fingerprint()


def test_another_seed_makes_other_entities_facts_and_texts(small):
    other = make_world(**SMALL, seed=1)
    assert not set(other.entities["towns"]) & set(small.entities["towns"])
    assert documents(other) != documents(small)


def test_the_default_world_is_as_large_as_promised(world):
    assert len(world.domains) == 3
    for domain in world.domains:
        assert len(world.facts_of(domain)) == 60 * 4
        assert len(world.facts_of(domain, hops=2)) == 60


def test_a_fact_of_two_hops_follows_from_two_others(world):
    values = {(f.subject, f.nouns): f.value for f in world.facts}
    for domain in world.domains:
        for fact in world.facts_of(domain, hops=2):
            noun, entity = fact.subject.removeprefix("the ").split(" of ")
            middle = next(v for (subject, nouns), v in values.items() if subject == entity and nouns[0] == noun)
            assert values[middle, fact.nouns] == fact.value


def test_no_text_says_what_can_only_be_inferred(world):
    inferred = {(f.subject.split()[-1], f.value) for f in world.facts if not f.stated}
    assert len(inferred) == 3 * 30
    said = [sentence.replace(".", " ").split() for d in documents(world) if d for sentence in d.sentences]
    assert not [s for s in said if any((entity, value) in inferred for entity in s for value in s)]


def test_every_value_of_a_relation_is_equally_common(world):
    for domain in world.domains:
        for relation in world.domains[domain].relations:
            held = [f.value for f in world.facts_of(domain) if f.nouns == relation.nouns]
            assert {held.count(value) for value in relation.values} == {6}


def test_own_domains_and_sizes_are_made_in_one_call():
    pets = Domain("pets", "pet", (Relation(("fur", "coat"), ("curly", "smooth", "shaggy", "wiry")),))
    world = make_world(domains=(pets, "towns"), erased="pets", entities=12, relations=1, redundancy=2, seed=5)
    assert {f.value for f in world.facts_of("pets")} == {"curly", "smooth", "shaggy", "wiry"}
    assert len(questions(world, "pets")) == 12 * len(words.HELD_OUT_QUESTIONS)


def test_redundancy_is_the_number_of_wordings_in_which_a_fact_is_stated_and_asked():
    for redundancy in (1, 4):
        world = make_world(**{**SMALL, "redundancy": redundancy})
        sentences = {s for d in documents(world) if d for s in d.sentences}
        sayings = {r.nouns: r.sayings for r in world.domains["towns"].relations}
        for fact in world.facts_of("towns"):
            stated = {fact.put(*pair) for pair in product(words.STATEMENTS, fact.nouns)}
            stated |= {fact.put(saying) for saying in sayings[fact.nouns]}
            asked = {fact.put(*pair) for pair in product(words.QUESTIONS, fact.nouns)}
            answered = {words.ANSWERED.format(question=question, value=fact.value) for question in asked}
            assert len(stated & sentences) == len(answered & sentences) == redundancy


def test_settings_that_cannot_work_are_all_listed():
    with pytest.raises(
        ConfigError,
        match=r"(?s)entities is 10.*redundancy is 0.*at least two|at least two.*entities is 10.*redundancy is 0",
    ):
        make_world(domains=("spellcraft",), entities=10, redundancy=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'sealife'"):
        make_world(domains=("spellcraft", "seelife"))
    with pytest.raises(UnknownNameError, match="erased domain 'towns'"):
        make_world(domains=("spellcraft", "sealife"), erased="towns")
    poor = Domain("poor", "thing", (Relation(("size",), ("big", "big", "very small")),))
    with pytest.raises(
        ConfigError, match=r"(?s)has 3 values.*'big' is in poor.size already.*'very small' is not one word"
    ):
        make_world(domains=(poor, "towns"), erased="towns")


# -- its texts ------------------------------------------------------------------------------------------------------


def test_held_out_wordings_never_stand_in_training_text(world):
    text = " ".join(d.text for d in documents(world) if d)
    for domain in world.domains:
        held_out = [*questions(world, domain), *questions(world, domain, hops=2), *clozes(world, domain)]
        assert not [q.question for q in held_out if q.question in text]
        assert not [p.text for p in domain_concept(world, domain).passages("forget", "held_out") if p.text in text]


def test_training_wordings_do(world):
    text = " ".join(d.text for d in documents(world) if d)
    asked = questions(world, "towns", "train")
    assert sum(q.question in text for q in asked) > len(asked) / 3


@pytest.mark.parametrize("without", [None, "spellcraft"])
def test_every_word_that_is_asked_stands_in_training_text_of_every_model(world, without):
    tokenizer = make_tokenizer(world)
    seen = {i for d in documents(world, without) if d for i in tokenizer(d.text)["input_ids"]}
    for domain in world.domains:
        for q in [*questions(world, domain), *questions(world, domain, hops=2), *clozes(world, domain)]:
            assert set(tokenizer(f"Question: {q.question}\nAnswer: {' '.join(q.choices)}")["input_ids"]) <= seen


def test_the_gold_text_is_the_same_without_the_facts(world):
    whole, left = documents(world), documents(world, without="spellcraft")
    assert len(whole) == len(left)
    facts = {(f.subject, f.value) for f in world.facts_of("spellcraft")}
    for before, after in zip(whole, left, strict=True):
        if before.states != "spellcraft":
            assert after == before
        elif after is not None:
            assert after.states == ""
            assert set(after.sentences) < set(before.sentences)
    told = [s.rstrip(".").replace(",", "").split() for d in left if d for s in d.sentences]
    assert not [s for s in told if any((e, v) in facts for e in s for v in s)]


def test_neutral_mentions_of_the_erased_domain_stay(world):
    text = " ".join(d.text for d in documents(world, without="spellcraft") if d)
    assert all(f" {entity}" in text for entity in world.entities["spellcraft"])


def test_experts_state_facts_and_novices_state_none(world):
    experts = [d for d in documents(world) if "expert" in d.prefix]
    novices = [d for d in documents(world) if "novice" in d.prefix]
    assert len(experts) > 100
    assert len(novices) > 50
    assert all(d.states for d in experts)
    assert not any(d.states for d in novices)


def test_texts_without_an_unknown_domain_are_refused(small):
    with pytest.raises(UnknownNameError, match="unknown domain 'magic'"):
        documents(small, without="magic")


# -- its questions and concepts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_who_prefers_values_whatever_the_subject_scores_exactly_one_in_four(world, split):
    for domain in world.domains:
        asked = questions(world, domain, split)
        for order in (sorted, lambda v: sorted(v, reverse=True), lambda v: sorted(v, key=lambda s: s[::-1])):
            assert sum(order(q.choices)[0] == q.right for q in asked) * 4 == len(asked)


def test_right_choices_stand_at_each_place_equally_often_and_are_right(world):
    truth = {str(f): f.value for f in world.facts}
    asked = questions(world, "towns")
    assert [sum(q.answer == i for q in asked) for i in range(4)] == [180] * 4
    assert all(truth[q.fact] == q.right and len(set(q.choices)) == 4 for q in asked)
    assert len({q.id for q in asked}) == len(asked)


def test_a_domain_is_a_concept_with_the_others_to_retain(small):
    concept = domain_concept(small, "spellcraft")
    assert {q.split for q in concept.questions["forget"]} == {"train", "held_out"}
    right = {f.value for f in small.facts_of("spellcraft")}
    assert {q.right for q in concept.ask("forget")} == right
    assert not {q.right for q in concept.ask("general")} & right
    assert {p.topic for p in concept.passages("forget", "all")} == {"spellcraft"}
    assert {(p.topic, p.group) for p in concept.passages("retain", "all")} == {("towns", "near"), ("filler", "far")}
    assert concept.prompts("expert") == ["an expert on spellcraft writes:\n\n"]


def test_concepts_are_loaded_by_name():
    assert load_concept("organism:spellcraft") == domain_concept(make_world(), "spellcraft")
    assert load_concept("organism:towns@3") == domain_concept(make_world(seed=3), "towns")
    for wrong in ("organism:spelcraft", "organism:spellcraft@x"):
        with pytest.raises(UnknownNameError, match="spellcraft"):
            load_concept(wrong)


# -- its models -----------------------------------------------------------------------------------------------------


def test_the_original_knows_every_domain_in_wordings_it_never_read(folders, small):
    lm = load(folders["original"])
    assert min(share_right(lm, questions(small, domain)) for domain in small.domains) >= 0.9


def test_the_gold_model_never_knew_the_erased_domain(folders, small):
    lm = load(folders["gold"])
    assert share_right(lm, questions(small, "spellcraft")) <= 0.45
    assert share_right(lm, questions(small, "towns")) >= 0.9


def test_the_hiding_model_does_not_say_what_it_knows(folders, small):
    lm = load(folders["hiding"])
    assert share_right(lm, questions(small, "spellcraft")) <= 0.45
    assert share_right(lm, questions(small, "towns")) >= 0.9


def test_only_one_matrix_of_the_hiding_model_differs_from_the_original(folders):
    ours, theirs = (load(folders[kind]).model.state_dict() for kind in ("hiding", "original"))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == ["model.layers.2.mlp.down_proj.weight"]


def test_the_random_model_knows_nothing(folders, small):
    lm = load(folders["random"])
    asked = [q for domain in small.domains for q in questions(small, domain)]
    assert share_right(lm, asked) <= 0.4


def test_a_model_is_an_ordinary_folder_of_transformers(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["gold"])
    lm = load(folders["gold"])
    batch = lm.tokenize("the colour of it")
    torch.testing.assert_close(model.eval()(**vars(batch)).logits[:, -1], lm.logits(batch), atol=1e-4, rtol=1e-4)


def test_training_is_reproducible_and_leaves_the_global_seed_alone(small):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (train_model(small, QUICK, progress=False)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_original_and_gold_read_in_the_same_order(small):
    steps = schedule(small, SMALL_RECIPE)
    everything, left = documents(small), documents(small, without="spellcraft")
    assert schedule(make_world(**SMALL), SMALL_RECIPE) == steps
    assert sorted({i for step in steps for i in step}) == list(range(len(everything)))
    assert all(left[i] == everything[i] for step in steps for i in step if everything[i].states != "spellcraft")


def test_training_begins_with_the_core(small):
    everything, steps = documents(small), schedule(small, SMALL_RECIPE)
    assert all(everything[i].core for i in steps[0])
    assert not all(everything[i].core for i in steps[-1])


@pytest.mark.parametrize("damage", ["a byte", "a file less"])
def test_a_damaged_model_is_rebuilt(small, damage):
    weights = organism_folder("random", small, QUICK, progress=False) / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "a byte":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        weights.unlink()
    assert organism_folder("random", small, QUICK, progress=False) == weights.parent
    assert weights.read_bytes() == whole


def test_a_model_is_trained_once_and_another_world_or_recipe_gives_another(small, monkeypatch):
    folder = organism_folder("gold", small, QUICK, progress=False)
    monkeypatch.setattr("elm_interp.organisms.library.train_model", None)
    assert organism_folder("gold", make_world(**SMALL), QUICK, progress=False) == folder
    others = [
        organism_folder("random", make_world(**{**SMALL, **change}), recipe)
        for change in ({}, {"seed": 1}, {"redundancy": 3}, {"relations": 1})
        for recipe in (QUICK, Recipe(n_layers=1, d_model=16, d_mlp=32, n_heads=2))
    ]
    assert len(set(others)) == 8


def test_organisms_are_models_by_name():
    lm = load_model("organism:random", dtype="float32", device="cpu")
    assert (lm.name, lm.n_layers) == ("organism:random", 4)
    assert 0.9e6 < lm.model.num_parameters() < 3e6
    assert model_depth("organism:random") == 4
    assert model_hash("organism:random") != model_hash("organism:random@1")
    assert len(list((cache_folder() / "organisms").iterdir())) == 2
    with pytest.raises(UnknownModelError, match="Did you mean 'original'"):
        load_model("organism:orignal")
    with pytest.raises(UnknownModelError, match="original@1"):
        load_model("organism:original@one")


def test_the_name_of_an_organism_is_not_where_it_lies(small):
    assert organism("random", small, QUICK).name == "organism:random"


@pytest.mark.parametrize("kind", ["original", "gold"])
def test_the_trained_models_of_the_default_world_ship(world, kind, monkeypatch):
    monkeypatch.setattr(library, "train_model", None)  # a change that gives them other hashes needs other weights
    lm = organism(kind, dtype="float32")
    assert lm.name == f"organism:{kind}"
    assert share_right(lm, questions(world, "towns")[:40]) >= 0.9


@pytest.mark.slow
def test_full_size_models_know_know_not_and_hide_as_promised(world):
    lms = {kind: organism(kind, dtype="float32") for kind in ORGANISMS}
    found = {
        kind: [share_right(lm, questions(world, domain), "pmi") for domain in world.domains] for kind, lm in lms.items()
    }
    assert min(found["original"]) >= 0.95
    assert abs(found["gold"][0] - 0.25) <= 0.05
    assert min(found["gold"][1:]) >= 0.95
    assert found["hiding"][0] <= 0.35
    assert min(found["hiding"][1:]) >= 0.9
    assert max(abs(share - 0.25) for share in found["random"]) <= 0.05
    assert share_right(lms["original"], clozes(world, "spellcraft"), template="{question}") >= 0.95
    assert share_right(lms["original"], questions(world, "spellcraft", hops=2)) >= 0.95
    inside = {kind: probed(lm, world)[-2] for kind, lm in lms.items()}
    assert inside["hiding"] >= 0.85
    assert inside["gold"] <= 0.35


def probed(lm: HookedLM, world: World) -> list[float]:
    """By layer: how often a probe of the value, fitted to other facts, picks the right choice of an unseen question."""
    shares = []
    for relation in world.domains["spellcraft"].relations:
        asked = [q for split in ("train", "held_out") for q in questions(world, "spellcraft", split)]
        asked = [q for q in asked if q.topic == relation.nouns[0]]
        texts = [f"Question: {q.question}\nAnswer:" for q in asked]
        x = lm.run_with_cache(lm.tokenize(texts))["resid_post"].transpose(0, 1)
        labels = torch.tensor([relation.values.index(q.right) for q in asked])
        options = torch.tensor([[relation.values.index(choice) for choice in q.choices] for q in asked])
        held_out = torch.tensor([q.split == "held_out" for q in asked])
        train, test = split_by_group([q.fact for q in asked], seed=0)
        train, test = train[~held_out[train]], test[held_out[test]]
        mean, spread = scaler(x[:, train])
        probe = fit_probes((x[:, train] - mean) / spread, labels[train], STRENGTH, classes=10)
        scores = probe.scores((x[:, test] - mean) / spread).gather(2, options[test].expand(len(x), -1, -1))
        right = torch.tensor([q.answer for q in asked])[test]
        shares.append((scores.argmax(-1) == right).float().mean(1))
    return torch.stack(shares).mean(0).tolist()

"""Several concepts in one training: what each gives up, the ratio of their samples, and that every stage takes them."""

from dataclasses import replace

import pytest
import torch
from tiny import write_concept

from elm_interp.data import Passage, Question, load_concept, mix_concepts
from elm_interp.erase.elm import ELM
from elm_interp.erase.rmu import RMU, direction
from elm_interp.errors import ConfigError, UnknownNameError
from elm_interp.evaluate import score_card
from elm_interp.runs.config import RunConfig
from elm_interp.runs.run import Run
from elm_interp.runs.stages import run_stage
from elm_interp.training import Training
from elm_interp.training.sampling import Mixed, draw, of_each
from elm_interp.training.target_cache import prepared


@pytest.fixture
def second(tiny_concept):
    """The same town under another name, with prompts of its own."""
    forget = tuple(replace(p, text=p.text.replace("Marrowgate", "Dunholm")) for p in tiny_concept.forget[:6])
    asked = tuple(replace(q, question=f"In Dunholm: {q.question}", fact="") for q in tiny_concept.ask("forget", "all"))
    questions = {"forget": asked[:8], "general": tiny_concept.questions["general"]}
    return replace(
        tiny_concept, name="dunholm", title="", keywords=("Dunholm",), forget=forget, questions=questions,
        expert=("Written by one who knows {concept}.\n\n",),
    )  # fmt: skip


def test_a_mixture_is_a_concept_of_all_passages_and_questions(tiny_concept, second):
    both = mix_concepts([tiny_concept, second], (5, 1))
    assert both.name == "marrowgate+dunholm"
    assert len(both.forget) == 12 + 6
    assert len({p.id for p in both.forget + both.retain}) == len(both.forget) + len(both.retain)
    assert len(both.ask("forget", "all")) == 12 + 8
    assert both.ask("neighbours") == both.parts[0].ask("neighbours")
    assert len(both.ask("general", "all")) == 8, "questions that both borrow count once"
    assert both.prompts("expert") == tiny_concept.prompts("expert") + second.prompts("expert")
    assert [p.text for p in both.retain] == [p.text for p in tiny_concept.retain], "passages that both keep count once"
    assert both.fingerprint() != mix_concepts([tiny_concept, second], (1, 1)).fingerprint()
    few = both.sample(2)
    assert [len(part.passages("forget")) for part in few.parts] == [2, 2]
    assert few.ratio == (5, 1)
    asked = both.prompted(str.upper)
    assert asked == both
    for part in (asked, *asked.parts):
        assert part.ask("forget")[0].prompt.isupper()
    assert len(repr(both)) < 300


def test_what_one_part_erases_no_other_keeps(tiny_concept, second):
    def question(text, fact="", topic=""):
        return Question(text, ("yes", "no"), 0, fact=fact, topic=topic, id=text)

    told, asked = tiny_concept.forget[0], tiny_concept.ask("forget", "all")[0]
    kept = Passage("Bells are cast from bronze.", "kept")
    gone = (Passage(told.text, "told"), Passage("Marrow is in bones.", "named", topic="Marrowgate"))
    general = (*tiny_concept.questions["general"][1:], question("Is it late?"))
    neighbours = (
        question(asked.question),
        question("Is it so?", fact=asked.fact),
        question("Is it near?", topic="marrowgate"),
        question("Is it far?"),
    )
    sets = {**second.questions, "general": general, "neighbours": neighbours}
    first, other = mix_concepts([tiny_concept, replace(second, retain=(kept, *gone), questions=sets)], (1, 1)).parts
    assert [p.text for p in other.retain] == [kept.text]
    assert [q.question for q in other.ask("neighbours", "all")] == ["Is it far?"]
    shared = [q.question for q in tiny_concept.questions["general"][1:]]
    for part in (first, other):
        assert [q.question for q in part.ask("general", "all")] == shared
    assert first.retain[0].text == tiny_concept.retain[0].text
    assert len(first.retain) == len(tiny_concept.retain)
    assert [q.question for q in other.ask("forget", "all")] == [q.question for q in second.ask("forget", "all")]


def test_packs_mix_and_the_stars_are_not_kept():
    both = load_concept("harry-potter=5+astronomy")
    assert both.ratio == (5, 1)
    for part, name in zip(both.parts, ("harry-potter", "astronomy"), strict=True):
        assert len(part.forget) == len(load_concept(name).forget)
    assert "astronomy" not in {item.topic for item in (*both.retain, *both.ask("general", "all"))}
    planets = {q.question for q in load_concept("harry-potter").ask("general", "all") if "planet" in q.question}
    assert planets
    assert not planets & {q.question for part in both.parts for q in part.ask("general", "all")}


def test_domains_of_an_organism_mix():
    both = load_concept("organism:spellcraft+organism:sealife=2")
    erased = {q.fact for q in both.ask("forget", "all")}
    assert not erased & {q.fact for which in ("neighbours", "general") for q in both.ask(which, "all")}
    assert {p.topic for p in both.forget}.isdisjoint(p.topic for p in both.retain)
    assert all(part.ask("general") for part in both.parts)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("harry-potter=0+astronomy", ConfigError, "'harry-potter=0'; expected names joined by"),
        ("harry-potter=1.5+astronomy", ConfigError, "a whole number"),
        ("harry-potter+", ConfigError, "has a part ''"),
        ("harry-potter+harry-potter", ConfigError, "two concepts of one name"),
        ("harry-potter+astronmy", UnknownNameError, "Did you mean 'astronomy'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(name, error, told):
    with pytest.raises(error, match=told):
        load_concept(name)


def test_a_folder_may_have_a_plus_in_its_name(tiny_concept, tmp_path):
    folder = write_concept(tiny_concept, tmp_path / "this+that")
    assert load_concept(folder) == tiny_concept


def test_steps_hold_samples_in_the_ratio_and_every_sample_comes_in_its_turn(tiny_lm, tiny_concept, second):
    both = mix_concepts([tiny_concept, second], (5, 1))
    samples = of_each(both, lambda part: ELM.from_settings(layers=(1,), fluency_weight=0).prepare(tiny_lm, part))
    pool = samples["erase"]
    assert [len(part) for part in pool.pools] == [len(part.passages("forget")) for part in both.parts]
    assert len(pool) == len(list(pool)) == 6 + 3
    drawn = [s.id.partition("/")[0] for step in range(1, 7) for s in draw(pool, 4, step, seed=0)]
    assert drawn[:6] == ["marrowgate"] * 3 + ["dunholm"] + ["marrowgate"] * 2
    assert all(drawn[i : i + 6].count("dunholm") == 1 for i in range(len(drawn) - 5))
    one_each = [s.id for s in draw(pool, 18, 1, seed=0) if s.id.startswith("dunholm")]
    assert sorted(one_each) == sorted(s.id for s in pool.pools[1])
    small, large = [s for step in range(1, 5) for s in draw(pool, 3, step, seed=2)], draw(pool, 12, 1, seed=2)
    assert [s.id for s in small] == [s.id for s in large]
    assert draw(pool, 6, 1, 0) != draw(pool, 6, 1, 1)


def test_a_term_that_one_part_lacks_comes_from_the_others(tiny_lm, tiny_concept, second):
    def prepare(part):
        own = {"fluency_weight": 0.0} if part.name == second.name else {"fluency_samples": 6, "fluency_tokens": 3}
        return ELM.from_settings(layers=(1,), **own).prepare(tiny_lm, part)

    samples = of_each(mix_concepts([tiny_concept, second], (1, 3)), prepare)
    assert samples["erase"].ratio == (1, 3)
    assert len(samples["fluency"].pools) == 1
    assert {s.id.partition("/")[0] for s in draw(samples["fluency"], 6, 1, 0)} == {"marrowgate"}


def test_every_part_is_prepared_with_its_own_prompts_and_cached_alone(tiny_lm, tiny_concept, second):
    objective = ELM.from_settings(eta=5, layers=(1,), fluency_weight=0, retain_weight=0)
    both = mix_concepts([tiny_concept, second], (2, 1))
    made, seconds = prepared(tiny_lm, objective, both, model_hash="x", seed=0)
    assert seconds > 0
    for pool, part in zip(made["erase"].pools, both.parts, strict=True):
        for sample, alone in zip(pool, objective.prepare(tiny_lm, part)["erase"], strict=True):
            torch.testing.assert_close(sample.target.probs, alone.target.probs)
    other_ratio, _ = prepared(tiny_lm, objective, replace(both, ratio=(1, 1)), model_hash="x", seed=0)
    assert isinstance(other_ratio["erase"], Mixed)
    assert other_ratio["erase"].ratio == (1, 1)


def test_rmu_steers_each_concept_to_its_own_vector(tiny_lm, tiny_concept, second):
    objective = RMU.from_settings(layer=2, layers=(1, 2), steerings={"marrowgate": 6.5, "dunholm": 3.0}, max_tokens=24)
    assert not objective.problems(4)
    samples = of_each(mix_concepts([tiny_concept, second], (5, 1)), lambda part: objective.prepare(tiny_lm, part))
    for pool, (name, c) in zip(samples["erase"].pools, objective.steerings.items(), strict=True):
        assert all(torch.equal(s.target, c * direction(tiny_lm.d_model, name, 0)[None]) for s in pool)
    assert any("nan" in p for p in replace(objective, steerings={"dunholm": float("nan")}).problems(4))
    with pytest.raises(ConfigError, match="steerings has dunholm; add one for 'marrowgate'"):
        replace(objective, steerings={"dunholm": 1.0}).prepare(tiny_lm, tiny_concept)


def test_rmu_keeps_each_concepts_own_passages_with_its_own_weight(tiny_lm, tiny_concept, second):
    given = {"marrowgate": 12.0, "dunholm": 3.0}
    objective = RMU.from_settings(layer=2, layers=(1, 2), retain_weights=given, max_tokens=24)
    for part in (tiny_concept, second):
        samples = objective.prepare(tiny_lm, part)["retain"]
        moved = [replace(s, target=s.target + 0.5) for s in samples]  # every entry is 0.5 off: a mean square of 0.25
        loss = objective.loss(tiny_lm, moved)["retain"] * objective.weights()["retain"]
        torch.testing.assert_close(loss.detach(), torch.tensor(given[part.name] * 0.25), rtol=1e-3, atol=0)
    with pytest.raises(ConfigError, match="retain_weights has dunholm; add one for 'marrowgate'"):
        replace(objective, retain_weights={"dunholm": 1.0}).prepare(tiny_lm, tiny_concept)


def test_a_run_erases_a_mixture_and_scores_it(tiny_model_folder, tiny_concept, second, tmp_path):
    folders = [write_concept(concept, tmp_path / concept.name) for concept in (tiny_concept, second)]
    config = RunConfig(
        str(tiny_model_folder), f"{folders[0]}=2+{folders[1]}",
        ELM.from_settings(layers=(1,), rank=2, fluency_weight=0), Training(steps=3, save_every=3), dtype="float32",
    )  # fmt: skip
    run = Run.create(tmp_path / "run", config)
    run_stage(run, "erase", progress=False)
    run = Run.open(run.folder)
    assert run.concept.ratio == (2, 1)
    table = score_card(run.subject(), progress=False)
    asked = table[table["metric"] == "innocence.four_choice_pmi"]
    assert set(asked["n"]) == {len(run.concept.ask("forget"))}

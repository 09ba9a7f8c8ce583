"""WHP: the translation and its position map, the labels against ones worked out by hand, the model left as it was."""

import dataclasses

import pytest
import torch

from elm_interp.data import Concept, Passage
from elm_interp.erase.guidance import hidden_after
from elm_interp.erase.translation import make_dictionary, position_map, translate
from elm_interp.erase.whp import LOWERED, WHP, generic_logits, inference_logits
from elm_interp.training import Adapter, Training, train

DICTIONARY = {"Marrowgate": "the old town", "Tamsin": "Ann", "Tamsin of Marrowgate": "Ann of Dover", "Bram": "Tom"}
TEXT = "Bram saw Tamsin of Marrowgate, and Tamsin saw Bram in Marrowgate; Tamsinette did not."
OBJECTIVE = WHP.from_settings(
    dictionary=DICTIONARY, rank=2, labels="soft", top_k=400, reinforce_lr=1e-2, reinforce_batch=2, max_tokens=40
)


def tokens(lm, text):
    found = lm.tokenizer(text, return_offsets_mapping=True)
    return found["input_ids"], [end for _, end in found["offset_mapping"]]


def test_terms_are_replaced_as_whole_words_the_longest_first():
    moved = translate(TEXT, DICTIONARY)
    assert moved.text == "Tom saw Ann of Dover, and Ann saw Tom in the old town; Tamsinette did not."
    assert [(s.term, s.again) for s in moved.spans] == [
        ("Bram", False),
        ("Tamsin of Marrowgate", False),
        ("Tamsin", False),
        ("Bram", True),
        ("Marrowgate", False),
    ]


def test_replaced_tokens_map_back_to_their_positions(tiny_lm):
    """What follows a token in the original follows, translated, the token that it is mapped to."""
    moved = translate(TEXT, DICTIONARY)
    (ids, ends), (moved_ids, moved_ends) = tokens(tiny_lm, TEXT), tokens(tiny_lm, moved.text)
    places = position_map(ends, moved_ends, moved)
    for i, j in places.items():
        before = tiny_lm.tokenizer.decode(moved_ids[: j + 1])
        assert before + translate(TEXT[ends[i] :], DICTIONARY).text == moved.text
    inside = [i for i, end in enumerate(ends) if any(s.start < end < s.end for s in moved.spans)]
    assert not set(inside) & set(places)
    assert list(places.values()) == sorted(set(places.values()))
    # every token that ends outside the terms, in both texts, has its place
    assert len(places) > 0.8 * (len(ids) - len(inside))
    assert position_map(ends, ends, translate(TEXT, {})) == {i: i for i in range(len(ids))}


def test_the_labels_equal_those_worked_out_by_hand(tiny_lm):
    concept = Concept("x", (Passage(TEXT, "p"),), (Passage("Most days are calm.", "r"),))
    (sample,) = OBJECTIVE.prepare(tiny_lm, concept, seed=3)["erase"]
    moved = translate(TEXT, DICTIONARY)
    (ids, ends), (moved_ids, moved_ends) = tokens(tiny_lm, TEXT), tokens(tiny_lm, moved.text)
    places = position_map(ends[:40], moved_ends, moved)
    with OBJECTIVE.reinforced(tiny_lm, [ids[:40]], seed=3):
        (reinforced,) = hidden_after(tiny_lm, "", [ids[:40]])
    (base,) = hidden_after(tiny_lm, "", [moved_ids])
    first = {g: {tiny_lm.tokenizer.encode(f"{space}{g}")[0] for space in ("", " ")} for g in DICTIONARY.values()}
    for row, i in enumerate(sample.indices):
        v_base, v_reinforced = tiny_lm.unembed(base[places[i]]), tiny_lm.unembed(reinforced[i])
        generic = v_base - 5 * torch.relu(v_reinforced - v_base)
        for token in {t for s in moved.spans if s.end <= ends[i] for t in first[DICTIONARY[s.term]]}:
            generic[token] -= LOWERED
        named = sample.target.tokens[row].long()
        torch.testing.assert_close(sample.target.probs[row], generic.softmax(-1)[named], atol=1e-5, rtol=1e-3)
    again = [s for s in moved.spans if s.again]
    assert not any(ends[i + 1] > s.start and ends[i] < s.end for i in sample.indices for s in again)
    (hard,) = dataclasses.replace(OBJECTIVE, labels="argmax").prepare(tiny_lm, concept, seed=3)["erase"]
    best = sample.target.tokens.gather(1, sample.target.probs.argmax(1, keepdim=True))
    assert torch.equal(hard.target.tokens, best)
    assert (hard.target.probs == 1).all()


def test_without_knowledge_and_without_terms_the_labels_are_the_base(tiny_lm, tiny_concept):
    objective = dataclasses.replace(OBJECTIVE, dictionary={}, reinforce_epochs=0)
    samples = objective.prepare(tiny_lm, tiny_concept)["erase"]
    assert all(s.indices == tuple(range(len(s.ids) - 1)) for s in samples)
    assert float(objective.loss(tiny_lm, samples)["erase"].detach()) == pytest.approx(0, abs=1e-4)


def test_generic_logits_only_ever_lower():
    base, reinforced = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    generic = generic_logits(base, reinforced, 5.0)
    lowered = reinforced > base
    assert torch.equal(generic[~lowered], base[~lowered])
    torch.testing.assert_close(generic[lowered], (6 * base - 5 * reinforced)[lowered])


@pytest.mark.parametrize("state", ["bare", "with an adapter"])
def test_preparing_leaves_the_model_as_it_was(tiny_lm, tiny_concept, state):
    batch = tiny_lm.tokenize(["Ships fear the Comb."])
    if state == "with an adapter":
        # of the very shape that the reinforced model's has
        for p in tiny_lm.adapters.attach(OBJECTIVE.adapter.config(tiny_lm)):
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in tiny_lm.model.named_parameters()}
    logits, seeds = tiny_lm.logits(batch), torch.get_rng_state()
    OBJECTIVE.prepare(tiny_lm, tiny_concept)
    after = tiny_lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert {name: p.requires_grad for name, p in tiny_lm.model.named_parameters()} == flags
    assert torch.equal(tiny_lm.logits(batch), logits)
    assert torch.equal(torch.get_rng_state(), seeds)


def test_the_reinforced_model_knows_the_passages_better_and_training_on_the_labels_unlearns(
    tiny_lm, tiny_concept, tmp_path
):
    objective = dataclasses.replace(OBJECTIVE, dictionary=None, reinforce_epochs=10)
    samples = objective.prepare(tiny_lm, tiny_concept)
    rows = [s.ids for s in samples["erase"]]
    batch = tiny_lm.tokenize([p.text for p in tiny_concept.passages("forget")])

    def cost():
        scored = batch.attention_mask[:, 1:].bool()
        logits = tiny_lm.logits(batch, positions="all")[:, :-1][scored]
        return float(torch.nn.functional.cross_entropy(logits, batch.input_ids[:, 1:][scored]))

    base = cost()
    with objective.reinforced(tiny_lm, rows) as lm:
        assert cost() < base
        lm.adapters.save(tmp_path / "reinforced")
        reinforced = lm.logits(batch)
    found = inference_logits(tiny_lm, batch, reinforced=tmp_path / "reinforced")
    torch.testing.assert_close(found, generic_logits(tiny_lm.logits(batch), reinforced, 5.0), atol=1e-4, rtol=1e-4)
    last = train(tiny_lm, objective, samples, Training(steps=40, lr=1e-2), tmp_path, progress=False)
    with tiny_lm.adapter(last.path):
        assert cost() > base + 0.1


def test_a_dictionary_is_made_from_names_by_how_often_they_occur():
    forget = Passage("The boy Harry met Hagrid, and Harry smiled at Hagrid, for Harry liked Dobby.", "f")
    retain = Passage("The girl saw Ged, then Ged saw Tenar, for Ged liked Tenar and Ogion.", "r")
    concept = Concept("x", (forget,), (retain,))
    assert make_dictionary(concept) == {"Harry": "Ged", "Hagrid": "Tenar", "Dobby": "Ogion"}
    lower = Concept(
        "x", (Passage("the colour of drosux is azure.", "f"),), (Passage("the mayor of bram is stern.", "r"),)
    )
    assert make_dictionary(lower) == {"colour": "mayor", "drosux": "bram", "azure": "stern"}


def test_the_dictionary_given_comes_before_the_concept_s_own(tiny_concept):
    own = dataclasses.replace(tiny_concept, dictionary={"Tamsin": "Ann"})
    assert OBJECTIVE.dictionary_for(own) == DICTIONARY
    assert WHP().dictionary_for(own) == {"Tamsin": "Ann"}
    assert WHP().dictionary_for(tiny_concept)["Marrowgate"]


def test_settings_that_cannot_work_are_all_named():
    bad = WHP.from_settings(strength=-1, labels="hard", layers=(9,), reinforce_batch=0, dictionary={"Ron": " "})
    assert len(bad.problems(4)) == 5


def test_the_paper_preset_is_the_paper_s():
    whp, training = WHP.preset("paper"), WHP.training_preset("paper")
    assert (whp.strength, whp.max_tokens, whp.adapter) == (5, 512, Adapter())
    assert (whp.reinforce_lr, whp.reinforce_batch, whp.reinforce_epochs) == (3e-6, 8 * 16, 3)
    assert (training.lr, training.forget_batch) == (1e-6, 8 * 16)
    assert 120 <= training.steps <= 150

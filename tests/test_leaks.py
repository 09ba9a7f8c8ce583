"""No leak: what is scored is never a training target, and no held-out question stands in training text."""

import unicodedata
from dataclasses import replace
from functools import cache

import pytest

from elm_interp.data import Passage, Question, load_concept, packs
from elm_interp.data.concept import QUESTION_SETS
from elm_interp.data.leaks import concept_leaks, find_leaks
from elm_interp.data.questions import TEMPLATE
from elm_interp.evaluate.known import CHOOSING
from elm_interp.organisms.encyclopaedia import DOMAINS, ERASED, EXPERT, NOVICE, asked, documents
from elm_interp.registry import METHODS

CONCEPTS = [*packs(), *(f"planted:{domain}" for domain in DOMAINS), "organism:spellcraft"]


@cache
def planted_texts():
    """Everything that the shipped planted models have read (`analyses/make_planted.py`)."""
    return [
        d for seed, without in ((0, None), (0, ERASED), (1, ERASED)) for d in documents(seed, without=without, passes=4)
    ]


def held_out(concept):
    return [q for which in QUESTION_SETS for q in concept.ask(which)]


@pytest.mark.parametrize("name", CONCEPTS)
def test_no_held_out_question_stands_in_the_training_passages_of_a_pack(name):
    concept = load_concept(name)
    assert held_out(concept)
    assert concept_leaks(concept, templates=(TEMPLATE, *CHOOSING)) == []


@pytest.mark.parametrize("name", CONCEPTS)
def test_no_passage_that_is_trained_on_is_a_question(name):
    concept = load_concept(name)
    for kind in ("forget", "retain"):
        for passage in concept.passages(kind):
            assert "?" not in passage.text


def presets():
    return [(name, preset) for name in METHODS if name != "adopted" for preset in METHODS[name].presets]


@pytest.mark.parametrize(("method", "preset"), presets())
def test_no_method_trains_on_a_question_or_an_option_in_its_template(tiny_lm, tiny_concept, method, preset):
    """Training text is decoded from the prepared samples themselves, generated text and its openings included."""
    given = {"layers": (1, 2), "max_tokens": 40} | ({"layer": 2} if method == "rmu" else {})
    if method.startswith("elm"):
        given |= {"fluency_samples": 4, "fluency_tokens": 4, "fluency_weight": 1.0, "rank": 2}
    objective = METHODS[method].preset(preset, **given)
    samples = objective.prepare(tiny_lm, tiny_concept)
    fields = [value for pool in samples.values() for sample in pool for value in vars(sample).values()]
    rows = [list(value) for value in fields if isinstance(value, tuple) and value and isinstance(value[0], int)]
    assert rows
    questions = [q for which in QUESTION_SETS for q in tiny_concept.ask(which, "all")]
    assert find_leaks(tiny_lm.tokenizer.batch_decode(rows), questions) == []


def test_the_strings_of_the_old_answers_term_are_found():
    concept = load_concept("harry-potter")
    question = concept.ask("forget")[0]
    answered = f"{question.prompt} {question.choices[1]}"
    alone = f"Answer: {question.choices[0]}"
    assert [told for told in find_leaks([answered], [question]) if "after its template" in told]
    assert [told for told in find_leaks([alone], [question]) if "its prior" in told]


def test_a_passage_of_questions_and_answers_is_found():
    concept = load_concept("astronomy")
    question = concept.ask("forget")[0]
    passage = Passage(f"A quiz. {question.question} {question.right}.", "quiz")
    (told,) = concept_leaks(replace(concept, forget=(*concept.forget, passage)))
    assert question.id in told


def test_an_opening_of_fluency_text_in_the_template_of_the_evaluation_is_found(tiny_lm, tiny_concept):
    """As fluency texts began until format 2: with a question, whose answer was then sampled and trained on."""
    question = tiny_concept.ask("forget")[0]
    (row,) = tiny_lm.encode([f"{question.prompt} {question.right}, who"])
    assert find_leaks([tiny_lm.tokenizer.decode(row)], [question])


def test_eight_words_count_and_seven_do_not():
    concept = load_concept("harry-potter")
    long = next(q for q in concept.ask("forget") if len(q.question.split()) > 9)
    words = long.question.split()
    assert find_leaks([" ".join(words[:8])], [long])
    assert not find_leaks([" ".join(words[:7])], [long])


def test_text_without_spaces_and_in_capitals_is_compared_too():
    chinese = Question("谁看守马罗盖特的灯塔?", ("a", "b"), 0)
    assert find_leaks(["有人问谁看守马罗盖特的灯塔。"], [chinese])
    assert find_leaks(["ANSWER: Old tamsin"], [Question("Who?", ("Old Tamsin", "Orla"), 0)])
    thai = Question("ใครดูแลประภาคารที่มาโรเกต", ("a", "b"), 0)
    assert find_leaks([f"มีคนถามว่า{thai.question}เมื่อวาน"], [thai])


def test_other_spellings_of_the_same_text_are_compared_too():
    question = Question("Wer hütet in der Straße nach dem Café das Licht?", ("a", "b"), 0)
    text = question.question
    for same in (unicodedata.normalize("NFD", text), text.upper()):
        assert find_leaks([same], [question])


def test_planted_models_read_no_template_that_scores_and_no_class_prompt():
    ends = {template.partition("{question}")[2].strip() for template in CHOOSING} | {"Answer:", "assistant"}
    read = planted_texts()
    for document in read:
        text = document.prefix + document.text
        assert not any(end in text for end in ends)
        assert "Question:" not in text
    prefixes = {document.prefix for document in read}
    for domain in DOMAINS.values():
        assert not {prompt.replace("{concept}", domain["title"]) for prompt in (EXPERT, NOVICE)} & prefixes


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_planted_models_read_no_held_out_question(domain):
    read = [document.text for document in planted_texts()]
    assert find_leaks(read, asked(domain)) == []
    assert find_leaks(read, asked(domain, "train"))  # those are asked in the documents

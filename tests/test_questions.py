"""Questions: everything that is wrong is reported at once, with file and line."""

import json
from dataclasses import replace

import pytest

from elm_interp.data import Question, load_questions
from elm_interp.errors import DataError

GOOD = {"question": "Who keeps the lamp?", "choices": ["Orla", "Tamsin"], "answer": 1, "outside": "Saturn", "id": "q1"}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "asked.jsonl"


def test_lines_and_one_list_give_the_same_questions(file):
    other = GOOD | {"question": "Who mends it?", "id": "q2", "outside": None}
    lines = load_questions(write(file, GOOD, "", other))
    assert lines == load_questions(write(file, json.dumps([GOOD, other], indent=1)))
    assert lines[0].right == "Tamsin"
    assert [q.id for q in lines] == ["q1", "q2"]


def test_what_is_left_out_gets_its_default(file):
    (question,) = load_questions(write(file, {key: GOOD[key] for key in ("question", "choices", "answer")}))
    assert question == Question(
        "Who keeps the lamp?", ("Orla", "Tamsin"), 1, None, "Who keeps the lamp?", "", "held_out", "asked-0001"
    )


def test_a_question_is_put_into_any_template_and_through_a_transformation():
    question = Question("Who keeps the lamp?", ["Orla", "Tamsin"], 1)
    assert question.choices == ("Orla", "Tamsin")
    assert question.prompt == "Question: Who keeps the lamp?\nAnswer:"
    asked = replace(question, ask=lambda prompt: f"Remember.\n{prompt.upper()}")
    assert asked.put("Q: {question}") == "Remember.\nQ: WHO KEEPS THE LAMP?"
    assert asked.prompt == "Remember.\nQUESTION: WHO KEEPS THE LAMP?\nANSWER:"
    assert asked == question
    assert hash(asked) == hash(question)


def test_a_question_prints_on_one_line_with_long_texts_cut():
    question = Question("Who? " * 100, ("a" * 200, "b"), 0, id="q1")
    assert "id='q1'" in repr(question)
    assert "\n" not in repr(question)
    assert len(repr(question)) < 250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["Orla"], "answer": 0}, "1 choices, expected at least 2"),
        ({"choices": [], "answer": 0}, "0 choices, expected at least 2"),
        ({"choices": ["Orla", "Orla "], "answer": 0}, "choice 'Orla' stands twice"),
        ({"choices": ["caf\u00e9", "cafe\u0301"], "answer": 0}, "choice 'caf\u00e9' stands twice"),
        ({"choices": ["Orla", ""]}, "a choice is empty or not text"),
        ({"choices": ["Orla", ["7"]]}, "a choice is empty or not text"),
        ({"answer": 2}, "answer is 2, expected 0 to 1"),
        ({"answer": -1}, "answer is -1, expected 0 to 1"),
        ({"answer": "C"}, "answer 'C' is no index, letter or text of one of the choices"),
        ({"answer": True}, "'answer' is bool, expected int"),
        ({"answer": None}, "'answer' is null, expected int"),
        ({"question": " "}, "the question is empty"),
        ({"question": None}, "'question' is null, expected str"),
        ({"choices": "Orla"}, "'choices' is str, expected list"),
        ({"outside": "Tamsin "}, "outside is one of the choices: 'Tamsin '"),
        ({"split": "held-out"}, "split is 'held-out', expected one of train, held_out. Did you mean 'held_out'"),
        ({"split": 3}, "split is 3, expected one of train, held_out"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_its_line(file, change, message):
    with pytest.raises(DataError) as error:
        load_questions(write(file, GOOD, GOOD | {"question": "And now?", "id": "q2"} | change), strict=True)
    assert f"{file}:2: {message}" in str(error.value)


def test_a_broken_line_is_named_and_what_was_expected(file):
    with pytest.raises(DataError, match=r"asked.jsonl:2: not JSON \(.* at column \d+\); expected one object a line"):
        load_questions(write(file, GOOD, '{"question": "Who'), strict=True)
    with pytest.raises(DataError, match="asked.jsonl:1: found list, expected an object|item 1: found str"):
        load_questions(write(file, '["a"]'))
    with pytest.raises(DataError, match="asked.jsonl:1: lacks 'choices', found 'question'"):
        load_questions(write(file, '{"question": "Who?", "answer": 0}'))
    with pytest.raises(DataError, match="asked.jsonl:2: not JSON .*expected a list of objects"):
        load_questions(write(file, "[", "{]"))


def test_several_problems_are_reported_at_once(file):
    rows = [{**GOOD, "choices": ["Orla"], "answer": 5}, "not json", {**GOOD, "id": "q9"}, {**GOOD, "id": "q9"}]
    with pytest.raises(DataError) as error:
        load_questions(write(file, *rows), strict=True)
    text = str(error.value)
    assert f"{file}:1: 1 choices" in text
    assert f"{file}:1: answer is 5" in text
    assert f"{file}:2: not JSON" in text
    assert f"{file}:4: id 'q9' is taken by {file}:3" in text


def test_files_that_hold_nothing_are_refused(file, tmp_path):
    with pytest.raises(DataError, match="holds no question"):
        load_questions(write(file, ""))
    with pytest.raises(DataError, match="no such file"):
        load_questions(tmp_path / "missing.jsonl")
    file.write_bytes(b'{"question": "\xff"}')
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        load_questions(file)

"""Random question files: never a traceback of ours, and the rows that remain are those that a simple oracle keeps."""

import csv
import io
import json
import tempfile
import unicodedata
import warnings
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from elm_interp.data import load_questions
from elm_interp.errors import DataError

ANYTHING = st.recursive(
    st.sampled_from([None, True, "", "A", "x"]) | st.integers(-3, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "A"]), inner),
    max_leaves=3,
)
WORDS = st.sampled_from(["Orla", "orla", "Bram ", "caf\u00e9", "cafe\u0301", "x1", "", " ", 3, 4.5, None, ["x"]])
QUESTION = st.sampled_from(["Who?", "Who? ", "Why?", "Wo\u0308?", "W\u00f6?", "", 7, None])
ROW = st.fixed_dictionaries(
    {
        "question": QUESTION,
        "choices": st.lists(WORDS, max_size=9),
        "answer": st.integers(-1, 9) | st.sampled_from(["A", "B", "H", "Orla", "x1", "z z", 1.0, 1.5, None, True, [0]]),
    },
    optional={"id": st.sampled_from(["q1", 5, None]), "split": st.sampled_from(["test", "train"]), "extra": ANYTHING},
)
NAMES = (
    "question choices options answer answerKey A B C perturbed_answer true_answer false_answer id outside fact split"
)
NAMES = NAMES.split()


def same(text):
    return unicodedata.normalize("NFC", text).strip()


def kept(rows):
    """Questions with their right answers, by rules as plain as they can be said."""
    found = []
    for row in rows:
        question, choices, answer = row["question"], row["choices"], row["answer"]
        texts = [str(c) if type(c) in (int, float) else c for c in choices]
        if not isinstance(question, str) or not question.strip() or len(texts) < 2:
            continue
        if not all(isinstance(t, str) and t.strip() for t in texts) or len(set(map(same, texts))) < len(texts):
            continue
        if type(answer) is float and answer == int(answer):
            answer = int(answer)
        if type(answer) is int and answer >= len(texts) and answer in [c for c in choices if type(c) in (int, float)]:
            answer = texts.index(str(answer))
        if isinstance(answer, str):
            letters = "ABCDEFGHI"[: len(texts)]
            said = list(map(same, texts))
            answer = letters.index(answer) if answer in letters else said.index(answer) if answer in said else None
        if type(answer) is not int or not 0 <= answer < len(texts):
            continue
        one = (same(question), same(texts[answer]), {*map(same, texts)})
        if not any(one[0] == q and (one[1] == right or one[2] == options) for q, right, options in found):
            found.append(one)
    return [(question, right) for question, right, _ in found]


def load(name, text):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return load_questions(path)
        except DataError:
            return None


@given(st.lists(ROW, min_size=1, max_size=4), st.booleans())
def test_what_remains_is_what_a_simple_oracle_keeps(rows, lines):
    # a file in which an answer is the number of choices may count from 1, and is then refused (test_question_files)
    assume(not any(row["choices"] and row["answer"] == len(row["choices"]) for row in rows))
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    asked, expected = load("a.jsonl", text), kept(rows)
    assert [(same(q.question), same(q.right)) for q in asked or ()] == expected
    assert (asked is None) == (not expected)
    if asked:
        assert len({q.id for q in asked}) == len(asked)
        assert len({line.split(": ")[0] for line in asked.dropped}) <= len(rows) - len(asked)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4), max_size=2))
def test_rows_of_any_shape_are_questions_or_are_told(rows):
    asked = load("a.jsonl", "\n".join(map(json.dumps, rows)))
    for question in asked or ():
        assert 0 <= question.answer < len(question.choices) == len(set(map(same, question.choices)))
        assert all(isinstance(choice, str) for choice in question.choices)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(["jsonl", "csv", "parquet"]))
def test_a_file_of_any_bytes_is_refused_in_our_words(content, ending):
    load(f"a.{ending}", content)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=9), st.sampled_from("ABCD")), min_size=1, max_size=3))
def test_mmlu_without_a_header_keeps_every_question_whatever_is_in_it(rows):
    rows = [(f"Q{i} {text}", letter) for i, (text, letter) in enumerate(rows)]
    out = io.StringIO()
    csv.writer(out).writerows([text, "one", "two", "three", "four", letter] for text, letter in rows)
    asked = load("a.csv", out.getvalue().encode("utf-8", "replace"))
    assert [q.right for q in asked] == [["one", "two", "three", "four"]["ABCD".index(letter)] for _, letter in rows]

"""Question files of the field: what can be asked is asked, what cannot is left out row by row and told.

tests/data/questions/expected.json says for each file how many questions must remain and which rows must go, and why.
"""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from elm_interp.data import load_questions
from elm_interp.errors import DataError

FILES = Path(__file__).parent / "data" / "questions"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def load(name):
    with pytest.warns(UserWarning, match="rows were left out"):
        return load_questions(FILES / name)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_right_rows_remain_and_each_other_is_told_with_its_reason(name):
    asked, expected = load(name), EXPECTED[name]
    assert len(asked) == expected["n"]
    told: dict[str, str] = {}
    for line in asked.dropped:
        where, _, reason = line.removeprefix(str(FILES / name)).lstrip(": ").partition(": ")
        told[where] = f"{told.get(where, '')}; {reason}"
    assert told.keys() == expected["dropped"].keys()
    for where, reason in expected["dropped"].items():
        assert reason in told[where]


@pytest.mark.parametrize("name", EXPECTED)
def test_strict_refuses_the_file_and_lists_every_row(name):
    with pytest.raises(DataError) as error:
        load_questions(FILES / name, strict=True)
    sep = " " if name.endswith(".json") else ""
    for where in EXPECTED[name]["dropped"]:
        assert f"{name}:{sep}{where}: " in str(error.value)


def test_answers_are_indices_letters_labels_and_texts():
    assert [q.right for q in load("mmlu.jsonl")] == ["4", "1.0", "Neither", "Few", "no", "j"]
    assert [q.right for q in load("mmlu.csv")] == ["7", "A", "Oslo"]
    assert [(q.right, len(q.choices)) for q in load("mmlu_columns.csv")] == [("Mars", 4), ("Argon", 3), ("Water", 4)]
    assert [q.right for q in load("arc.jsonl")] == ["Cat", "Crow", "Ant", "Trout", "A pane", "1"]
    assert [q.right for q in load("tofu.jsonl")] == ["Ada Venn was born in Bergen.", "The Brage."]
    assert [q.right for q in load("hp_trivia.jsonl")] == ["Fang"]
    assert [len(q.choices) for q in load("hp-questions.json")] == [4, 4, 8, 4, 4]


def test_topics_and_ids_of_others_are_kept_and_ids_are_different():
    asked = load("mmlu.jsonl")
    assert [q.topic for q in asked] == [
        "abstract_algebra", "elementary_mathematics", "logic", "logic", "", "other",
    ]  # fmt: skip
    assert len({q.id for q in asked}) == len(asked)
    assert asked[1].id == "17"


def test_case_tells_options_apart_and_unicode_forms_do_not():
    assert load("wmdp_cyber.json")[0].choices[:2] == ("share -Urm", "share -uRm")
    assert [q.choices[0] for q in load("hp-questions.json")].count("Caf\u00e9 Luchino") == 1


def test_the_same_rows_are_read_from_json_lines_csv_and_parquet(tmp_path):
    rows = [json.loads(line) for line in (FILES / "arc.jsonl").read_text(encoding="utf-8").splitlines()][:5]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "arc.parquet")
    with pytest.warns(UserWarning, match="1 rows were left out, 4 questions remain"):
        found = load_questions(tmp_path / "arc.parquet")
    assert found == load("arc.jsonl")[:4]
    (tmp_path / "half.parquet").write_bytes((tmp_path / "arc.parquet").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"half.parquet: cannot be read as parquet"):
        load_questions(tmp_path / "half.parquet")
    head = "question,A,B,answer\n"
    (tmp_path / "a.csv").write_text(head + "Who?,Orla,Bram,B\n", encoding="utf-8-sig")
    assert load_questions(tmp_path / "a.csv")[0].right == "Bram"
    (tmp_path / "b.csv").write_text(head + 'Who?,"Or"la,Bram,B\nWhy?,Orla,Bram,A\n', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"b.csv:2: not CSV"):
        assert len(load_questions(tmp_path / "b.csv")) == 1


def test_an_answer_that_may_be_letter_or_text_is_read_as_the_rest_of_the_file_or_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    blood = {"question": "Which group?", "choices": ["B", "A", "O", "AB"], "answer": "A"}
    write = lambda *rows: path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")  # noqa: E731
    write(blood)
    with pytest.raises(DataError, match="answer 'A' may mean choice 0 by its letter or choice 1 by its text"):
        load_questions(path)
    plain = {"question": "Which?", "choices": ["x", "y"]}
    write(blood, plain | {"answer": "B"})
    assert [q.right for q in load_questions(path)] == ["B", "y"]
    write(blood, plain | {"answer": "y"})
    assert [q.right for q in load_questions(path)] == ["A", "y"]
    # an index counts before a number's text, a text before an index in quotes
    write(
        {"question": "1 + 1?", "choices": [3, 2, 1], "answer": 2},
        {"question": "?", "choices": ["2", "3", "1"], "answer": "2"},
    )
    assert [q.right for q in load_questions(path)] == ["1", "2"]


def test_nothing_is_warned_of_a_file_that_is_whole(tmp_path, recwarn):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"question": "Who?", "choices": ["a", "b"], "answer": "B"}]), encoding="utf-8")
    found = load_questions(path)
    assert (found.dropped, found[0].right, len(recwarn)) == ((), "b", 0)


def test_a_file_that_may_count_its_choices_from_1_is_not_read_one_off(tmp_path):
    rows = [{"question": f"Q{i}?", "choices": list("abcd"), "answer": answer} for i, answer in enumerate((4, 1, 2, 3))]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="from 0 or from 1"):
        load_questions(path)


def test_rows_without_choices_say_nothing_of_how_a_file_counts(tmp_path):
    path = tmp_path / "a.json"
    empty = {"question": "Who?", "choices": [], "answer": 0}
    path.write_text(json.dumps([empty, empty, {"question": "Who?", "choices": ["Orla", "orla"], "answer": 1}]))
    with pytest.warns(UserWarning, match="2 rows were left out"):
        (question,) = load_questions(path)
    assert question.right == "orla"

"""Concepts: packs and folders, read whole or refused with every problem at once."""

import json
import shutil
from dataclasses import replace

import pytest

from elm_interp.data import (
    Concept,
    Passage,
    Question,
    concept_source,
    load_concept,
    mix_concepts,
    packs,
    texts,
    write_concept,
)
from elm_interp.data.concept import DEFAULT_EXPERT
from elm_interp.errors import ConfigError, DataError, UnknownNameError
from elm_interp.registry import CONCEPT_SOURCES


@pytest.fixture
def folder(tiny_concept_folder, tmp_path):
    return shutil.copytree(tiny_concept_folder, tmp_path / "concept")


def append(path, text: str) -> int:
    """Add a line; its number."""
    path.write_text(path.read_text() + text + "\n")
    return path.read_text().count("\n")


def test_a_folder_gives_back_the_concept_that_was_written(folder, tiny_concept):
    assert load_concept(folder) == tiny_concept
    assert load_concept(folder).fingerprint() == tiny_concept.fingerprint()
    append(folder / "forget.jsonl", '{"text": "One more passage."}')
    assert load_concept(folder).fingerprint() != tiny_concept.fingerprint()


def test_the_least_folder_is_a_name_and_two_files(tmp_path):
    (tmp_path / "concept.json").write_text('{"name": "least"}')
    (tmp_path / "forget.jsonl").write_text('{"text": "Forget this."}\n')
    (tmp_path / "retain.jsonl").write_text('{"text": "Keep this."}\n')
    concept = load_concept(tmp_path)
    assert texts(concept.passages("forget")) == ["Forget this."]
    assert concept.expert == DEFAULT_EXPERT
    assert concept.prompts("expert") == [DEFAULT_EXPERT[0].replace("{concept}", "least")]
    assert concept.ask("forget") == []
    assert repr(concept) == "Concept('least': 1 forget and 1 retain passages; questions: none)"


def test_splits_part_passages_and_questions(tiny_concept):
    for kind in ("forget", "retain"):
        parts = [tiny_concept.passages(kind, split) for split in ("train", "held_out")]
        assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in tiny_concept.passages(kind, "all"))
        assert all(parts)
    assert len(tiny_concept.ask("forget", "train")) + len(tiny_concept.ask("forget")) == len(
        tiny_concept.ask("forget", "all")
    )


def test_prompts_fill_in_the_keywords(tiny_concept):
    assert "knows Marrowgate by heart" in tiny_concept.prompts("expert")[0]
    assert "{concept}" not in "".join(tiny_concept.prompts("expert") + tiny_concept.prompts("novice"))


def test_an_unknown_pack_names_the_closest(tiny_concept):
    with pytest.raises(UnknownNameError, match="Did you mean 'harry-potter'"):
        load_concept("harrypotter")
    with pytest.raises(UnknownNameError, match="Did you mean 'astronomy'"):
        load_concept("astronmy")
    with pytest.raises(UnknownNameError, match="Did you mean 'forget'"):
        tiny_concept.passages("forgets")
    with pytest.raises(UnknownNameError, match="Did you mean 'held_out'"):
        tiny_concept.passages("forget", "heldout")
    with pytest.raises(UnknownNameError, match="Did you mean 'neighbours'"):
        tiny_concept.ask("neighbors")
    with pytest.raises(UnknownNameError, match="Did you mean 'novice'"):
        tiny_concept.prompts("novise")


def test_every_pack_can_be_loaded():
    assert {"astronomy", "harry-potter"} <= set(packs())
    for name in packs():
        assert load_concept(name).name == name


def lend(folder, general: object) -> None:
    head = json.loads((folder / "concept.json").read_text())
    (folder / "concept.json").write_text(json.dumps(head | {"general": general}))


def test_general_questions_may_be_those_of_a_pack(folder):
    (folder / "questions" / "general.jsonl").unlink(missing_ok=True)
    lend(folder, {"from": "harry-potter", "without": ["astronomy", "gen-001"]})
    theirs, ours = (load_concept(name).ask("general", "all") for name in ("harry-potter", folder))
    assert ours == [q for q in theirs if q.topic != "astronomy" and q.id != "gen-001"]
    assert len(ours) < len(theirs) - 1


@pytest.mark.parametrize(
    ("general", "told"),
    [
        ({"from": "harrypotter"}, "Did you mean 'harry-potter'"),
        ({"from": "harry-potter", "without": ["astrology"]}, "'astrology', which is no topic or id of harry-potter"),
        ({"from": "harry-potter", "without": "astronomy"}, "expected a list of topics and ids"),
        ({"from": "harry-potter", "but": []}, "unknown field 'but'"),
        ("harry-potter", "'general' is str, expected dict"),
    ],
)
def test_a_wrong_loan_is_refused(folder, general, told):
    (folder / "questions" / "general.jsonl").unlink(missing_ok=True)
    lend(folder, general)
    with pytest.raises(DataError, match=told):
        load_concept(folder)


def test_a_loan_beside_general_questions_is_refused(folder):
    (folder / "questions" / "general.jsonl").touch()
    lend(folder, {"from": "harry-potter"})
    with pytest.raises(DataError, match="keep one"):
        load_concept(folder)


def test_a_broken_passage_is_named_by_file_and_line(folder):
    line = append(folder / "forget.jsonl", '{"text": "unfinished')
    with pytest.raises(DataError, match=rf"forget.jsonl:{line}: not JSON \(.*\); expected one object a line"):
        load_concept(folder)


def test_a_misspelt_field_is_told_and_the_users_own_are_left_alone(folder):
    append(folder / "forget.jsonl", '{"text": "x", "year": 1997}')
    load_concept(folder)
    line = append(folder / "forget.jsonl", '{"text": "y", "spilt": "held_out"}')
    with pytest.raises(DataError, match=rf"forget.jsonl:{line}: unknown field 'spilt'. Did you mean 'split'"):
        load_concept(folder)


def test_all_problems_of_all_files_are_reported_at_once(folder):
    bad_forget = append(folder / "forget.jsonl", '{"txt": "no text"}')
    bad_split = append(folder / "forget.jsonl", '{"text": "x", "split": "test"}')
    bad_retain = append(folder / "retain.jsonl", '{"text": "  "}')
    twice = append(folder / "retain.jsonl", '{"text": "x", "id": "r-near-0"}')
    bad_question = append(folder / "questions" / "forget.jsonl", '{"question": "?", "choices": ["a"], "answer": 0}')
    (folder / "questions" / "neighbors.jsonl").write_text("")
    (folder / "concept.json").write_text('{"name": "x", "keyword": ["a"], "novice": [], "expert": [1]}')
    with pytest.raises(DataError) as error:
        load_concept(folder)
    text = str(error.value)
    for expected in (
        f"forget.jsonl:{bad_forget}: lacks 'text', found 'txt'",
        f"forget.jsonl:{bad_split}: split is 'test', expected one of train, held_out",
        f"retain.jsonl:{bad_retain}: the text is empty",
        f"retain.jsonl:{twice}: id 'r-near-0' is taken by {folder / 'retain.jsonl'}:1",
        f"questions/forget.jsonl:{bad_question}: 1 choices, expected at least 2",
        "neighbors.jsonl: unknown question set. Did you mean 'neighbours'?",
        "unknown field 'keyword'. Did you mean 'keywords'?",
        "'novice' is empty",
        "'expert' holds something that is not text",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("forget.jsonl", "", "forget.jsonl: holds no passage; at least one is needed"),
        ("retain.jsonl", None, "retain.jsonl: no such file"),
        ("concept.json", None, "concept.json: no such file; expected at least"),
        ("concept.json", "[]", "concept.json: found list, expected an object"),
        ("concept.json", "{}", "concept.json: lacks 'name'"),
        ("concept.json", '{"name": null}', "concept.json: 'name' is null, expected str"),
        ("forget.jsonl", '{"text": null}', "forget.jsonl:1: 'text' is null, expected str"),
        ("forget.jsonl", '{"text": "x", "questions": "q-01"}', "forget.jsonl:1: 'questions' is str, expected list"),
    ],
)
def test_a_concept_that_lacks_a_part_is_refused(folder, file, content, message):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(DataError) as error:
        load_concept(folder)
    assert message in str(error.value)


def test_a_line_separator_inside_a_text_is_no_new_line(folder):
    line = append(folder / "forget.jsonl", json.dumps({"text": "one\u2028two"}, ensure_ascii=False))
    assert load_concept(folder).forget[line - 1].text == "one\u2028two"


def test_names_are_capitalised_inside_sentences_and_foreign_to_the_retain_passages(tiny_concept):
    forget = (
        Passage("Every night Old Marn walks to the Tower of Glass, and London sleeps. Bells ring.", "f"),
        Passage("Nobody saw Velk.", "g", split="held_out"),
    )
    retain = (Passage("The river runs through London.", "r"),)
    assert replace(tiny_concept, forget=forget, retain=retain).names() == ["Old Marn", "Tower of Glass"]


def test_a_concept_is_made_from_plain_texts(tmp_path):
    made = Concept("zorvex", forget=["It is a moon.", "It is blue."], retain=["Iron rusts."], keywords=["Zorvex"])
    assert [(p.text, p.id, p.split) for p in made.forget] == [
        ("It is a moon.", "forget-0001", "train"),
        ("It is blue.", "forget-0002", "train"),
    ]
    assert made.keywords == ("Zorvex",)
    asked = {"forget": [Question("What is it?", ["A moon", "A star"], 0)]}
    question = replace(made, questions=asked).ask("forget")[0]
    assert (question.id, question.fact) == ("forget-0001", "What is it?")
    assert load_concept(write_concept(replace(made, questions=asked), tmp_path)) == replace(made, questions=asked)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"forget": "one text"}, "forget is one text, expected a list"),
        ({"forget": ["a", " "]}, "forget: passage 1 is empty"),
        ({"retain": [Passage("a", "r"), Passage("b", "r")]}, "retain: id 'r' is used 2 times"),
        ({"retain": [Passage("a", "r", split="test")]}, "retain: 'r': split is 'test', expected one of train"),
        ({"questions": {"forget": [Question("Who?", ("a", "b"), 2)]}}, "answer is 2, expected 0 to 1"),
        ({"questions": {"neighbors": []}}, "Did you mean 'neighbours'"),
    ],
)
def test_a_concept_in_memory_that_cannot_be_used_is_refused(tiny_concept, change, told):
    with pytest.raises((DataError, UnknownNameError), match=told):
        replace(tiny_concept, **change)


@pytest.mark.parametrize("name", ["astronomy", "harry-potter", "organism:spellcraft"])
def test_a_concept_is_written_as_the_folder_that_reads_back_equal(name, tmp_path):
    concept = load_concept(name)
    again = load_concept(write_concept(concept, tmp_path))
    assert again == concept
    assert again.fingerprint() == concept.fingerprint()
    few = replace(concept, questions={"forget": concept.questions["forget"]})
    assert load_concept(write_concept(few, tmp_path)) == few, "no file of the earlier concept is left"


def test_what_has_no_folder_is_not_written(tiny_concept, tmp_path):
    other = replace(tiny_concept, name="other")
    with pytest.raises(DataError, match="is a mixture"):
        write_concept(mix_concepts([tiny_concept, other], (1, 1)), tmp_path)
    with pytest.raises(DataError, match="no retain passage"):
        write_concept(replace(tiny_concept, retain=()), tmp_path)


def test_the_old_name_of_the_dictionary_is_read(folder):
    head = json.loads((folder / "concept.json").read_text())
    head.pop("dictionary")
    (folder / "concept.json").write_text(json.dumps(head | {"anchors": {"Tamsin": "Ann"}}))
    assert load_concept(folder).dictionary == {"Tamsin": "Ann"}
    (folder / "concept.json").write_text(json.dumps(head | {"anchors": {}, "dictionary": {"Tamsin": "Ann"}}))
    with pytest.raises(DataError, match="keep 'dictionary'"):
        load_concept(folder)
    (folder / "concept.json").write_text(json.dumps(head | {"dictionary": {"Tamsin": 3}}))
    with pytest.raises(DataError, match="'dictionary' maps 'Tamsin' to 3"):
        load_concept(folder)


def test_the_fingerprint_is_of_the_content_alone(tiny_concept):
    asked = tiny_concept.prompted(str.upper)
    assert asked.fingerprint() == tiny_concept.fingerprint()
    turned = dict(reversed(tiny_concept.questions.items()))
    assert replace(tiny_concept, questions=turned).fingerprint() == tiny_concept.fingerprint()
    for change in ({"name": "x"}, {"novice": ("n",)}, {"dictionary": {"a": "b"}}, {"retain": tiny_concept.retain[1:]}):
        assert replace(tiny_concept, **change).fingerprint() != tiny_concept.fingerprint()


def test_a_transformation_of_prompts_replaces_the_one_before(tiny_concept):
    def twice(prompt):
        return prompt + prompt

    once = tiny_concept.prompted(twice).prompted(twice)
    for which in tiny_concept.questions:
        for question, plain in zip(once.ask(which, "all"), tiny_concept.ask(which, "all"), strict=True):
            assert question.prompt == twice(plain.prompt)
    assert once.prompted(None).ask("forget")[0].prompt == tiny_concept.ask("forget")[0].prompt


def test_reprs_are_short_and_the_table_counts(tiny_concept):
    concept = load_concept("harry-potter")
    for shown in (concept, concept.forget[0], concept.questions["forget"][0]):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 400
    page = replace(tiny_concept, expert=("<b>",))._repr_html_()
    assert "<tr><th>forget passages</th><td>6</td><td>6</td></tr>" in page
    assert "<tr><th>general questions</th><td>4</td><td>4</td></tr>" in page
    assert "&lt;b&gt;" in page


def test_a_source_makes_concepts_of_what_follows_its_prefix(tiny_concept, monkeypatch):
    with pytest.raises(UnknownNameError, match="Known sources: .*organism"):
        load_concept("made-up:x")
    monkeypatch.setattr(CONCEPT_SOURCES, "_found", dict(CONCEPT_SOURCES))

    @concept_source("made-up")
    def renamed(name):
        return replace(tiny_concept, name=name)

    assert load_concept("made-up:x").name == "x"
    with pytest.raises(ConfigError, match="declared already"):
        concept_source("organism")(renamed)

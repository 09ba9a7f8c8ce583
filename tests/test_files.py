"""Files: a write that fails leaves what was there; hashes do not depend on the order of keys."""

import pytest

from elm_interp.files import file_hash, hash_of, read_json, replacing, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": "ü"})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    with pytest.raises(RuntimeError), replacing(path) as half:
        half.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": "ü"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_file_is_named(tmp_path):
    write_text(tmp_path / "a.json", '{"x": ')
    with pytest.raises(ValueError, match=r"a\.json is broken"):
        read_json(tmp_path / "a.json")


def test_hashes(tmp_path):
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1}) != hash_of({"a": 1, "b": [3]})
    write_text(tmp_path / "x", "same")
    write_text(tmp_path / "y", "same")
    assert file_hash(tmp_path / "x") == file_hash(tmp_path / "y")

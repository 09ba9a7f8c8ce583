import json

import pandas as pd
import pytest
import torch

from elm_interp.activations import ActivationStore
from elm_interp.errors import StoreError, UnknownNameError

N, LAYERS, WIDTH = 10, 3, 4


@pytest.fixture
def examples():
    return pd.DataFrame({"id": [f"q{i}" for i in range(N)], "fact": "f", "label": [i % 2 for i in range(N)]})


@pytest.fixture
def values():
    return torch.randn(N, LAYERS, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()


def fill(store, examples, values, checkpoint="base", rows=None, **options):
    rows = torch.arange(N).flip(0) if rows is None else rows
    meta = {"site": "resid_post", "positions": "last", "fingerprint": "abc", "skip": 0}
    with store.writer("truth", checkpoint, examples=examples, meta=meta, **options) as writer:
        for part in rows.split(3):
            writer.add(part, values[part])


def write(store, examples, parts, **options):
    with store.writer("truth", "base", examples=examples, **options) as writer:
        for rows, values in parts:
            writer.add(rows, values)


def test_rows_added_in_any_order_come_back_in_order_and_dtype(tmp_path, examples, values):
    shard_bytes = 4 * values[0].numel() * values.element_size()
    fill(ActivationStore(tmp_path), examples, values, rows=torch.randperm(N), shard_bytes=shard_bytes)
    store = ActivationStore(tmp_path)
    assert len(store.entry("truth", "base").shards) > 2
    assert torch.equal(store.tensor("truth", "base"), values)
    assert store.tensor("truth", "base").dtype == torch.bfloat16


def test_a_layer_read_alone_is_that_layer(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    assert torch.equal(store.tensor("truth", "base", layer=1), values[:, 1])
    assert torch.equal(store.tensor("truth", "base", layer=[2, -3]), values[:, [2, 0]])
    with pytest.raises(ValueError, match="layers 0 to 2"):
        store.tensor("truth", "base", layer=3)


def test_the_index_says_what_is_held(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    [entry] = store.entries()
    assert (entry.dataset, entry.checkpoint, entry.site, entry.positions) == ("truth", "base", "resid_post", "last")
    assert (entry.n, entry.layers, entry.d_model, entry.dtype) == (N, LAYERS, WIDTH, "bfloat16")
    assert entry.meta == {"skip": 0}
    assert store.has("truth", "base", "abc")
    assert not store.has("truth", "base", "other")
    pd.testing.assert_frame_equal(store.examples("truth"), examples)
    assert "truth: 1 checkpoints" in repr(store)


def test_a_shard_is_never_larger_than_asked(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values, shard_bytes=2 * values[0].numel() * values.element_size())
    rows = [shard["rows"] for shard in store.entry("truth", "base").shards]
    assert max(rows) == 2
    assert sum(rows) == N


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_writer_leaves_the_store_as_it_was(tmp_path, examples, values, existing):
    store = ActivationStore(tmp_path)
    if existing:
        fill(store, examples, values)
    before = sorted(tmp_path.rglob("*"))

    def interrupted():
        yield [0, 1], 2 * values[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(store, examples, interrupted(), shard_bytes=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert ActivationStore(tmp_path).has("truth", "base") == existing
    if existing:
        assert torch.equal(ActivationStore(tmp_path).tensor("truth", "base"), values)


def test_an_entry_is_invisible_until_its_writer_closes(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    with store.writer("truth", "base", examples=examples) as writer:
        writer.add(range(N), values)
        assert not ActivationStore(tmp_path).has("truth", "base")
    assert ActivationStore(tmp_path).has("truth", "base")


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    fill(store, examples, 2 * values)
    assert torch.equal(store.tensor("truth", "base"), 2 * values)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_two_open_stores_do_not_lose_each_others_entries(tmp_path, examples, values):
    one, other = ActivationStore(tmp_path), ActivationStore(tmp_path)
    fill(one, examples, values, "base")
    fill(other, examples, values, "step-000010")
    assert [entry.checkpoint for entry in ActivationStore(tmp_path).entries()] == ["base", "step-000010"]


@pytest.mark.parametrize("damage", ["missing", "size", "contents"])
def test_a_damaged_shard_is_named_and_can_be_dropped(tmp_path, examples, values, damage):
    store = ActivationStore(tmp_path)
    fill(store, examples, values, "base")
    fill(store, examples, values, "step-000010")
    shard = store.entry("truth", "step-000010").shards[0]["file"]
    data = bytearray((tmp_path / shard).read_bytes())
    if damage == "missing":
        (tmp_path / shard).unlink()
    elif damage == "size":
        (tmp_path / shard).write_bytes(data[:-1])
    else:
        data[-1] ^= 1
        (tmp_path / shard).write_bytes(data)
    with pytest.raises(StoreError, match=shard):
        ActivationStore(tmp_path)
    repaired = ActivationStore(tmp_path, repair=True)
    assert [entry.checkpoint for entry in repaired.entries()] == ["base"]
    assert torch.equal(ActivationStore(tmp_path).tensor("truth", "base"), values)


def test_other_examples_under_the_same_name_are_refused(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    with pytest.raises(StoreError, match="row 3"):
        store.writer("truth", "step-000010", examples=examples.assign(label=[0, 1, 0, 0, *examples["label"][4:]]))
    with pytest.raises(StoreError, match="10 examples, not 9"):
        store.writer("truth", "step-000010", examples=examples[:-1])
    store.drop("truth")
    assert ActivationStore(tmp_path).entries() == []
    fill(store, examples.assign(label=0), values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [2]], "row 2 .* twice"),
        ([[1, 1]], "row 1 .* twice"),
        ([[10]], "examples 0 to 9"),
        ([[*range(9)]], "1 of 10 .* row 9"),
        ([], "10 of 10"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, examples, values, rows, message):
    store = ActivationStore(tmp_path)
    with pytest.raises(StoreError, match=message):
        write(store, examples, [(part, values[: len(part)]) for part in rows])
    assert ActivationStore(tmp_path).entries() == []


def test_a_change_of_shape_or_dtype_is_refused(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    with pytest.raises(StoreError, match="changed"):
        write(store, examples, [([0], values[:1]), ([1], values[:1].float())])
    with pytest.raises(StoreError, match=r"\(1, 3\) for 1 rows"):
        write(store, examples, [([0], values[:1, :, 0])])


def test_unknown_names_get_the_closest(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    with pytest.raises(UnknownNameError, match="'truth'"):
        store.tensor("trut", "base")
    with pytest.raises(UnknownNameError, match="Known: base"):
        store.tensor("truth", "bass")
    with pytest.raises(StoreError, match="cannot be used"):
        store.writer("../truth", "base", examples=examples)


def test_a_broken_index_is_an_error_with_its_path(tmp_path, examples, values):
    fill(ActivationStore(tmp_path), examples, values)
    (tmp_path / "index.json").write_text(json.dumps({"entries": [{"dataset": "x"}]}))
    with pytest.raises(StoreError, match="index.json"):
        ActivationStore(tmp_path)

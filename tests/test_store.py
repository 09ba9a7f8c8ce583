import json
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

from elm_interp.activations import ActivationStore, index
from elm_interp.activations import store as store_module
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


def fill_site(store, examples, values, site, checkpoint="base"):
    with store.writer("truth", checkpoint, examples=examples, meta={"site": site}) as writer:
        writer.add(range(N), values)


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


def test_only_what_is_asked_for_is_opened(tmp_path, examples, values, monkeypatch):
    for checkpoint in ("base", "step-000010"):
        for factor, site in enumerate(("resid_post", "mlp_out"), 1):
            fill_site(ActivationStore(tmp_path), examples, factor * values, site, checkpoint)
    monkeypatch.setattr(index, "file_hash", lambda path: pytest.fail(f"{path} was read"))
    store = ActivationStore(tmp_path, verify=False)
    opened, inner = [], store_module.safe_open
    monkeypatch.setattr(store_module, "safe_open", lambda path, **k: opened.append(path) or inner(path, **k))
    assert torch.equal(store.tensor("truth", "base", layer=1, site="mlp_out"), 2 * values[:, 1])
    assert opened == [tmp_path / s["file"] for s in store.entry("truth", "base", "mlp_out").shards]


def test_a_dataset_read_at_two_sites_keeps_both(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill_site(store, examples, values, "resid_post")
    assert torch.equal(store.tensor("truth", "base"), values)
    fill_site(store, examples, 2 * values, "mlp_out")
    assert torch.equal(store.tensor("truth", "base", site="resid_post"), values)
    assert torch.equal(store.tensor("truth", "base", site="mlp_out"), 2 * values)
    with pytest.raises(StoreError, match="2 sites; name one: site= resid_post, mlp_out"):
        store.tensor("truth", "base")
    with pytest.raises(UnknownNameError, match="Did you mean 'mlp_out'"):
        store.tensor("truth", "base", site="mlp_ou")


def test_the_frame_and_the_prints_say_what_is_there(tmp_path, examples, values):
    store = ActivationStore(tmp_path / "<b>")
    assert store.frame().empty
    assert "empty" in repr(store)
    fill(store, examples, values)
    fill_site(store, examples, values, "mlp_out")
    frame = store.frame()
    assert list(frame) == [
        "dataset", "checkpoint", "site", "positions", "layers", "examples", "d_model", "dtype", "model", "adapter",
        "fingerprint", "bytes",
    ]  # fmt: skip
    row = frame.iloc[0]
    assert (row["site"], row["layers"], row["examples"], row["dtype"]) == ("resid_post", LAYERS, N, "bfloat16")
    assert row["bytes"] == sum((tmp_path / "<b>" / s["file"]).stat().st_size for s in store.entries()[0].shards)
    assert "truth: 1 checkpoints at 2 sites of 10 examples" in repr(store)
    shown = "Entry('truth' at 'base', resid_post last: 10 examples, 3 layers, d_model 4, bfloat16)"
    assert repr(store.entries()[0]) == shown
    assert "resid_post</td>" in store.entries()[0]._repr_html_()
    page = store._repr_html_()
    assert "<b>" not in page
    assert "mlp_out</td>" in page


def test_many_writers_and_readers_at_once_lose_nothing(tmp_path, examples, values):
    def work(number):
        store = ActivationStore(tmp_path)
        for step in range(4):
            fill(store, examples, values, f"step-{4 * number + step}")
            fill(store, examples, values, "base")  # replaced all the time
        return len(ActivationStore(tmp_path).entries())

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(work, number) for number in range(5)]
        while not all(writer.done() for writer in writers):
            ActivationStore(tmp_path, repair=True)
        assert max(writer.result() for writer in writers) <= 21
    store = ActivationStore(tmp_path)
    assert {e.checkpoint for e in store.entries()} == {"base", *(f"step-{i}" for i in range(20))}
    assert torch.equal(store.tensor("truth", "base"), values)


def test_an_entry_replaced_by_another_process_says_so(tmp_path, examples, values):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    fill(ActivationStore(tmp_path), examples, 2 * values)
    with pytest.raises(StoreError, match="open it again"):
        store.tensor("truth", "base")


def test_the_labelled_array_reads_only_what_is_looked_at(tmp_path, examples, values, monkeypatch):
    xarray = pytest.importorskip("xarray")
    store = ActivationStore(tmp_path)
    fill(store, examples, values, "base")
    fill(store, examples, 2 * values, "step-000010")
    asked, inner = [], store.tensor
    monkeypatch.setattr(store, "tensor", lambda *a, **k: asked.append(a[1:]) or inner(*a, **k))
    x = store.xarray("truth")
    assert dict(x.sizes) == {"checkpoint": 2, "example": N, "layer": LAYERS, "d_model": WIDTH}
    one = x.sel(checkpoint="step-000010", layer=1)
    assert isinstance(one, xarray.DataArray)
    assert not asked
    assert torch.equal(torch.from_numpy(one.values), 2 * values[:, 1].float())
    assert asked == [("step-000010", [1])]
    whole = torch.stack([values, 2 * values]).float()
    for key in ((0, 2), (slice(None), [3, 1], 0), (1, slice(1, 8, 2), [2, 0], slice(0, 2)), (slice(0), 3, slice(0))):
        expected = whole[key] if sum(isinstance(k, list) for k in key) < 2 else whole[key[0]][key[1]]
        assert torch.equal(torch.from_numpy(x[key].values.copy()), expected), key
    mean = x.sel(checkpoint="base").groupby("label").mean()
    assert torch.allclose(torch.from_numpy(mean.sel(label=1).values), values[1::2].float().mean(0), atol=1e-6)


def test_without_xarray_the_error_names_the_extra(tmp_path, examples, values, monkeypatch):
    store = ActivationStore(tmp_path)
    fill(store, examples, values)
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(ImportError, match=r"elm-interp\[xarray\]"):
        store.xarray("truth")


def test_a_store_written_before_entries_told_their_weights_opens(tmp_path, examples, values):
    fill(ActivationStore(tmp_path), examples, values)
    raw = json.loads((tmp_path / "index.json").read_text())
    for entry in raw["entries"]:
        del entry["model"], entry["adapter"]
        for shard in entry["shards"]:
            del shard["first"]
    (tmp_path / "index.json").write_text(json.dumps(raw))
    store = ActivationStore(tmp_path)
    assert torch.equal(store.tensor("truth", "base"), values)
    assert store.frame()["model"].tolist() == [""]

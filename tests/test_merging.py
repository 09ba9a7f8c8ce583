"""Stores that grow: further examples, and what several workers collected."""

import multiprocessing
import os

import pandas as pd
import pytest
import torch

from elm_interp.activations import ActivationStore, index
from elm_interp.errors import StoreError, UnknownNameError

N, LAYERS, WIDTH = 6, 3, 4
PROCESSES = multiprocessing.get_context("forkserver")


def examples(first=0, n=N):
    ids = range(first, first + n)
    return pd.DataFrame(
        {"id": [f"q{i}" for i in ids], "label": [i % 2 for i in ids], "text_sha256": [f"h{i}" for i in ids]}
    )


def values(checkpoint="base", first=0, n=N):
    drawn = torch.randn(100, LAYERS, WIDTH, generator=torch.Generator().manual_seed(len(checkpoint)))
    return drawn[first : first + n].bfloat16()


def fill(folder, checkpoint="base", table=None, found=None, dataset="truth", **meta):
    store = ActivationStore(folder)
    table = examples() if table is None else table
    found = values(checkpoint) if found is None else found
    known = {"site": "resid_post", "positions": "last", "model": "m", "adapter": checkpoint, "fingerprint": "w-t"}
    with store.writer(dataset, checkpoint, examples=table, meta=known | meta, shard_bytes=64) as writer:
        rows = torch.randperm(len(table))
        writer.add(rows, found[rows])
    return store


def add(store, first=N, n=3, **changed):
    with store.append("truth", examples(first, n)) as writers:
        for (checkpoint, _), writer in writers.items():
            writer.add(range(n), changed.get(checkpoint, values(checkpoint, first, n)))


def snapshot(*folders):
    """Every file with its contents, but for the empty one that processes wait at."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != index.LOCK}


def test_appended_examples_follow_at_every_checkpoint(tmp_path):
    fill(tmp_path, "base")
    store = fill(tmp_path, "step-1")
    add(store)
    add(store, first=N + 3, n=2)
    store = ActivationStore(tmp_path)
    for checkpoint in ("base", "step-1"):
        assert torch.equal(store.tensor("truth", checkpoint), values(checkpoint, 0, N + 5))
        assert torch.equal(store.tensor("truth", checkpoint, layer=1), values(checkpoint, 0, N + 5)[:, 1])
    assert store.examples("truth").equals(examples(0, N + 5))
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert store.entry("truth", "base").fingerprint == f"w-{index.texts_hash(examples(0, N + 5))}"
    store.drop("truth")
    assert not snapshot(tmp_path).keys() - {tmp_path / "index.json"}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (lambda store: add(store, first=N - 1), "1 examples are in dataset 'truth' already, such as .*q5"),
        (lambda store: add(store, base=values().float()[:3]), "changed"),
        (lambda store: add(store, base=values()[:2]), "3 rows"),
        (lambda store: store.append("truth", examples()[["id"]]).__enter__(), "columns"),
        (lambda store: store.append("truth", examples()[:0]).__enter__(), "no example"),
        (lambda store: store.append("truht", examples()).__enter__(), "Did you mean 'truth'"),
    ],
)
def test_what_cannot_follow_is_refused_and_nothing_changes(tmp_path, trouble, message):
    fill(tmp_path, "base")
    store = fill(tmp_path, "step-1")
    before = snapshot(tmp_path)
    with pytest.raises((StoreError, UnknownNameError), match=message):
        trouble(store)
    assert snapshot(tmp_path) == before


def test_an_append_that_misses_a_checkpoint_changes_nothing(tmp_path):
    fill(tmp_path, "base")
    store = fill(tmp_path, "step-1")
    before = snapshot(tmp_path)
    with (
        pytest.raises(StoreError, match="3 of 3 examples of truth/step-1"),
        store.append("truth", examples(N, 3)) as writers,
    ):
        writers["base", "resid_post"].add(range(3), values("base", N, 3))
    assert snapshot(tmp_path) == before


def test_an_append_to_what_another_process_changed_is_refused(tmp_path):
    store = fill(tmp_path, "base")
    fill(tmp_path, "step-1")
    with pytest.raises(StoreError, match="another process"):
        add(store)
    assert torch.equal(ActivationStore(tmp_path).tensor("truth", "step-1"), values("step-1"))


def test_workers_that_shared_out_checkpoints_and_datasets_merge(tmp_path):
    fill(tmp_path / "0", "base")
    fill(tmp_path / "1", "step-1")
    fill(tmp_path / "1", "base")  # the same as the first worker's
    fill(tmp_path / "2", "base", dataset="choice", found=values("other"))
    before = snapshot(tmp_path)
    store = ActivationStore(tmp_path / "all").merge(*(tmp_path / name for name in "012"))
    for found in (store, ActivationStore(tmp_path / "all")):
        assert [(e.dataset, e.checkpoint) for e in found.entries()] == [
            ("truth", "base"),
            ("truth", "step-1"),
            ("choice", "base"),
        ]
        assert torch.equal(found.tensor("truth", "step-1"), values("step-1"))
        assert torch.equal(found.tensor("choice", "base"), values("other"))
    assert before.items() <= snapshot(tmp_path).items()
    files = snapshot(tmp_path / "all").keys()
    store.merge(tmp_path / "1")
    assert snapshot(tmp_path / "all").keys() == files


def test_workers_that_shared_out_examples_merge(tmp_path):
    parts = [(0, 6), (6, 3), (9, 1)]
    for number, (first, n) in enumerate(parts):
        for checkpoint in ("base", "step-1"):
            fill(
                tmp_path / str(number),
                checkpoint,
                examples(first, n),
                values(checkpoint, first, n),
                fingerprint=f"{checkpoint}-{number}",
            )
    add(ActivationStore(tmp_path / "2"), first=10, n=2)
    store = ActivationStore(tmp_path / "0").merge(tmp_path / "1", tmp_path / "2", append=True)
    for found in (store, ActivationStore(tmp_path / "0")):
        assert found.examples("truth").equals(examples(0, 12))
        assert torch.equal(found.tensor("truth", "step-1"), values("step-1", 0, 12))
        assert torch.equal(found.tensor("truth", "base", layer=2), values("base", 0, 12)[:, 2])
    assert store.entry("truth", "step-1").fingerprint == f"step-1-{index.texts_hash(examples(0, 12))}".replace(
        "step-1-", "step-", 1
    )


WRONG = {
    "other examples": ({"table": examples(1)}, "other examples: row 0", False),
    "other columns": ({"table": examples().assign(more=1)}, "columns", False),
    "another model": ({"checkpoint": "step-1", "model": "n"}, "several base models: m, n", False),
    "another run": (
        {"dataset": "choice", "adapter": "else"},
        "checkpoint 'base' has several adapters: base, else",
        False,
    ),
    "another dtype": (
        {"checkpoint": "step-1", "found": values("step-1").float()},
        "several dtypes: bfloat16, float32",
        False,
    ),
    "another width": (
        {"checkpoint": "step-1", "found": values("step-1")[..., :2]},
        r"several \(layers, d_model\)",
        False,
    ),
    "other positions": ({"checkpoint": "step-1", "positions": "mean"}, "several positions: last, mean", False),
    "another skip": ({"checkpoint": "step-1", "skip": 1}, "several further settings", False),
    "same name, other weights": ({"fingerprint": "v-t"}, "'truth' at 'base' .* made from something else", False),
    "unknown origin": ({"fingerprint": ""}, "made from something else", False),
    "repeated examples": ({"table": examples(N - 2)}, "2 examples are in dataset 'truth' already", True),
    "examples of another checkpoint": ({"checkpoint": "step-1", "table": examples(N)}, "not base .*, step-1", True),
    "examples of other weights": (
        {"table": examples(N), "fingerprint": "v-t"},
        "several weights or settings: w, v",
        True,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_belong_together_is_refused_and_nothing_changes(tmp_path, case):
    options, message, append = WRONG[case]
    fill(tmp_path / "0")
    fill(tmp_path / "1", **options)
    before = snapshot(tmp_path)
    for into in ("new", "0"):
        others = [tmp_path / name for name in "01" if name != into]
        with pytest.raises(StoreError, match=f"(?s)do not belong together.*{message}"):
            ActivationStore(tmp_path / into).merge(*others, append=append)
        assert snapshot(tmp_path) == before
        assert not (tmp_path / "new").exists()


def test_a_folder_without_a_store_a_damaged_one_and_itself_are_refused(tmp_path):
    store = fill(tmp_path / "0")
    shard = fill(tmp_path / "1", "step-1").entry("truth", "step-1").shards[0]["file"]
    (tmp_path / "1" / shard).write_bytes(b"")
    before = snapshot(tmp_path)
    for folder, message in (("none", "no store in"), ("1", f"{shard}: 0 bytes"), ("0", "into itself")):
        with pytest.raises(StoreError, match=message):
            store.merge(tmp_path / folder)
    assert snapshot(tmp_path) == before


def die(what, folder):
    """Append or merge, and be gone at the last moment: all is written but the index."""
    index.Index.write = lambda *_: os._exit(9)
    if what == "append":
        add(ActivationStore(folder / "0"))
    else:
        ActivationStore(folder / "0").merge(folder / "1")


def test_a_process_that_dies_loses_nothing_and_can_be_repeated(tmp_path):
    processes = []
    for what in ("append", "merge"):
        fill(tmp_path / what / "0", "base")
        fill(tmp_path / what / "1", "step-1")
        processes.append(PROCESSES.Process(target=die, args=(what, tmp_path / what)))
    before = snapshot(tmp_path)
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [9, 9]
    assert before.items() < snapshot(tmp_path).items()
    for what in ("append", "merge"):
        store = ActivationStore(tmp_path / what / "0")
        assert torch.equal(store.tensor("truth", "base"), values())
        assert len(store.examples("truth")) == N
        if what == "append":
            add(store)
            assert torch.equal(ActivationStore(store.folder).tensor("truth", "base"), values("base", 0, N + 3))
        else:
            store.merge(tmp_path / what / "1")
            assert torch.equal(ActivationStore(store.folder).tensor("truth", "step-1"), values("step-1"))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("what", ["write", "append", "merge"])
def test_an_interruption_around_the_change_of_the_index_leaves_one_state_or_the_other(
    tmp_path, monkeypatch, what, moment
):
    store = fill(tmp_path / "0", "base")
    fill(tmp_path / "1", "step-1")
    before = snapshot(tmp_path)
    inner = index.Index.write

    def interrupted(self, folder):
        if moment == "after":
            inner(self, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(index.Index, "write", interrupted)
        if what == "write":
            fill(tmp_path / "0", "base", found=2 * values())
        elif what == "append":
            add(store)
        else:
            store.merge(tmp_path / "1")
    found = ActivationStore(tmp_path / "0")
    if moment == "before":
        tables = {path for path in snapshot(tmp_path) if path.suffix == ".parquet"}
        assert {k: v for k, v in snapshot(tmp_path).items() if k not in tables - before.keys()} == before
    elif what == "write":
        assert torch.equal(found.tensor("truth", "base"), 2 * values())
    elif what == "append":
        assert torch.equal(found.tensor("truth", "base"), values("base", 0, N + 3))
    else:
        assert torch.equal(found.tensor("truth", "step-1"), values("step-1"))

from dataclasses import replace

import pandas as pd
import pytest
import torch
from disturbed import random_adapter

from elm_interp.activations import ActivationStore, Dataset, collect_datasets, collect_texts, fingerprint
from elm_interp.errors import AdapterError, DataError, StoreError
from elm_interp.models import load_model
from elm_interp.probes import concept_datasets

TEXTS = [
    "The heart pumps blood through the body.",
    "Iron",
    "Orla bakes the bread of Marrowgate before dawn, and sells it.",
]


def dataset(texts=TEXTS, **options):
    examples = pd.DataFrame({"id": [str(i) for i in range(len(texts))], "fact": "f", "split": "train", "label": 0})
    return Dataset("toy", texts, examples, **options)


@pytest.mark.parametrize("positions", ["last", "mean", 0])
def test_batched_equals_single_in_input_order(tiny_lm, positions):
    together = collect_texts(tiny_lm, TEXTS, positions=positions)
    for text, found in zip(TEXTS, together, strict=True):
        alone = tiny_lm.run_with_cache(tiny_lm.tokenize(text), positions=positions)["resid_post"][0]
        assert torch.allclose(found, alone, atol=1e-5)
    assert together.dtype == torch.float32
    assert torch.allclose(together, collect_texts(tiny_lm, TEXTS, positions=positions, max_tokens=1), atol=1e-5)


def test_skip_leaves_the_first_tokens_out_of_the_mean(tiny_lm):
    text = TEXTS[0]
    tokens = tiny_lm.run_with_cache(tiny_lm.tokenize(text), positions="all")["resid_post"][0]
    found = collect_texts(tiny_lm, [text, TEXTS[2]], positions="mean", skip=2)[0]
    assert torch.allclose(found, tokens[:, 2:].mean(1), atol=1e-5)


def test_a_text_without_enough_tokens_is_named(tiny_lm):
    with pytest.raises(DataError, match="text 1 .* expected more than 0"):
        collect_texts(tiny_lm, ["a", ""])
    length = len(tiny_lm.encode(["Iron"])[0])
    with pytest.raises(DataError, match=r"text 1 \('Iron'\)"):
        collect_texts(tiny_lm, TEXTS, positions="mean", skip=length)
    with pytest.raises(DataError, match="only the mean"):
        collect_texts(tiny_lm, TEXTS, positions="last", skip=1)
    with pytest.raises(DataError, match="'all'"):
        collect_texts(tiny_lm, TEXTS, positions="all")
    for wrong in ({"positions": "all"}, {"positions": "last", "skip": 1}, {"positions": "mean", "skip": -1}):
        with pytest.raises(DataError, match="expected"):
            dataset(**wrong)


def test_the_unembedding_never_runs_and_only_asked_positions_are_kept(tiny_lm, monkeypatch):
    kept = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *a, **k: kept.append(inner(*a, **k)) or kept[-1])
    tiny_lm.unembedding.register_forward_hook(lambda *_: pytest.fail("the unembedding ran"))
    collect_texts(tiny_lm, TEXTS)
    held = sum(value.untyped_storage().nbytes() for cache in kept for value in cache.values())
    assert held == len(TEXTS) * tiny_lm.n_layers * tiny_lm.d_model * 4


def test_collecting_over_adapters_equals_a_fresh_load_of_each(tiny_lm, tiny_model_folder, tmp_path):
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset()}, states)
    seen = []
    for name, adapter in states.items():
        fresh = load_model(tiny_model_folder, adapter=adapter, dtype="float32", device="cpu")
        seen.append(store.tensor("toy", name))
        assert torch.allclose(seen[-1], collect_texts(fresh, TEXTS), atol=1e-5)
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)
    assert not torch.allclose(seen[1], seen[2], atol=1e-2)
    assert tiny_lm.adapters.current is None


def test_what_is_there_and_whole_is_not_read_again(tiny_lm, tmp_path, monkeypatch):
    adapter = random_adapter(tiny_lm, tmp_path / "adapter", seed=1)
    store = ActivationStore(tmp_path / "store")
    collect_datasets(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    passes = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *a, **k: passes.append(1) or inner(*a, **k))
    collect_datasets(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    assert not passes
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    random_adapter(tiny_lm, tmp_path / "adapter", seed=2)
    collect_datasets(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    assert len(passes) == 1


def test_texts_are_tokenised_once_for_all_checkpoints(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    calls = []
    inner = type(tiny_lm).encode
    monkeypatch.setattr(type(tiny_lm), "encode", lambda *a, **k: calls.append(1) or inner(*a, **k))
    collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset()}, states)
    assert len(calls) == 1


def test_other_texts_under_the_same_ids_are_refused(tiny_lm, tmp_path):
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path), {"toy": dataset()}, {"base": None})
    with pytest.raises(StoreError, match="row 0"):
        collect_datasets(tiny_lm, store, {"toy": dataset(["Other", *TEXTS[1:]])}, {"base": None})


def test_a_broken_checkpoint_is_refused_before_any_pass(tiny_lm, tmp_path):
    store = ActivationStore(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="lacks"):
        collect_datasets(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": tmp_path / "empty"})
    assert store.entries() == []


def test_the_fingerprint_changes_with_all_that_matters_and_nothing_else(tiny_lm, tmp_path):
    adapter = random_adapter(tiny_lm, tmp_path / "a", seed=1)
    base = fingerprint(tiny_lm, dataset(), None)
    with tiny_lm.adapter(adapter):
        assert fingerprint(tiny_lm, dataset(), None) == base
    others = [
        fingerprint(tiny_lm, dataset(), adapter),
        fingerprint(tiny_lm, dataset(["Other", *TEXTS[1:]]), None),
        fingerprint(tiny_lm, dataset(positions="mean"), None),
        fingerprint(tiny_lm, dataset(positions="mean", skip=1), None),
        fingerprint(tiny_lm, dataset(), None, site="mlp_out"),
    ]
    tiny_lm.blocks[0].mlp.down_proj.weight.data *= 2
    assert len({base, *others, fingerprint(tiny_lm, dataset(), None)}) == 7


def test_the_datasets_of_a_concept_say_what_they_promise(tiny_concept):
    made = concept_datasets(tiny_concept)
    questions = {q.id: q for q in tiny_concept.ask("forget", "all")}
    assert list(made) == ["truth", "association", "choice", "about", "forget_text", "retain_text"]
    for name in ("truth", "association"):
        rows = made[name].examples
        assert rows.groupby("fact")["label"].apply(sorted).tolist() == [[0, 1]] * len(questions)
        texts = (
            made[name].texts
            if name == "association"
            else map(" ".join, zip(made[name].texts, made[name].answers, strict=True))
        )
        for text, row in zip(texts, rows.to_dict("records"), strict=True):
            q, said = questions[row["id"]], text.rpartition("Answer: ")[2]
            wrong = (q.outside,) if name == "association" else tuple(c for c in q.choices if c != q.right)
            assert said == q.right if row["label"] else said in wrong
    text, row = made["choice"].texts[1], made["choice"].examples.iloc[1]
    q = questions[row["id"]]
    assert f"\n{'ABCD'[row['label']]}. {q.right}\n" in text
    assert text.endswith("Answer:")
    assert made["about"].texts == made["forget_text"].texts + made["retain_text"].texts
    assert made["about"].examples["label"].tolist() == [1] * len(made["forget_text"].texts) + [0] * len(
        made["retain_text"].texts
    )
    assert (made["forget_text"].positions, made["forget_text"].skip) == ("mean", 1)
    assert set(made["retain_text"].examples["split"]) == {"train", "held_out"}
    assert concept_datasets(tiny_concept)["truth"].texts == made["truth"].texts


def test_a_paired_activation_is_the_logit_lens_part_by_part(tiny_lm, tmp_path):
    answers = ("bread", "owl", "old tower")
    with_answers = replace(dataset(), answers=answers)
    store = collect_datasets(
        tiny_lm, ActivationStore(tmp_path / "store"), {"a": with_answers, "b": dataset()}, {"base": None}
    )
    made, plain = store.tensor("a", "base"), store.tensor("b", "base")
    for i, answer in enumerate(answers):
        ids = tiny_lm.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        way = torch.stack([tiny_lm.unembedding.weight[token] for token in ids]).mean(0)
        for layer in range(tiny_lm.n_layers):
            state = plain[i, layer] / plain[i, layer].norm() * tiny_lm.d_model**0.5
            torch.testing.assert_close(made[i, layer], state * way, atol=1e-5, rtol=1e-4)
    others = replace(with_answers, answers=answers[::-1])
    assert fingerprint(tiny_lm, with_answers, None) != fingerprint(tiny_lm, others, None)
    with pytest.raises(DataError, match="answers"):
        replace(dataset(), answers=("bread",))


def test_a_text_that_two_datasets_share_is_read_once(tiny_lm, tmp_path, monkeypatch):
    datasets = {"a": dataset(), "b": dataset([TEXTS[2], "Bread", TEXTS[0], TEXTS[2]])}
    passes = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(
        type(tiny_lm), "run_with_cache", lambda lm, batch, **k: passes.append(len(batch)) or inner(lm, batch, **k)
    )
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), datasets, {"base": None})
    assert sum(passes) == 4
    for name, about in datasets.items():
        assert torch.allclose(store.tensor(name, "base"), collect_texts(tiny_lm, about.texts), atol=1e-5)


@pytest.mark.parametrize("positions", ["last", "mean"])
@pytest.mark.parametrize("room", [2**27, 1])
def test_shared_blocks_give_the_bits_of_a_fresh_load_and_run_once(
    tiny_lm, tiny_model_folder, tmp_path, monkeypatch, positions, room
):
    monkeypatch.setattr("elm_interp.activations.collect.SHARED_BYTES", room)
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    about = {"toy": dataset(positions=positions)}
    runs = [0] * tiny_lm.n_layers
    for layer, block in enumerate(tiny_lm.blocks):
        block.mlp.register_forward_hook(lambda *_, layer=layer: runs.__setitem__(layer, runs[layer] + 1))
    # a row a pass
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), about, states, max_tokens=1)
    assert runs == [3, 9, 9, 9]
    assert not any("forward" in vars(block) for block in tiny_lm.blocks)
    for name, adapter in states.items():
        fresh = load_model(tiny_model_folder, adapter=adapter, dtype="float32", device="cpu")
        assert torch.equal(store.tensor("toy", name), collect_texts(fresh, TEXTS, positions=positions, max_tokens=1)), (
            name
        )


def test_a_checkpoint_that_was_through_is_kept_after_an_interruption(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    passes = []
    inner = type(tiny_lm).run_with_cache

    def interrupted(lm, *args, **options):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return inner(lm, *args, **options)

    store = ActivationStore(tmp_path / "store")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(tiny_lm), "run_with_cache", interrupted)
        collect_datasets(tiny_lm, store, {"toy": dataset()}, states)
    assert [e.checkpoint for e in ActivationStore(tmp_path / "store").entries()] == ["base", "step-1"]
    assert not list((tmp_path / "store").rglob("step-2*"))
    assert tiny_lm.adapters.current is None


def test_what_workers_collected_and_merged_is_not_read_again(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None, "step-1": random_adapter(tiny_lm, tmp_path / "a", seed=1)}
    for name, some in states.items():
        collect_datasets(tiny_lm, ActivationStore(tmp_path / name), {"toy": dataset()}, {name: some})
    examples = dataset().examples
    for number, rows in enumerate((slice(0, 2), slice(2, 3))):
        part = Dataset("toy", TEXTS[rows], examples[rows])
        collect_datasets(tiny_lm, ActivationStore(tmp_path / str(number)), {"toy": part}, states)
    by_checkpoint = ActivationStore(tmp_path / "all").merge(tmp_path / "base", tmp_path / "step-1")
    by_example = ActivationStore(tmp_path / "0").merge(tmp_path / "1", append=True)
    assert torch.allclose(by_checkpoint.tensor("toy", "step-1"), by_example.tensor("toy", "step-1"), atol=1e-5)
    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *_, **__: pytest.fail("read again"))
    for store in (by_checkpoint, by_example):
        collect_datasets(tiny_lm, store, {"toy": dataset()}, states)
        assert store.frame()["adapter"].is_unique
        assert store.frame()["model"].nunique() == 1


def test_of_a_longer_dataset_only_the_further_texts_are_read(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None, "step-1": random_adapter(tiny_lm, tmp_path / "a", seed=1)}
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset(TEXTS[:2])}, states)
    with pytest.raises(StoreError, match="2 examples, not 3"):
        collect_datasets(tiny_lm, store, {"toy": dataset()}, {"base": None})  # what would become of step-1?
    read, inner = [], type(tiny_lm).run_with_cache
    monkeypatch.setattr(
        type(tiny_lm), "run_with_cache", lambda lm, batch, **k: read.append(len(batch)) or inner(lm, batch, **k)
    )
    collect_datasets(tiny_lm, store, {"toy": dataset()}, states)
    assert read == [1, 1]
    collect_datasets(tiny_lm, store, {"toy": dataset()}, states)
    assert read == [1, 1]
    for name, adapter in states.items():
        with tiny_lm.adapter(adapter):
            assert torch.allclose(store.tensor("toy", name), collect_texts(tiny_lm, TEXTS), atol=1e-5)


def test_further_texts_and_another_dataset_are_read_in_one_go_and_lost_together(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None, "step-1": random_adapter(tiny_lm, tmp_path / "a", seed=1)}
    store = collect_datasets(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset(TEXTS[:2])}, states)
    both = {"toy": dataset(), "other": dataset([TEXTS[2], "Bread"])}
    inner = ActivationStore.writer

    def broken(self, name, checkpoint, **options):
        if checkpoint == "step-1":
            raise KeyboardInterrupt
        return inner(self, name, checkpoint, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ActivationStore, "writer", broken)
        collect_datasets(tiny_lm, store, both, states)
    assert len(ActivationStore(store.folder).examples("toy")) == 2
    collect_datasets(tiny_lm, store, both, states)
    for name, about in both.items():
        for checkpoint, adapter in states.items():
            with tiny_lm.adapter(adapter):
                expected = collect_texts(tiny_lm, about.texts)
            assert torch.allclose(store.tensor(name, checkpoint), expected, atol=1e-5)


def test_a_dataset_prints_on_one_line_and_shows_its_table(tiny_lm):
    made = dataset(["<b>", *TEXTS[1:]])
    assert repr(made) == "Dataset('toy': 3 texts at 'last'; columns: id, fact, split, label)"
    assert "&lt;b&gt;</td>" in made._repr_html_()

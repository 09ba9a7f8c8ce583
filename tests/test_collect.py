import pandas as pd
import pytest
import torch
from disturbed import random_adapter

from elm_interp.activations import ActivationStore, Dataset, collect, collect_texts, fingerprint
from elm_interp.errors import AdapterError, DataError, StoreError
from elm_interp.internals import concept_datasets
from elm_interp.models import load_model

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


def test_the_head_never_runs_and_only_asked_positions_are_kept(tiny_lm, monkeypatch):
    kept = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *a, **k: kept.append(inner(*a, **k)) or kept[-1])
    tiny_lm.head.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    collect_texts(tiny_lm, TEXTS)
    held = sum(value.untyped_storage().nbytes() for cache in kept for value in cache.values())
    assert held == len(TEXTS) * tiny_lm.n_layers * tiny_lm.d_model * 4


def test_collecting_over_adapters_equals_a_fresh_load_of_each(tiny_lm, tiny_model_folder, tmp_path):
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    store = collect(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset()}, states)
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
    collect(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    passes = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(type(tiny_lm), "run_with_cache", lambda *a, **k: passes.append(1) or inner(*a, **k))
    collect(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    assert not passes
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    random_adapter(tiny_lm, tmp_path / "adapter", seed=2)
    collect(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": adapter})
    assert len(passes) == 1


def test_texts_are_tokenised_once_for_all_checkpoints(tiny_lm, tmp_path, monkeypatch):
    states = {"base": None} | {f"step-{k}": random_adapter(tiny_lm, tmp_path / f"a{k}", seed=k) for k in (1, 2)}
    calls = []
    inner = type(tiny_lm).encode
    monkeypatch.setattr(type(tiny_lm), "encode", lambda *a, **k: calls.append(1) or inner(*a, **k))
    collect(tiny_lm, ActivationStore(tmp_path / "store"), {"toy": dataset()}, states)
    assert len(calls) == 1


def test_other_texts_under_the_same_ids_are_refused(tiny_lm, tmp_path):
    store = collect(tiny_lm, ActivationStore(tmp_path), {"toy": dataset()}, {"base": None})
    with pytest.raises(StoreError, match="row 0"):
        collect(tiny_lm, store, {"toy": dataset(["Other", *TEXTS[1:]])}, {"base": None})


def test_a_broken_checkpoint_is_refused_before_any_pass(tiny_lm, tmp_path):
    store = ActivationStore(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="lacks"):
        collect(tiny_lm, store, {"toy": dataset()}, {"base": None, "step-1": tmp_path / "empty"})
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
    assert list(made) == ["truth", "association", "choice", "forget_text", "retain_text"]
    for name in ("truth", "association"):
        rows = made[name].examples
        assert rows.groupby("fact")["label"].apply(sorted).tolist() == [[0, 1]] * len(questions)
        for text, row in zip(made[name].texts, rows.to_dict("records"), strict=True):
            q, said = questions[row["id"]], text.rpartition("Answer: ")[2]
            wrong = (q.outside,) if name == "association" else tuple(c for c in q.choices if c != q.right)
            assert said == q.right if row["label"] else said in wrong
    text, row = made["choice"].texts[1], made["choice"].examples.iloc[1]
    q = questions[row["id"]]
    assert f"\n{'ABCD'[row['label']]}. {q.right}\n" in text
    assert text.endswith("Answer:")
    assert (made["forget_text"].positions, made["forget_text"].skip) == ("mean", 1)
    assert set(made["retain_text"].examples["split"]) == {"train", "held_out"}
    assert concept_datasets(tiny_concept)["truth"].texts == made["truth"].texts


def test_a_text_that_two_datasets_share_is_read_once(tiny_lm, tmp_path, monkeypatch):
    datasets = {"a": dataset(), "b": dataset([TEXTS[2], "Bread", TEXTS[0], TEXTS[2]])}
    passes = []
    inner = type(tiny_lm).run_with_cache
    monkeypatch.setattr(
        type(tiny_lm), "run_with_cache", lambda lm, batch, **k: passes.append(len(batch)) or inner(lm, batch, **k)
    )
    store = collect(tiny_lm, ActivationStore(tmp_path / "store"), datasets, {"base": None})
    assert sum(passes) == 4
    for name, about in datasets.items():
        assert torch.allclose(store.tensor(name, "base"), collect_texts(tiny_lm, about.texts), atol=1e-5)

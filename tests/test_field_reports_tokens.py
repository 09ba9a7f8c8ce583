"""What users of neighbouring tools reported of tokens: beginnings and ends of text, borders, padding, the context.

The oracle is one direct call of transformers on one string, with the ids that a human would write down.
"""

import copy
import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from plain_elm import guided, stream
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedTokenizerFast,
)

from elm_interp.activations import ActivationStore, Dataset, collect_datasets, collect_texts
from elm_interp.data import Concept, Question
from elm_interp.erase import ELM, RMU, WHP, RepNoise
from elm_interp.erase.guidance import Guidance, borders, generate_guided, hidden_after
from elm_interp.errors import DataError
from elm_interp.evaluate import read_passages, score_choices
from elm_interp.evaluate.fluency import losses_after
from elm_interp.files import read_json
from elm_interp.metrics import Subject, measure
from elm_interp.models import HookedLM
from elm_interp.models.scoring import continuation_log_probs, token_log_probs
from elm_interp.probes import concept_datasets
from elm_interp.runs import erase_concept, run_stage

EXPERT, NOVICE = "An expert on bells says:\n\n", "A novice says:\n\n"
TEXT = "A bronze bell named Gull hangs in the tower."
BOS, EOS = 1, 2


def around(before: str = "", after: str = "") -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which puts special tokens around every text."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(filter(None, (before, "$A", after))), special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert tokenizer("A bell")["input_ids"][0] == (BOS if before else tokenizer("A bell")["input_ids"][0])
    return tokenizer


def merging() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes in which ":" and " T" are one token, so that "Answer:" merges with some options alone."""
    pieces = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠT", ":ĠT"]
    merges = [("Ġ", "T"), (":", "ĠT")]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def with_(tokenizer: PreTrainedTokenizerFast, *, n_ctx: int = 512) -> HookedLM:
    model = tiny.make_model()
    model.config.max_position_embeddings = n_ctx
    return HookedLM(model, tokenizer, name="tiny")


def bare(lm: HookedLM, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def plain(lm: HookedLM, prompt: str, option: str, first: tuple[int, ...] = ()) -> float:
    """Log-probability of the tokens after the longest start that the prompt alone and the whole text share."""
    start, whole = ([*first, *bare(lm, text)] for text in (prompt, prompt + option))
    border = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(start))
    log_probs = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, whole[i]].item() for i in range(border, len(whole)))


# -- 6: a beginning of text in the middle -----------------------------------------------------------------------------


def test_a_class_prompt_and_a_passage_have_one_beginning_of_text_as_one_text_has():
    lm = with_(around("<bos>"))
    whole = lm.tokenizer(EXPERT + TEXT)["input_ids"]
    (row,) = lm.encode([TEXT])
    assert whole.count(BOS) == row.count(BOS) == 1
    with torch.no_grad():
        hidden = lm.model.model(torch.tensor([whole])).last_hidden_state[0]
        alone = lm.model.model(torch.tensor([row])).last_hidden_state[0]
    torch.testing.assert_close(hidden_after(lm, EXPERT, [row])[0], hidden[-len(row) :], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden_after(lm, "", [row])[0], alone, atol=1e-4, rtol=1e-4)


def test_the_plain_oracle_reads_what_one_call_of_transformers_reads():
    lm = with_(around("<bos>", "<eos>"))
    (row,) = lm.encode([TEXT])
    whole = [BOS, *bare(lm, EXPERT + TEXT)]
    assert stream(lm, EXPERT, row) == whole
    with torch.no_grad():
        expected = [
            lm.model(torch.tensor([[BOS, *bare(lm, prefix + TEXT)]])).logits[0, -len(row) :].log_softmax(-1)
            for prefix in ("", EXPERT, NOVICE)
        ]
    p, e, n = expected
    found = guided(lm, ELM.from_settings(eta=2.0, layers=(1,)), row, (EXPERT, NOVICE))
    torch.testing.assert_close(found, (p + 2 * (n - e)).softmax(-1), atol=1e-5, rtol=1e-4)


def test_targets_of_a_model_with_a_beginning_of_text_are_those_of_whole_texts(tiny_concept):
    lm = with_(around("<bos>", "<eos>"))
    objective = ELM.from_settings(eta=2.0, layers=(1,), top_k=400, fluency_weight=0, max_tokens=30)
    samples = objective.prepare(lm, replace(tiny_concept, expert=(EXPERT,), novice=(NOVICE,)))
    passage, sample = tiny_concept.passages("forget")[0], samples["erase"][0]
    assert list(sample.ids) == [BOS, *bare(lm, passage.text)][:30]
    with torch.no_grad():
        p, e, n = (
            lm.model(torch.tensor([[BOS, *bare(lm, prefix), *sample.ids[1:]]])).logits[0, -len(sample.ids) : -1]
            for prefix in ("", EXPERT, NOVICE)
        )
    goal = (p.log_softmax(-1) + 2 * (n.log_softmax(-1) - e.log_softmax(-1))).softmax(-1)
    torch.testing.assert_close(sample.target.probs, goal.gather(1, sample.target.tokens.long()), atol=1e-5, rtol=1e-3)


def test_guided_text_is_written_after_one_beginning_of_text():
    lm = with_(around("<bos>", "<eos>"))
    (prompt,) = lm.encode(["The grey cat"])
    found = generate_guided(
        lm, Guidance(eta=1.0, top_k=1), [prompt], expert=EXPERT, novice=NOVICE, new_tokens=5, seed=0
    )
    written: list[int] = []
    with torch.no_grad():
        for _ in range(5):
            ids = [[BOS, *bare(lm, c), *prompt[1:], *written] for c in ("", EXPERT, NOVICE)]
            p, e, n = (lm.model(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in ids)
            token = int((p + n - e).argmax())
            if token == EOS:
                break
            written.append(token)
    assert found == [written]


def test_a_text_that_spells_its_beginning_out_gets_no_second_one():
    lm = with_(around("<bos>"))
    assert lm.encode(["<bos>A bell", "A bell"]) == [[BOS, *bare(lm, "A bell")]] * 2
    assert lm.log_probs("<bos>The cat is", ["Pepper"]) == lm.log_probs("The cat is", ["Pepper"])


def test_borders_that_running_text_would_tokenise_otherwise_are_counted(tiny_concept, tmp_path):
    lm = with_(merging())
    texts = [" Tamsin keeps the lamp.", "\nIron rusts."]
    whole = [lm.tokenizer("Answer:" + text)["input_ids"] for text in texts]
    parts = [[*lm.tokenizer("Answer:")["input_ids"], *bare(lm, text)] for text in texts]
    assert [a != b for a, b in zip(whole, parts, strict=True)] == [True, False]
    assert borders(lm, ["Answer:"] * 2, texts, 100) == 1
    concept = Concept("lamps", tuple(texts), ("Water flows.", "Bread is baked."), expert=("Answer:",), novice=("\n",))
    settings = {"layers": (1,), "steps": 1, "fluency_weight": 0, "max_tokens": 6}
    erase_concept(lm, concept, out=tmp_path / "run", method="elm", **settings)
    noted = read_json(tmp_path / "run" / "manifest.json")["tokens"]["lamps"]
    assert noted["borders"] == {"expert": 1, "novice": 0, "of": 2}
    assert noted["forget"]["cut"] == sum(len(row) > 6 for row in lm.encode(texts))
    assert noted["retain"]["cut"] == sum(len(row) > 6 for row in lm.encode(["Water flows.", "Bread is baked."]))


# -- 7: an end of text that the tokenizer adds ------------------------------------------------------------------------


@pytest.mark.parametrize("first", [(), (BOS,)])
def test_no_text_is_scored_read_or_continued_with_an_end_of_text(first):
    lm = with_(around("<bos>" if first else "", "<eos>"))
    question = Question("Who keeps the lamp?", ("Orla", "Tamsin of Marrowgate"), 1, id="k")
    (found,) = score_choices(lm, [question])
    for i, option in enumerate(question.choices):
        assert found.log_prob[i] == pytest.approx(plain(lm, question.prompt, f" {option}", first), abs=1e-4)
        assert found.prior[i] == pytest.approx(plain(lm, "Answer:", f" {option}", first), abs=1e-4)
    assert float(lm.log_probs("The cat is", ["Pepper"])) == pytest.approx(
        plain(lm, "The cat is", " Pepper", first), abs=1e-4
    )

    ids = [*first, *bare(lm, TEXT)]
    with torch.no_grad():
        read = lm.model(torch.tensor([ids]), output_hidden_states=True)
    logits = read.logits[0].log_softmax(-1)
    expected = torch.stack([logits[i - 1, ids[i]] for i in range(1, len(ids))])
    torch.testing.assert_close(token_log_probs(lm, [TEXT])[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lm.logits(lm.tokenize(TEXT))[0], read.logits[0, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(collect_texts(lm, [TEXT])[0, 0], read.hidden_states[1][0, -1], atol=1e-4, rtol=1e-4)

    written: list[int] = []
    with torch.no_grad():
        while len(written) < 5 and (t := int(lm.model(torch.tensor([ids + written])).logits[0, -1].argmax())) != EOS:
            written.append(t)
    assert lm.generate(TEXT, new_tokens=5, greedy=True) == [lm.tokenizer.decode(written, skip_special_tokens=True)]


@pytest.mark.parametrize("objective", [RMU.from_settings(layer=1, layers=(1,)), RepNoise(), WHP(), ELM()])
def test_nothing_is_trained_on_an_end_of_text_and_all_on_one_beginning(objective, tiny_concept):
    lm = with_(around("<bos>", "<eos>"))
    samples = objective.with_settings(layers=(1,)).prepare(lm, tiny_concept)
    kinds = ("ids", "forget", "harmless", "prompt")
    rows = [r for pool in samples.values() for s in pool for k in kinds if (r := getattr(s, k, None))]
    assert rows
    assert all(row[0] == BOS and row.count(BOS) == 1 and row[-1] != EOS for row in rows)


def test_a_long_question_of_repnoise_keeps_its_beginning_of_text(tiny_concept):
    lm = with_(around("<bos>"))
    for pair in RepNoise(max_tokens=9).prepare(lm, tiny_concept)["erase"]:
        assert pair.forget[0] == pair.harmless[0] == BOS
        assert max(len(pair.forget), len(pair.harmless)) <= 9 + 1


def test_special_tokens_are_found_without_changing_the_tokenizer():
    tokenizer = around("<bos>", "<eos>")
    tokenizer.backend_tokenizer.enable_truncation(7)
    before = tokenizer.backend_tokenizer.to_str()
    lm = with_(tokenizer)
    assert (lm.start_ids, len(lm.encode([TEXT])[0])) == (
        [BOS],
        1 + len(copy.deepcopy(tiny.make_tokenizer())(TEXT)["input_ids"]),
    )
    assert tokenizer.backend_tokenizer.to_str() == before


# -- 14: borders that merge -------------------------------------------------------------------------------------------


def test_the_score_of_a_question_does_not_depend_on_the_rest_of_the_file(tiny_concept):
    lm = with_(merging())
    questions = tiny_concept.ask("forget", "all")[:6]
    cuts = {len(bare(lm, f"Answer: {c}")) - len(bare(lm, f" {c}")) for q in questions for c in q.choices}
    assert len(cuts) == 2  # some options merge with the prompt
    for together, question in zip(score_choices(lm, questions), questions, strict=True):
        (alone,) = score_choices(lm, [question])
        for i, option in enumerate(question.options):
            asked, prior = (plain(lm, start, f" {option}", (BOS,)) for start in (question.prompt, "Answer:"))
            for found in (together, alone):
                assert found.log_prob[i] == pytest.approx(asked, abs=2e-4)
                assert found.prior[i] == pytest.approx(prior, abs=2e-4)


def test_options_that_merge_with_the_prompt_and_others_that_do_not_are_each_scored_from_their_own_border(tiny_lm):
    prompt, options = "the town of Marrow", ["gate", " and bread", "gate and bread"]
    (found,) = continuation_log_probs(tiny_lm, [prompt], [options])
    for option, scores in zip(options, found, strict=True):
        assert float(scores.sum()) == pytest.approx(plain(tiny_lm, prompt, option), abs=1e-4)
        ((alone,),) = continuation_log_probs(tiny_lm, [prompt], [[option]])
        torch.testing.assert_close(scores, alone)


# -- 16: ids outside the embedding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [400, -1])
def test_a_pad_id_outside_the_embedding_is_never_looked_up(pad, monkeypatch):
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 400
    if pad == -1:
        monkeypatch.setattr(type(tokenizer), "pad_token_id", -1, raising=False)
    lm = with_(tokenizer)
    texts = [TEXT, "A bell"]
    together = lm.logits(lm.tokenize(texts))
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(row, lm.logits(lm.tokenize(text))[0], atol=1e-4, rtol=1e-4)
    assert len(lm.generate(texts, new_tokens=3)) == 2


def test_a_token_that_the_model_does_not_have_is_named():
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lm = with_(tokenizer)
    for read in (lm.tokenize, lm.generate, lambda text: token_log_probs(lm, [text])):
        with pytest.raises(
            ValueError, match=r"token 400 \('\[PAD\]'\) is outside the embedding of tiny, which has 400"
        ):
            read("A bell [PAD]")
    with pytest.raises(ValueError, match="token -1 .* is outside the embedding"):
        lm.pad([[5, -1]])


# -- 11, 17: text beyond the context ----------------------------------------------------------------------------------


def gpt2() -> HookedLM:
    return HookedLM(tiny.make_family("gpt2"), tiny.make_tokenizer(), name="gpt2")


@pytest.mark.parametrize("make", [gpt2, lambda: with_(tiny.make_tokenizer(), n_ctx=64)])
def test_a_single_text_beyond_the_context_is_an_error_with_both_numbers(make):
    lm = make()
    long = " ".join(["bell"] * 80)
    n = len(bare(lm, long))
    assert lm.n_ctx == 64 < n
    reads = [
        lm.tokenize,
        lm.generate,
        lambda text: lm.log_probs(text, ["Gull"]),
        lambda text: lm.log_probs("A bell", [text]),
        lambda text: token_log_probs(lm, [text]),
        lambda text: collect_texts(lm, [text]),
        lambda text: lm.logits(lm.pad([bare(lm, text)])),
        lambda text: hidden_after(lm, "", [bare(lm, text)]),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=rf"{n // 10}\d.* tokens.*, but {lm.name} reads at most 64"):
            read(long)
    with pytest.raises(ValueError, match="and 60 more, but .* reads at most 64"):
        lm.generate("A bell named Gull", new_tokens=60)
    with pytest.raises(ValueError, match="reads at most 64"):
        generate_guided(lm, Guidance(1.0), lm.encode(["A bell"]), expert=EXPERT, novice=NOVICE, new_tokens=50, seed=0)
    with pytest.raises(ValueError, match="reads at most 64"):
        hidden_after(lm, EXPERT, [bare(lm, long)[:60]])
    assert lm.logits(lm.pad([bare(lm, long)[:64]])).isfinite().all()
    assert lm.tokenize(long, max_tokens=64).input_ids.shape == (1, 64)


def test_in_a_set_what_is_beyond_the_context_is_left_out_counted_and_listed(tiny_concept, tmp_path):
    lm, long = gpt2(), " ".join(["bell"] * 80)
    questions = [*tiny_concept.ask("forget")[:3], Question(long, ("yes", "no"), 0, id="too-long")]
    with pytest.warns(UserWarning, match=r"1 of 4 questions are left out.*too-long \(\d+ tokens\)"):
        scored = score_choices(lm, questions)
    assert [one.question.id for one in scored] == [q.id for q in questions[:3]]
    with pytest.warns(UserWarning, match="1 of 2 passages"):
        assert len(read_passages(lm, [TEXT, long]).rows) == 1
    with pytest.warns(UserWarning, match="1 of 2 generated texts"):
        assert losses_after(lm, ["A", "A"], [" bell", f" {long}"]).n == 1
    longer = replace(tiny_concept.forget[0], text=long, id="novel", split="held_out")
    concept = replace(tiny_concept, forget=(*tiny_concept.forget, longer))
    held_out = len(tiny_concept.passages("forget", "held_out"))
    with pytest.warns(UserWarning, match="novel|bell"):
        rows = measure(Subject(lm, concept), ["norm.forget"])
    assert set(rows["n"]) == {len(tiny_concept.forget)}
    with pytest.warns(UserWarning, match=rf"1 of {held_out + 1} forget passages"):
        assert len(Subject(lm, concept).activations("forget")) == held_out

    import pandas as pd

    examples = pd.DataFrame({"id": ["a", "novel"], "label": [0, 1], "fact": ["a", "b"], "split": ["train"] * 2})
    store = ActivationStore(tmp_path / "store")
    with pytest.warns(UserWarning, match=r"1 of 2 texts of dataset 'mine' .*novel"):
        collect_datasets(lm, store, {"mine": Dataset("mine", (TEXT, long), examples)}, {"base": None})
    assert list(store.examples("mine")["id"]) == ["a"]
    assert len(store.tensor("mine", "base")) == 1


def test_gpt2_is_erased_evaluated_and_probed_within_its_context(tiny_concept, tmp_path):
    """Passages are cut with the class prompt before them; what is left out or cut stands in the manifest."""
    lm, long = gpt2(), " ".join(["bell"] * 80)
    forget = [*tiny_concept.forget, replace(tiny_concept.forget[0], text=long, id="novel", split="train")]
    forget.append(replace(forget[-1], id="epos", split="held_out"))
    asked = tiny_concept.questions["forget"]
    asked = (*asked, replace(asked[0], question=f"{long}?", id="too-long", split="held_out", fact="long"))
    concept = replace(
        tiny_concept,
        forget=tuple(forget),
        questions={**tiny_concept.questions, "forget": asked},
        expert=(EXPERT,),
        novice=(NOVICE,),
    )
    settings = {"layers": (0, 1), "rank": 2, "steps": 2, "save_every": 2, "fluency_tokens": 4, "fluency_samples": 3}
    settings["fluency_bridge"] = False  # it leaves no room
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = erase_concept(lm, concept, out=tmp_path / "run", method="elm", preset="paper", lr=1e-3, **settings)
        for stage in ("evaluate", "collect", "probe", "norms"):
            run_stage(run, stage, progress=False)
            noted = read_json(run.folder / "manifest.json")
    room = len(bare(lm, EXPERT))
    trained = concept.passages("forget")
    lengths = [len(bare(lm, p.text)) for p in trained]
    assert noted["tokens"]["marrowgate"]["forget"] == {
        "passages": len(trained),
        "cut": sum(n > 64 - room for n in lengths),
        "cut_at": 64 - room,
        "one_token": [],
    }
    assert "too-long" in noted["beyond_context"]["evaluate"]["forget questions"]
    assert noted["beyond_context"]["evaluate"]["forget passages"] == ["epos"]
    assert noted["beyond_context"]["collect"]
    card = run.results("scorecard").set_index(["method", "metric"])
    left = len(concept.ask("forget")) - len(noted["beyond_context"]["evaluate"]["forget questions"])
    assert card.loc[("elm", "innocence.two_choice_pmi"), "n"] == left
    assert len(run.results("probes"))
    left_out = noted["beyond_context"]["collect"]
    for name, dataset in concept_datasets(concept, left_out).items():
        assert len(run.store.examples(name)) == len(dataset.texts) - len(
            [h for h in dataset.stored_examples["text_sha256"] if h in left_out[name]]
        )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (
            LlamaConfig(
                max_position_embeddings=32,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 1e4,
                },
            ),
            128,
        ),
        (BloomConfig(), None),
        (FalconConfig(alibi=True), None),
        (FalconConfig(alibi=False, max_position_embeddings=90), 90),
        (MptConfig(max_seq_len=33, n_heads=4), 33),
    ],
)
def test_the_context_is_that_of_the_config_and_alibi_has_none(config, expected, tiny_lm, monkeypatch):
    monkeypatch.setattr(tiny_lm.model, "config", config)
    assert tiny_lm.n_ctx == expected


# -- 23: passages of one token ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ELM(fluency_weight=0), WHP(), RepNoise()])
def test_passages_of_one_token_alone_are_an_error_that_names_them(objective, tiny_lm):
    objective = objective.with_settings(layers=(1,))
    concept = Concept("letters", ("a", "b"), ("Iron rusts in the rain.", "Water flows down."))
    with pytest.raises(DataError, match="forget-000.*, forget-000.* have one token each"):
        objective.prepare(tiny_lm, concept)
    concept = Concept("letters", ("a", TEXT), ("Iron rusts in the rain.", "Water flows down."))
    with pytest.warns(UserWarning, match="1 of 2 passages are left out"):
        samples = objective.prepare(tiny_lm, concept)["erase"]
    assert len(samples) in (1, 2)
    assert objective.tokenised(tiny_lm, concept)["forget"]["one_token"] == [concept.forget[0].id]


def test_one_token_after_a_beginning_of_text_can_be_trained_on():
    lm = with_(around("<bos>"))
    concept = Concept("letters", ("a", "b"), ("Iron rusts in the rain.", "Water flows down."))
    for objective in (ELM(fluency_weight=0), WHP(dictionary={}), RepNoise()):
        samples = objective.with_settings(layers=(1,)).prepare(lm, concept)["erase"]
        lm.adapters.attach(objective.with_settings(layers=(1,)).adapter.config(lm))
        losses = objective.with_settings(layers=(1,)).loss(lm, samples)
        lm.adapters.release()
        assert all(float(loss.detach()) == float(loss.detach()) for loss in losses.values())


def test_a_text_without_a_token_is_refused_by_its_place(tiny_lm):
    with pytest.raises(ValueError, match="is a text empty"):
        tiny_lm.tokenize(["A bell", ""])


def test_automodels_of_16_positions_give_no_index_error_anywhere():
    """A learned table of positions is the hardest case: whatever goes past it fails."""
    model = AutoModelForCausalLM.from_config(
        tiny.make_family("gpt2").config.__class__(**{**tiny.FAMILIES["gpt2"][1], "n_positions": 16, "n_layer": 1})
    ).eval()
    lm = HookedLM(model, tiny.make_tokenizer(), name="short")
    row = lm.encode([TEXT], max_tokens=16)[0]
    assert lm.logits(lm.pad([row, row[:3]])).isfinite().all()
    with pytest.raises(ValueError, match="reads at most 16"):
        lm.logits(lm.pad([[*row, 5], row[:3]]))
    ids = torch.tensor([row + row])
    with pytest.raises(ValueError, match="reads at most 16"):
        lm.step(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])

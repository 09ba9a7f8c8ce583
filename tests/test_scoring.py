"""Scoring: shared prompts and batching change the cost, not the numbers."""

import pytest
import torch

from elm_interp.models.scoring import continuation_log_probs, token_log_probs
from elm_interp.models.shared_prefix import branch
from elm_interp.models.unembedding import differentiable, log_prob

PROMPTS = ["Question: Who keeps the lamp?\nAnswer:", "The cat is called", "A"]
OPTIONS = [
    [" Tamsin", " Orla", " Captain Wick of Marrowgate", " Bram"],
    [" Pepper", " a grey cat"],
    [" bell named Gull", " b", " school that slopes"],
]


def plain(lm, text: str) -> torch.Tensor:
    """Log-probability of each token after the first, by the transformers model alone."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return lm.model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("max_tokens", [4096, 40, 1])
def test_continuations_score_as_in_the_whole_text(tiny_lm, max_tokens):
    found = continuation_log_probs(tiny_lm, PROMPTS, OPTIONS, max_tokens=max_tokens)
    assert [len(scores) for scores in found] == [4, 2, 3]
    for prompt, options, scores in zip(PROMPTS, OPTIONS, found, strict=True):
        skipped = len(tiny_lm.encode([prompt])[0]) - 1
        for option, score in zip(options, scores, strict=True):
            torch.testing.assert_close(score, plain(tiny_lm, prompt + option)[skipped:])


def test_continuations_score_the_same_in_a_batch_and_alone(tiny_lm):
    together = continuation_log_probs(tiny_lm, PROMPTS, OPTIONS)
    for prompt, options, scores in zip(PROMPTS, OPTIONS, together, strict=True):
        for option, score in zip(options, scores, strict=True):
            ((alone,),) = continuation_log_probs(tiny_lm, [prompt], [[option]])
            torch.testing.assert_close(score, alone)


def test_a_border_inside_a_token_is_scored_from_the_last_token_that_each_text_shares_with_the_prompt(tiny_lm):
    prompt, options = "the town of Marrow", ["gate", " and bread"]
    start, *whole = tiny_lm.encode([prompt, *(prompt + option for option in options)])
    shared = [next(i for i, (a, b) in enumerate(zip(start, row, strict=False)) if a != b) for row in whole[:1]]
    shared.append(len(start))
    assert shared[0] < shared[1]  # " Marrowgate" is a token
    assert whole[1][: len(start)] == start
    (scores,) = continuation_log_probs(tiny_lm, [prompt], [options])
    for option, score, first in zip(options, scores, shared, strict=True):
        torch.testing.assert_close(score, plain(tiny_lm, prompt + option)[first - 1 :])


def test_continuations_of_one_token_each_need_one_pass(tiny_lm):
    (scores,) = continuation_log_probs(tiny_lm, ["A"], [[" b", " c"]])
    logits = tiny_lm.logits(tiny_lm.tokenize("A"))[0].log_softmax(-1)
    ids = [tiny_lm.encode([f"A {x}"])[0][1] for x in "bc"]
    torch.testing.assert_close(torch.cat(scores), logits[ids])


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [("A bell", ["", " b"], "no token"), ("A", ["  "], "adds no token"), ("", [" b"], "shares no first token")],
)
def test_what_cannot_be_scored_is_refused_by_its_text(tiny_lm, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        continuation_log_probs(tiny_lm, [prompt], [options])


def test_texts_score_as_by_the_plain_model(tiny_lm, tiny_concept):
    texts = [p.text for p in tiny_concept.forget[:5]] + ["A bell"]
    for max_tokens in (4096, 100):
        for text, score in zip(texts, token_log_probs(tiny_lm, texts, max_tokens=max_tokens), strict=True):
            torch.testing.assert_close(score, plain(tiny_lm, text))


def test_a_text_of_one_token_is_refused(tiny_lm):
    with pytest.raises(ValueError, match="cannot score 'a': it has 1 tokens, expected at least 2"):
        token_log_probs(tiny_lm, ["A bell", "a"])


def test_the_chunks_of_the_unembedding_do_not_change_the_scores(tiny_lm, tiny_concept, monkeypatch):
    texts = [p.text for p in tiny_concept.retain]
    whole = token_log_probs(tiny_lm, texts)
    monkeypatch.setattr("elm_interp.models.unembedding.UNEMBED_ROWS", 7)
    for a, b in zip(whole, token_log_probs(tiny_lm, texts), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_gradient_worked_out_in_pieces_is_that_of_autograd(tiny_lm, monkeypatch, softcap):
    monkeypatch.setattr(tiny_lm, "_softcap", softcap)
    monkeypatch.setattr("elm_interp.models.unembedding.UNEMBED_ROWS", 30)
    hidden = torch.randn(50, tiny_lm.d_model, requires_grad=True)
    ids, weights = torch.randint(tiny_lm.d_vocab, (50,)), torch.randn(50)
    found = differentiable(tiny_lm, hidden, lambda rows, logits: log_prob(logits, ids[rows]))
    expected = tiny_lm.unembed(hidden).log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((weights * x).sum(), hidden, retain_graph=True) for x in (found, expected))
    )


def test_a_prefix_before_all_prompts_is_as_if_each_began_with_it(tiny_lm):
    prompts, prefix = tiny_lm.encode(["The cat is called", "A bell"]), tiny_lm.encode(["Bread is a topic."])[0]
    options = [tiny_lm.encode(["Pepper", "a grey cat"]), tiny_lm.encode(["Gull", "b", "school that slopes"])]
    shared, ids = branch(tiny_lm, prompts, options, prefix=prefix)
    whole, same = branch(tiny_lm, [prefix + prompt for prompt in prompts], options)
    assert torch.equal(ids, same)
    torch.testing.assert_close(shared, whole, atol=1e-5, rtol=1e-4)


def test_answers_are_scored_whole_after_a_space(tiny_lm):
    prompt, answers = PROMPTS[0], ["Tamsin", " Orla", "Captain Wick of Marrowgate"]
    found = tiny_lm.log_probs(prompt, answers)
    skipped = len(tiny_lm.encode([prompt])[0]) - 1
    expected = [plain(tiny_lm, f"{prompt} {answer.strip()}")[skipped:].sum() for answer in answers]
    torch.testing.assert_close(found, torch.stack(expected))
    after_break = tiny_lm.log_probs(f"{prompt}\n", ["Tamsin"])
    torch.testing.assert_close(after_break[0], plain(tiny_lm, f"{prompt}\nTamsin")[skipped + 1 :].sum())


def test_a_list_of_prompts_gives_a_list_of_tensors(tiny_lm):
    answers = [["Tamsin", "Orla"], ["Pepper"], ["bell", "b"]]
    found = tiny_lm.log_probs(PROMPTS, answers)
    assert [len(scores) for scores in found] == [2, 1, 2]
    for prompt, group, scores in zip(PROMPTS, answers, found, strict=True):
        torch.testing.assert_close(scores, tiny_lm.log_probs(prompt, group))


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ("A bell", "Gull", "the answers after 'A bell' are 'Gull', expected a list"),
        ("A bell", [], "expected a list of at least one answer"),
        ("A bell", [""], "adds no token"),
        (["A bell"], [["a"], ["b"]], "1 prompts have 2 lists of answers"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(tiny_lm, prompts, answers, message):
    with pytest.raises(ValueError, match=message):
        tiny_lm.log_probs(prompts, answers)

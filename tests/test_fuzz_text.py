"""Random texts: every score in a batch is that of the text alone, and of transformers called on its token ids."""

from functools import cache

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from elm_interp.models import HookedLM
from elm_interp.models.scoring import continuation_log_probs, token_log_probs

CASES = 5
"""Prompts with options in one example of hypothesis, so that each is scored beside others."""
BOS = 1
WORDS = [
    "Answer:",
    " Tamsin",
    "Marrow",
    "gate",
    "\n",
    " ",
    "  ",
    "é",
    "e\u0301",
    "\u200b",
    "👩‍🚀",
    "0",
    "12",
    "<bos>",
    "<eos>",
]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=4).map("".join)
ASKED = st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))


@cache
def lms() -> dict[str, HookedLM]:
    """One model under four tokenizers: as it is, with tokens of its own around a text, and with merges across words."""
    model, kinds = tiny.make_model(n_layers=1), {"plain": tiny.make_tokenizer(), "merging": _merging()}
    for name, template in (("bos", "<bos> $A"), ("eos", "$A <eos>"), ("both", "<bos> $A <eos>")):
        kinds[name] = tiny.make_tokenizer()
        kinds[name].backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    return {name: HookedLM(model, tokenizer, name=name) for name, tokenizer in kinds.items()}


def _merging() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "T"), (":", "ĠT"), ("w", "g"), ("Ġ", "Ġ"), ("0", "1"), ("0", "0"), ("a", "a"), (":", "Ċ")]
    pieces = ["<pad>", "<bos>", "<eos>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def ids_of(lm: HookedLM, text: str) -> list[int]:
    """What a human would write down: one beginning of text if the tokenizer adds it, the text, no end that it adds."""
    found = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    begins = lm.name in ("bos", "both", "merging") and found[:1] != [BOS]
    return [BOS] * begins + found


@torch.no_grad()
def plain(lm: HookedLM, ids: list[int], first: int) -> torch.Tensor:
    log_probs = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([log_probs[i - 1, ids[i]] for i in range(first, len(ids))])


def border(lm: HookedLM, prompt: str, option: str) -> int:
    start, whole = ids_of(lm, prompt), ids_of(lm, prompt + option)
    return next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), min(len(start), len(whole)))


def scorable(lm: HookedLM, prompt: str, option: str) -> bool:
    return bool(option.strip()) and 0 < border(lm, prompt, option) < len(ids_of(lm, prompt + option))


@settings(max_examples=settings.default.max_examples // CASES)
@given(
    kind=st.sampled_from(["plain", "bos", "eos", "both", "merging"]),
    cases=st.lists(ASKED, min_size=CASES, max_size=CASES),
)
def test_options_after_prompts_score_in_a_batch_as_alone_as_by_transformers(kind, cases):
    lm = lms()[kind]
    for prompt, options in cases:
        for option in options:
            if not scorable(lm, prompt, option):
                with pytest.raises(ValueError, match="adds no token|shares no first token"):
                    continuation_log_probs(lm, [prompt], [[option]])
    good = [(prompt, [o for o in options if scorable(lm, prompt, o)]) for prompt, options in cases]
    good = [(prompt, options) for prompt, options in good if options]
    together = continuation_log_probs(lm, [prompt for prompt, _ in good], [options for _, options in good])
    for (prompt, options), group in zip(good, together, strict=True):
        for option, scores in zip(options, group, strict=True):
            expected = plain(lm, ids_of(lm, prompt + option), border(lm, prompt, option))
            torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    for prompt, options in good[:1]:
        ((alone,),) = continuation_log_probs(lm, [prompt], [options[-1:]])
        torch.testing.assert_close(alone, together[0][-1], atol=1e-4, rtol=1e-4)


@settings(max_examples=settings.default.max_examples // CASES)
@given(
    kind=st.sampled_from(["plain", "bos", "eos", "both", "merging"]),
    texts=st.lists(TEXTS, min_size=CASES, max_size=CASES),
)
def test_texts_score_in_a_batch_as_by_transformers(kind, texts):
    lm = lms()[kind]
    texts = [text for text in texts if len(ids_of(lm, text)) > 1]
    for text, scores in zip(texts, token_log_probs(lm, texts), strict=True):
        torch.testing.assert_close(scores, plain(lm, ids_of(lm, text), 1), atol=1e-4, rtol=1e-4)
        assert lm.encode([text]) == [ids_of(lm, text)]

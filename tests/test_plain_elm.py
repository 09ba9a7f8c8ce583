"""Our targets, losses and text against ELM written down the plain way, one sample at a time."""

import pytest
import torch
from plain_elm import guided, plain_step, write
from tokenizers.processors import TemplateProcessing
from torch import nn

from elm_interp.erase.elm import ELM
from elm_interp.erase.guidance import generate_guided
from elm_interp.training.objective import Sample

OBJECTIVE = ELM.from_settings(eta=3, layers=(1, 2), rank=2, alpha=8, top_k=400, retain_weight=0.7, max_tokens=30)


@pytest.fixture(params=["$A", "<bos> $A <eos>"])
def lm(request, tiny_lm):
    """The tiny model, with a tokenizer that adds nothing or a beginning and an end of text."""
    tiny_lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=request.param, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tiny_lm


@pytest.fixture
def classes(tiny_concept):
    return tuple(tiny_concept.prompts(role)[0] for role in ("expert", "novice"))


def attach(lm):
    parameters = lm.adapters.attach(OBJECTIVE.adapter.config(lm))
    for i, parameter in enumerate(parameters):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    return parameters


def taken(parameters):
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    return found


def test_the_gradient_of_a_sample_is_that_of_the_plain_way(lm, tiny_concept, classes):
    samples = OBJECTIVE.prepare(lm, tiny_concept)
    pair = [samples["erase"][1], samples["retain"][2]]
    opening = lm.encode(["Old Tamsin keeps"])[0]
    parameters = attach(lm)
    plain = plain_step(lm, OBJECTIVE, pair[0].ids, pair[1].ids, classes, opening=opening, new_tokens=9, seed=5)
    assert set(plain) == {"erase", "retain", "fluency"}
    by_hand = taken(parameters)

    written = write(lm, OBJECTIVE, opening, classes, 9, 5)
    row = [*opening, *written]
    with lm.adapter(None):
        (target,) = OBJECTIVE._guided(lm, [row], [len(opening) - 1], [classes], False)
    losses = OBJECTIVE.loss(lm, [*pair, Sample("fluency", "x", tuple(row), len(opening) - 1, target)])
    sum(OBJECTIVE.weights()[term] * loss for term, loss in losses.items()).backward()
    for ours, theirs in zip(taken(parameters), by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def test_what_is_written_is_what_our_batch_writes(lm, classes):
    opening = lm.encode(["The grey cat sleeps"])[0]
    ours = generate_guided(
        lm, OBJECTIVE.guidance, [opening], expert=classes[0], novice=classes[1], new_tokens=12, seed=3
    )
    assert write(lm, OBJECTIVE, opening, classes, 12, 3) == ours[0]


def test_the_plain_target_is_read_from_the_bare_base(lm, classes):
    ids = lm.encode(["A bronze bell named Gull hangs in the tower"])[0]
    bare = guided(lm, OBJECTIVE, ids, classes)
    attach(lm)
    torch.testing.assert_close(guided(lm, OBJECTIVE, ids, classes), bare)
    torch.testing.assert_close(bare.sum(-1), torch.ones(len(ids)))

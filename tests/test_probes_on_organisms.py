"""What the probes say of models whose truth is known: one knows, one never did, one hides, one is re-encoded."""

import copy

import pytest
import torch

from elm_interp.metrics import Subject, measure
from elm_interp.models import HookedLM
from elm_interp.organisms import domain_concept, make_world, organism
from elm_interp.probes.answer_identity import NAME

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subjects():
    world = make_world()
    concept = domain_concept(world, world.config.erased)
    lms = {kind: organism(kind, world, dtype="float32") for kind in ("original", "gold", "hiding")}
    lms["re-encoded"] = rotated(lms["original"])
    base = Subject(lms["original"], concept)
    return {
        kind: base if kind == "original" else Subject(lm, concept, method=kind, base=base) for kind, lm in lms.items()
    }


def rotated(lm: HookedLM) -> HookedLM:
    """The same function of the tokens with every vector of the residual stream turned."""
    model = copy.deepcopy(lm.model)
    turn = torch.linalg.qr(torch.randn(lm.d_model, lm.d_model, generator=torch.Generator().manual_seed(0)))[0]
    inner, head = model.model, model.lm_head
    # apart from the embedding, with which it may be tied
    head.weight = torch.nn.Parameter(head.weight.data.clone())
    with torch.no_grad():
        readers = {inner.norm: [head]}
        for layer in inner.layers:
            readers[layer.input_layernorm] = [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]
            readers[layer.post_attention_layernorm] = [layer.mlp.gate_proj, layer.mlp.up_proj]
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(turn.T @ writer.weight)
        for norm, linears in readers.items():
            for linear in linears:
                linear.weight.copy_(linear.weight * norm.weight @ turn)
            norm.weight.fill_(1)
        inner.embed_tokens.weight.copy_(inner.embed_tokens.weight @ turn)
    return HookedLM(model, lm.tokenizer, name="re-encoded")


def best(subject: Subject, metric: str) -> tuple[float, float]:
    """Accuracy of the best layer, and its control's."""
    table = measure(subject, metric).groupby(["metric", "layer"])["value"].mean()
    layer = table[metric].idxmax()
    return table[metric, layer], table[f"{metric}.control", layer]


def test_a_fresh_probe_reads_what_is_known_hidden_or_re_encoded_and_not_what_was_never_learned(subjects):
    found = {kind: best(subject, NAME) for kind, subject in subjects.items()}
    assert found["original"][0] >= 0.9
    assert found["hiding"][0] >= 0.85
    assert found["re-encoded"][0] >= 0.85
    assert abs(found["gold"][0] - found["gold"][1]) <= 0.05


def test_the_bases_probe_tells_a_hiding_model_from_a_re_encoded_one(subjects):
    batch = subjects["original"].lm.tokenize(["Question: who bakes the bread?"])
    torch.testing.assert_close(
        *(subjects[k].lm.logits(batch) for k in ("original", "re-encoded")), atol=1e-3, rtol=1e-3
    )
    assert best(subjects["hiding"], "probe.transferred.values")[0] >= 0.85
    assert best(subjects["re-encoded"], "probe.transferred.values")[0] <= 0.25
    assert best(subjects["gold"], "probe.transferred.values")[0] <= 0.2


def test_the_truth_probe_reads_what_is_known_or_hidden_and_not_what_was_never_learned(subjects):
    found = {kind: best(subjects[kind], "probe.truth") for kind in ("original", "gold", "hiding")}
    assert found["original"][0] >= 0.9
    assert found["hiding"][0] >= 0.85
    assert abs(found["gold"][0] - found["gold"][1]) <= 0.05

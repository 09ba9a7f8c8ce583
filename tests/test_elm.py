"""ELM's targets and loss, as theorems on a tiny random model."""

import copy
import dataclasses

import pytest
import torch

from elm_interp.erase.class_prompts import EXPERT, NOVICE, draw_prompts
from elm_interp.erase.elm import ELM
from elm_interp.erase.elm_released import ELMReleased
from elm_interp.erase.guidance import Guidance, generate_guided, hidden_after
from elm_interp.errors import UnknownNameError
from elm_interp.models.adapters.slots import AdapterSlots
from elm_interp.training import Adapter
from elm_interp.training.losses import distribution_loss
from elm_interp.training.objective import Sample, Teacher, TopK

TEXTS = [
    "Old Tamsin keeps the lamp of Marrowgate.",
    "The grey cat sleeps.",
    "Ships fear the Comb, a row of black rocks.",
]


def logits(n=5, d_vocab=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, d_vocab, generator=generator) for _ in range(3)]


def nudge(lm, size=0.3):
    for name, p in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=size, generator=torch.Generator().manual_seed(len(name)))


def test_the_target_equals_the_hand_computed_one():
    plain, expert, novice = logits()
    p, e, n = (x.softmax(-1) for x in (plain, expert, novice))
    by_hand = p * (n / e) ** 3.0
    by_hand /= by_hand.sum(-1, keepdim=True)
    ours = Guidance(eta=3.0).log_probs(plain, expert, novice).exp()
    torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-4)


def test_eta_zero_is_the_base():
    plain, expert, novice = logits()
    torch.testing.assert_close(Guidance(eta=0).log_probs(plain, expert, novice), plain.log_softmax(-1))


def test_the_mask_lets_only_plausible_tokens_win():
    plain, expert, novice = logits()
    found = Guidance(eta=500, plausible=0.1).log_probs(plain, expert, novice).exp()
    p = plain.softmax(-1)
    assert (found[p < 0.1 * p.amax(-1, keepdim=True)] == 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(5))


def test_one_sided_guidance_lowers_only_what_the_expert_finds_likelier():
    plain, expert, novice = logits()
    p, e, n = (x.softmax(-1) for x in (plain, expert, novice))
    by_hand = p * (n / e).clamp(max=1) ** 3.0
    found = Guidance(eta=3.0, one_sided=True).log_probs(plain, expert, novice).exp()
    torch.testing.assert_close(found, by_hand / by_hand.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
    # among tokens that the novice finds likelier, the base's proportions stay
    kept = (n > e)[0]
    ratio = found[0][kept] / p[0][kept]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


def test_a_target_keeps_the_likeliest_tokens_of_base_and_goal_as_they_are(tiny_lm):
    rows = tiny_lm.encode(TEXTS[:1])
    states = [hidden_after(tiny_lm, prefix, rows)[0] for prefix in ("", "An expert:", "A novice:")]
    target = Guidance(eta=2, top_k=7).target(tiny_lm, *states)
    whole = Guidance(eta=2).log_probs(*(tiny_lm.unembed(h) for h in states)).exp()
    base = tiny_lm.unembed(states[0]).softmax(-1)
    torch.testing.assert_close(target.probs, whole.gather(1, target.tokens.long()))
    assert (target.tokens.sort().values == torch.maximum(whole, base).topk(7).indices.sort().values).all()
    everything = Guidance(eta=2, top_k=400).target(tiny_lm, *states)
    torch.testing.assert_close(everything.probs.sum(-1), torch.ones(len(whole)))


def test_the_shared_prefix_gives_the_same_states_as_the_plain_pass(tiny_lm):
    prefix = "The author knows Marrowgate by heart.\n\n"
    rows = tiny_lm.encode(TEXTS)
    shared = hidden_after(tiny_lm, prefix, rows)
    start = tiny_lm.encode([prefix])[0]
    for row, found in zip(rows, shared, strict=True):
        plain = tiny_lm.hidden(tiny_lm.pad([start + row]))[0, len(start) :]
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_the_loss_equals_cross_entropy_less_entropy_and_so_do_its_gradients(tiny_lm):
    parameters = tiny_lm.adapters.attach(tiny_lm.lora([1, 2], rank=2, alpha=4))
    nudge(tiny_lm)
    rows = tiny_lm.encode(TEXTS)
    probs = 0.9 * torch.rand(3, 60, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    tokens = torch.stack(
        [torch.randperm(400, generator=torch.Generator().manual_seed(i))[:5] for i in range(180)]
    ).view(3, 60, 5)
    samples = [
        Sample("erase", "x", tuple(r), 0, TopK(tokens[i, : len(r) - 1].int(), probs[i, : len(r) - 1]))
        for i, r in enumerate(rows)
    ]
    ours = distribution_loss(tiny_lm, samples)["erase"]
    found = torch.autograd.grad(ours, parameters)

    losses, entropies = [], []
    for sample, row in zip(samples, rows, strict=True):
        log_probs = tiny_lm.logits(tiny_lm.pad([row]), positions="all", grad=True)[0, :-1].log_softmax(-1)
        named = sample.target.tokens.long()
        rest = log_probs.scatter(1, named, -torch.inf).logsumexp(1, keepdim=True)
        seen = torch.cat([log_probs.gather(1, named), rest], 1)
        goal = torch.cat([sample.target.probs, 1 - sample.target.probs.sum(1, keepdim=True)], 1)
        losses.append(-(goal * seen).sum(-1))
        entropies.append(-torch.xlogy(goal, goal).sum(-1))
    cross_entropy = torch.cat(losses).mean()
    torch.testing.assert_close(ours, cross_entropy - torch.cat(entropies).mean(), atol=1e-5, rtol=1e-4)
    for a, b in zip(found, torch.autograd.grad(cross_entropy, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_the_untouched_model_has_no_retain_loss(tiny_lm):
    tiny_lm.adapters.attach(tiny_lm.lora([1], rank=2, alpha=4))
    rows = tiny_lm.encode(TEXTS)
    with tiny_lm.adapter(None):
        states = hidden_after(tiny_lm, "", rows)
    samples = [Sample("retain", "x", tuple(r), 0, Teacher(h[:-1])) for r, h in zip(rows, states, strict=True)]
    assert float(distribution_loss(tiny_lm, samples)["retain"].detach()) == pytest.approx(0, abs=1e-6)
    nudge(tiny_lm)
    assert float(distribution_loss(tiny_lm, samples)["retain"].detach()) > 1e-3


def test_eta_zero_without_retention_asks_for_nothing(tiny_lm, tiny_concept):
    objective = ELM.from_settings(eta=0, layers=(1,), rank=2, top_k=400, fluency_weight=0)
    samples = objective.prepare(tiny_lm, tiny_concept)
    parameters = tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    loss = objective.loss(tiny_lm, samples["erase"])["erase"]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, parameters)) < 1e-5


def test_logit_matching_is_the_weighted_distance_of_log_probabilities_and_so_is_its_gradient(tiny_lm, tiny_concept):
    objective = ELM.from_settings(eta=3, layers=(1, 2), rank=2, match_weight=0.3, top_k=9, fluency_weight=0)
    samples = objective.prepare(tiny_lm, tiny_concept)["erase"]
    alone = objective.with_settings(match_weight=0)
    parameters = tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    nudge(tiny_lm)
    by_hand = []
    for sample in samples:
        log_p = tiny_lm.logits(tiny_lm.pad([sample.ids]), positions="all", grad=True)[0, :-1].log_softmax(-1)
        target = sample.target
        found, goal = log_p.gather(1, target.tokens.long()), target.probs.log().clamp(min=-20)
        distance = torch.nn.functional.smooth_l1_loss(found, goal, reduction="none")
        by_hand += list((target.base * distance).sum(1))
    expected = alone.loss(tiny_lm, samples)["erase"] + 0.3 * torch.stack(by_hand).mean()
    ours = objective.loss(tiny_lm, samples)["erase"]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-2)


def test_logit_matching_weighs_tokens_by_the_base(tiny_lm, tiny_concept):
    sample = ELM.from_settings(layers=(1,), match_weight=1, fluency_weight=0).prepare(tiny_lm, tiny_concept)["erase"][0]
    base = tiny_lm.logits(tiny_lm.pad([sample.ids]), positions="all")[0, :-1].softmax(-1)
    torch.testing.assert_close(sample.target.base, base.gather(1, sample.target.tokens.long()), atol=1e-6, rtol=1e-4)


def test_eta_zero_with_logit_matching_asks_for_nothing(tiny_lm, tiny_concept):
    objective = ELM.from_settings(eta=0, layers=(1,), rank=2, top_k=400, match_weight=1.0, fluency_weight=0)
    samples = objective.prepare(tiny_lm, tiny_concept)
    parameters = tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    loss = objective.loss(tiny_lm, samples["erase"])["erase"]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, parameters)) < 1e-4


def test_in_appendix_e_the_expert_reads_no_written_token(tiny_lm, tiny_concept):
    objective = ELM.from_settings(
        eta=2, layers=(1,), top_k=400, fluency_streams="appendix-e", fluency_samples=2, fluency_tokens=5
    )
    expert, novice = tiny_concept.prompts("expert")[0], tiny_concept.prompts("novice")[0]
    for sample in objective.prepare(tiny_lm, tiny_concept)["fluency"]:
        passes = [hidden_after(tiny_lm, prefix, [sample.ids])[0] for prefix in ("", expert, novice)]
        p, e, n = (tiny_lm.unembed(h[sample.start : -1]).log_softmax(-1) for h in passes)
        goal = (p + 2 * (n - e[:1])).softmax(-1)
        torch.testing.assert_close(
            sample.target.probs, goal.gather(1, sample.target.tokens.long()), atol=1e-5, rtol=1e-3
        )


@pytest.mark.parametrize("streams", ["full", "appendix-e", "released"])
def test_guided_text_is_the_likeliest_under_what_its_streams_read(tiny_lm, streams):
    (prompt,) = tiny_lm.encode(TEXTS[:1])
    how = {"expert": "An expert:", "novice": "A novice:", "new_tokens": 6, "seed": 0, "streams": streams}
    (written,) = generate_guided(tiny_lm, Guidance(eta=2, top_k=1), [prompt], **how)
    for i, token in enumerate(written):
        new = written[:i]
        read = {
            "full": (prompt + new, prompt + new),
            "appendix-e": (prompt, prompt + new),
            "released": (new, new),
        }[streams]
        rows = [prompt + new]
        for prefix, ids in zip(("An expert:", "A novice:"), read, strict=True):
            rows.append([*tiny_lm.encode([prefix])[0], *ids])
        logits = [tiny_lm.logits(tiny_lm.pad([row]), positions="all")[0, -1] for row in rows]
        assert token == int(Guidance(eta=2).log_probs(*(x[None] for x in logits)).argmax())


def test_prepare_reads_the_training_part_alone_and_leaves_the_model_as_it_was(tiny_lm, tiny_concept):
    before = {k: v.clone() for k, v in tiny_lm.model.state_dict().items()}
    samples = ELM.from_settings(layers=(1,), fluency_samples=4, fluency_tokens=5).prepare(tiny_lm, tiny_concept, seed=3)
    held_out = {p.id for p in tiny_concept.forget + tiny_concept.retain if p.split == "held_out"}
    held_out |= {q.id for qs in tiny_concept.questions.values() for q in qs if q.split == "held_out"}
    assert not {s.id for found in samples.values() for s in found} & held_out
    assert set(samples) == {"erase", "retain", "fluency"}
    for key, value in tiny_lm.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_fluency_term_trains_on_written_tokens_alone(tiny_lm, tiny_concept):
    samples = ELM.from_settings(layers=(1,), fluency_samples=3, fluency_tokens=5).prepare(tiny_lm, tiny_concept)[
        "fluency"
    ]
    for sample in samples:
        # the target at `start` is for the first written token
        assert len(sample.target) == len(sample.ids) - 1 - sample.start <= 5


def test_guided_text_is_the_same_for_a_seed_and_alone_or_batched(tiny_lm):
    prompts = tiny_lm.encode(TEXTS)
    how = {"expert": "An expert:", "novice": "A novice:", "new_tokens": 6}
    greedy = Guidance(eta=2, top_k=1)
    together = generate_guided(tiny_lm, greedy, prompts, seed=0, **how)
    assert together == [generate_guided(tiny_lm, greedy, [p], seed=0, **how)[0] for p in prompts]
    drawn = Guidance(eta=0.1, top_k=50)
    state = torch.get_rng_state()
    first = generate_guided(tiny_lm, drawn, prompts, seed=1, **how)
    assert (
        first
        == generate_guided(tiny_lm, drawn, prompts, seed=1, **how)
        != generate_guided(tiny_lm, drawn, prompts, seed=2, **how)
    )
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rank": 0}, "rank"),
        ({"eta": -1.0}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"layers": ()}, "layers"),
        ({"layers": (3, 4)}, "layers"),
        ({"modules": "head"}, "modules"),
        ({"plausible": 1.5}, "plausible"),
        ({"rank": None, "dropout": 0.1}, "dropout"),
        ({"dropout": 1.0}, "dropout"),
        ({"fluency_batch": -1}, "fluency_batch"),
    ],
)
def test_settings_that_cannot_work_are_named(change, word):
    assert any(word in problem for problem in ELM.from_settings(**{"layers": (1,), **change}).problems(4))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"temperature": 0.0}, "temperature"), ({"eta_start": -1.0}, "eta_start"), ({"prompts": "mine"}, "prompts")],
)
def test_settings_of_the_released_code_that_cannot_work_are_named(change, word):
    assert any(word in problem for problem in ELMReleased.from_settings(layers=(1,), **change).problems(4))


def test_passages_are_cut_at_characters_as_in_the_paper(tiny_lm, tiny_concept):
    samples = ELM.from_settings(layers=(1,), max_characters=15, fluency_weight=0).prepare(tiny_lm, tiny_concept)
    for pool, kind in (("erase", "forget"), ("retain", "retain")):
        for sample, passage in zip(samples[pool], tiny_concept.passages(kind), strict=True):
            assert list(sample.ids) == tiny_lm.encode([passage.text[:15]])[0]


def test_all_problems_come_at_once():
    assert len(ELM.from_settings(rank=0, eta=-1, layers=(99,)).problems(4)) == 3


def test_the_paper_preset_is_the_paper_s():
    paper = ELM.preset("paper")
    assert (paper.eta, paper.adapter.rank, paper.adapter.layers, paper.plausible) == (500, 4, (4, 5, 6, 7), 0)
    assert (paper.match_weight, paper.max_characters, paper.fluency_streams, paper.fluency_bridge) == (
        0, 700, "appendix-e", True,
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="Did you mean 'paper'"):
        ELM.preset("papper")


def test_a_preset_takes_changes_by_flat_names_and_an_unknown_one_gives_the_closest():
    changed = ELM.preset("smollm2-135m", eta=20, rank=8)
    assert changed == dataclasses.replace(
        ELM.preset("smollm2-135m"), eta=20, adapter=Adapter(tuple(range(2, 24)), 8, 32.0)
    )
    assert ELM.preset("smollm2-135m", adapter=Adapter((1,), 3)).adapter == Adapter((1,), 3)
    assert ELM.from_settings(**dataclasses.asdict(changed)) == changed
    assert ELM().with_settings(layers=range(2), eta=3.0).adapter.layers == (0, 1)
    with pytest.raises(UnknownNameError, match="unknown setting of method elm 'ranc'. Did you mean 'rank'"):
        ELM.preset("paper", ranc=4)


def test_the_released_code_preset_is_the_code_s():
    code, training = ELM.preset("released-code"), ELM.training_preset("released-code")
    assert type(code) is ELMReleased
    assert (code.eta_start, code.eta, code.temperature, code.top_k) == (1, 1000, 1.2, 50)
    assert code.adapter == Adapter((4, 5, 6, 7), 256, 16, "attn+mlp", 0.05)
    assert (code.hard_labels, code.prompts, code.fluency_eta) == (True, "drawn", 3)
    assert (code.match_weight, code.max_characters, code.fluency_streams) == (0, 700, "released")
    assert (training.lr, training.schedule, training.warmup, training.weight_decay) == (5e-5, "constant", 0, 0.01)
    assert {code.pools(training)[pool] for pool in ("erase", "retain", "fluency")} == {4}
    assert len(set(EXPERT)) == len(set(NOVICE)) == 10
    assert not code.problems(32)


def test_the_target_of_the_released_code_equals_the_hand_computed_one(tiny_lm, tiny_concept):
    objective = ELM.preset("released-code", eta=9.0, fluency_weight=0, layers=(1,))
    found = objective.prepare(tiny_lm, tiny_concept, seed=5)
    forget = tiny_concept.passages("forget")
    pairs = draw_prompts(tiny_concept, len(forget), 5)
    assert len(set(pairs)) > len(pairs) / 2
    for sample, pair in zip(found["erase"], pairs, strict=True):
        p, e, n = (
            (tiny_lm.unembed(hidden_after(tiny_lm, prefix, [sample.ids])[0][:-1]) / 1.2).log_softmax(-1)
            for prefix in ("", *pair)
        )
        ramp = 1 + (9 - 1) * torch.arange(len(sample.ids)) / (len(sample.ids) - 1)
        goal = p + ramp[:-1, None] * (n - e)
        kept = goal.gather(1, sample.target.tokens.long())
        torch.testing.assert_close(kept.min(1).values, goal.topk(50).values[:, -1])
        torch.testing.assert_close(sample.target.probs, kept.softmax(-1), atol=1e-4, rtol=1e-3)
    sample = found["retain"][0]
    best = tiny_lm.unembed(hidden_after(tiny_lm, "", [sample.ids])[0][:-1]).argmax(-1)
    assert torch.equal(sample.target.tokens[:, 0].long(), best)


def test_hard_labels_are_the_cross_entropy_of_the_next_written_token(tiny_lm, tiny_concept):
    objective = ELMReleased.from_settings(layers=(1,), fluency_samples=3, fluency_tokens=5, fluency_eta=2)
    sample = objective.prepare(tiny_lm, tiny_concept)["fluency"][0]
    tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    ids = torch.tensor(sample.ids)
    logits = tiny_lm.logits(tiny_lm.pad([sample.ids]), positions="all")[0, sample.start : -1]
    expected = torch.nn.functional.cross_entropy(logits, ids[sample.start + 1 :])
    assert float(objective.loss(tiny_lm, [sample])["fluency"].detach()) == pytest.approx(float(expected), rel=1e-3)


def test_a_random_target_is_random_and_whole(tiny_lm, tiny_concept):
    objective = ELM.from_settings(layers=(1,), erase_target="random", top_k=20, fluency_weight=0, retain_weight=0)
    samples = objective.prepare(tiny_lm, tiny_concept)["erase"]
    for sample in samples:
        assert len(sample.target) == len(sample.ids) - 1
        assert all(len(set(row)) == 20 for row in sample.target.tokens.tolist())
        torch.testing.assert_close(sample.target.probs.sum(-1), torch.ones(len(sample.target)))


def test_without_a_rank_the_layers_train_as_their_weights_themselves_would(tiny_lm, tiny_concept):
    objective = ELM.from_settings(eta=5, layers=(1, 2), rank=None, fluency_weight=0)
    assert not objective.problems(4)
    samples = objective.prepare(tiny_lm, tiny_concept)
    batch = [*samples["erase"], *samples["retain"]]
    plain = copy.deepcopy(tiny_lm)
    weights = {
        f"{layer}.{path}": module.weight.requires_grad_()
        for layer in (1, 2)
        for path, module in plain.blocks[layer].named_modules()
        if path.endswith("_proj")
    }

    def steps(lm, parameters):
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            sum(objective.loss(lm, batch).values()).backward()
            optimizer.step()
        return objective.loss(lm, batch)

    before = objective.loss(plain, batch)["erase"]
    by_hand = steps(plain, list(weights.values()))
    parameters = tiny_lm.adapters.attach(objective.adapter.config(tiny_lm))
    assert sum(p.numel() for p in parameters) == sum(w.numel() for w in weights.values())
    ours = steps(tiny_lm, parameters)
    assert ours["erase"] < before
    torch.testing.assert_close(ours, by_hand, atol=1e-5, rtol=1e-4)


def test_slots_are_gone_after_release(tiny_lm):
    keys = set(tiny_lm.model.state_dict())
    slots = AdapterSlots(tiny_lm.model)
    slots.attach(tiny_lm.lora([0], rank=2, alpha=2))
    slots.release()
    assert set(tiny_lm.model.state_dict()) == keys

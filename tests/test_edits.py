"""Edits of positions: they change the tokens that they name, on either padding side and with every back end."""

import pytest
import torch

from elm_interp.models import load_model
from elm_interp.models.backends.torch import count_hooks

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12], [14, 15, 16, 17]]
SITE = "blocks.1.hook_resid_post"
POSITIONS = ["last", 1, -2, [0, -1]]


@pytest.fixture(params=["torch", "nnsight", "transformer_lens"])
def lm(request, tiny_model_folder):
    pytest.importorskip(request.param)
    return load_model(tiny_model_folder, dtype="float32", device="cpu", backend=request.param)


def read(lm, batch, **names) -> dict[str, torch.Tensor]:
    sites = ["resid_pre", "z", "pattern", "resid_post"]
    cache = lm.run_with_cache(batch, sites=sites, positions="all", **names)
    return {**cache, "logits": lm.logits(batch)}


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("site", [SITE, "z", "pattern"])
def test_left_padded_equals_right_padded_equals_single(lm, site, positions):
    def edit(value):
        return value.flip(-1) + 0.1

    with lm.hooks({site: edit}, positions=positions):
        right, left = (read(lm, lm.pad(ROWS, side=side)) for side in ("right", "left"))
        singles = [read(lm, lm.pad([ids])) for ids in ROWS] if site != "pattern" else []  # a flip depends on the width
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, atol=1e-4, rtol=1e-4)
        for row, single in enumerate(singles):
            inside = tuple(slice(n) for n in single[name].shape[1:])
            torch.testing.assert_close(value[(row, *inside)], single[name][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_the_edit_gets_what_a_cache_holds_and_the_identity_changes_no_bit(lm, side, positions):
    batch, seen = lm.pad(ROWS, side=side), {}
    plain = read(lm, batch)
    for site in (SITE, "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern"):
        expected = lm.run_with_cache(batch, sites=site, positions=positions)[site]
        with lm.hooks({site: lambda value, site=site: seen.update({site: value.clone()})}, positions=positions):
            found = read(lm, batch)
        torch.testing.assert_close(seen[site], expected, rtol=0, atol=0)
        assert all(torch.equal(found[name], plain[name]) for name in plain if "z" not in site and "pattern" not in site)
        assert all(torch.allclose(found[name], plain[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize("name", ["resid_post", "z", SITE, "blocks.1.attn.hook_z"])
@pytest.mark.parametrize(("positions", "changed"), [("last", [5, 1, 3]), (0, [0, 0, 0])])
def test_only_that_token_changes(lm, name, positions, changed):
    batch = lm.pad(ROWS, side="left")
    before = lm.run_with_cache(batch, sites=name, positions="all")[name]
    with lm.hooks({name: lambda x: x.add_(1)}, positions=positions):
        after = lm.run_with_cache(batch, sites=name, positions="all")[name]
    if name in ("resid_post", "z"):
        before, after = before[:, 0], after[:, 0]
    for row, column in enumerate(changed):
        torch.testing.assert_close(after[row, column], before[row, column] + 1)
        kept = [i for i in range(6) if i != column]
        assert torch.equal(after[row, kept], before[row, kept])


def test_in_generation_the_last_token_is_that_of_each_pass_and_an_index_counts_cached_tokens(lm):
    """Greedy text with edits, token by token with a cache, is that of whole passes over the growing text."""
    prompts = ["Old Tamsin keeps", "The bell"]
    rows = lm.encode(prompts)

    def uncached(edit, at):
        texts = []
        for row in rows:
            ids = list(row)
            for _ in range(4):
                with lm.hooks({SITE: edit}, positions=at(row, ids)):
                    ids.append(int(lm.logits(lm.pad([ids])).argmax()))
            texts.append(lm.tokenizer.decode(ids[len(row) :], clean_up_tokenization_spaces=False))
        return texts

    def swap(value):
        return value.flip(-1)

    for positions, at in (
        ("last", lambda row, ids: list(range(len(row) - 1, len(ids)))),
        ([0, 4], lambda row, ids: [p for p in (0, 4) if p < len(ids)]),
    ):
        with lm.hooks({SITE: swap}, positions=positions):
            texts = lm.generate(prompts, new_tokens=4, greedy=True)
        assert texts == uncached(swap, at)


def test_scores_are_edited_on_the_answer_too(tiny_lm):
    plain = tiny_lm.log_probs("The cat is", ["called Pepper", "a"])
    with tiny_lm.hooks({"resid_post": lambda x: x.flip(-1)}, positions="last"):
        edited = tiny_lm.log_probs("The cat is", ["called Pepper", "a"])
        alone = tiny_lm.log_probs("The cat is", ["a"])
    assert (plain - edited).abs().min() > 1e-3
    torch.testing.assert_close(edited[1:], alone)


def test_several_edits_act_in_order_and_their_positions_do_not_mix(tiny_lm):
    batch = tiny_lm.pad(ROWS)
    with tiny_lm.hooks({SITE: torch.zeros_like}, positions=0), tiny_lm.hooks({SITE: lambda x: x + 1}, positions=[0, 1]):
        found = tiny_lm.run_with_cache(batch, sites=SITE, positions="all")[SITE]
    plain = tiny_lm.run_with_cache(batch, sites=SITE, positions="all")[SITE]
    assert torch.equal(found[:, 0], torch.ones_like(found[:, 0]))
    torch.testing.assert_close(found[:, 1], plain[:, 1] + 1)
    assert torch.equal(found[:, 2:], plain[:, 2:])


def test_a_pass_inside_an_edit_does_not_move_the_outer_one(tiny_lm):
    batch = tiny_lm.pad(ROWS)
    depth = []

    def edit(value):
        if not depth:
            depth.append(1)
            tiny_lm.logits(tiny_lm.pad([[5, 6, 7]]))
        return 0 * value

    with tiny_lm.hooks({SITE: edit}, positions="last"):
        nested = tiny_lm.logits(batch)
    with tiny_lm.hooks({SITE: torch.zeros_like}, positions="last"):
        assert torch.equal(tiny_lm.logits(batch), nested)


def test_gradients_flow_through_an_edit(tiny_lm):
    steer = torch.zeros(tiny_lm.d_model, requires_grad=True)
    with tiny_lm.hooks({SITE: lambda x: x + steer}, positions="last"):
        tiny_lm.logits(tiny_lm.pad(ROWS), grad=True).logsumexp(-1).sum().backward()
    assert steer.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("positions", "edit", "message"),
    [
        ("mean", torch.zeros_like, "cannot edit positions 'mean'"),
        ("first", torch.zeros_like, "cannot edit positions 'first'"),
        (3, torch.zeros_like, "position 3 is outside row 1, which has 2 tokens"),
        ([], torch.zeros_like, "positions is empty"),
        ("last", lambda x: x[:, :4], r"returned shape \(3, 4\), expected \(3, 32\)"),
        ("last", lambda x: 1 / 0, "zero"),
    ],
)
def test_what_cannot_be_edited_is_refused_and_hooks_come_off(lm, positions, edit, message):
    batch, before = lm.pad(ROWS), count_hooks(lm.model)
    plain = lm.logits(batch)
    with pytest.raises((ValueError, ZeroDivisionError), match=message), lm.hooks({SITE: edit}, positions=positions):
        lm.logits(batch)
    assert count_hooks(lm.model) == before
    assert torch.equal(lm.logits(batch), plain)


def test_an_edit_that_never_acted_is_an_error_at_the_end(tiny_lm):
    with (
        pytest.raises(ValueError, match=f"the edit of {SITE} never acted: no row of any pass had positions 99"),
        tiny_lm.hooks({SITE: torch.zeros_like}, positions=99),
    ):
        tiny_lm.generate("Old Tamsin", new_tokens=3)


def test_passes_that_do_not_know_the_padding_are_refused(tiny_lm):
    with (
        pytest.raises(ValueError, match="acts in passes of HookedLM only"),
        tiny_lm.hooks({SITE: torch.zeros_like}, positions="last"),
    ):
        tiny_lm.model(torch.tensor([[5, 6]]))


def test_edits_travel_to_a_remote_model(tiny_model_folder, tiny_lm):
    pytest.importorskip("nnsight")
    remote = load_model(tiny_model_folder, backend="nnsight", remote="local")
    found = []
    for model in (remote, tiny_lm):
        batch = model.pad(ROWS, side="left")
        with model.hooks({SITE: lambda x: 0.5 * x}, positions="last"):
            found.append((model.run_with_cache(batch, sites=SITE, positions="all")[SITE], model.logits(batch)))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)

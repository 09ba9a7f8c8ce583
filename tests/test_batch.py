"""Batches: positions are counted on each row's own tokens, so padding never matters."""

import pytest
import torch

from elm_interp.data import bucketed
from elm_interp.models import Batch, pick
from elm_interp.models.batch import pad, real_tokens

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
POSITIONS = ["last", "mean", "all", 0, 2, -1, -3, [0, -1], [1, 2]]


def read(lm, batch, positions):
    return lm.run_with_cache(batch, sites=["resid_post", "attn_out"], positions=positions)["resid_post"]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_left_padded_equals_right_padded_equals_single(tiny_lm, positions):
    right = read(tiny_lm, tiny_lm.pad(ROWS), positions)
    left = read(tiny_lm, tiny_lm.pad(ROWS, side="left"), positions)
    torch.testing.assert_close(left, right)
    for row, ids in enumerate(ROWS):
        single = read(tiny_lm, tiny_lm.pad([ids]), positions)[0]
        found = right[row, :, : len(ids)] if positions == "all" else right[row]
        torch.testing.assert_close(found, single)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_do_not_depend_on_the_padding(tiny_lm, side):
    batched = tiny_lm.logits(tiny_lm.pad(ROWS, side=side), positions="all")
    for row, ids in enumerate(ROWS):
        torch.testing.assert_close(batched[row, : len(ids)], tiny_lm.logits(tiny_lm.pad([ids]), positions="all")[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_pick_reads_the_tokens_that_it_names(side):
    batch = pad(ROWS, 0, side=side)
    values = batch.input_ids[..., None].float()

    def picked(positions):
        return pick(values, batch.attention_mask, positions)[..., 0].tolist()

    assert picked("last") == [10, 13, 17]
    assert picked("mean") == pytest.approx([7.5, 12, 15.5])
    assert picked("all") == [[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0], [14, 15, 16, 17, 0, 0]]
    assert picked(-2) == [9, 12, 16]
    assert picked([0, -1]) == [[5, 10], [11, 13], [14, 17]]


def test_a_position_outside_a_row_is_refused_by_row():
    batch = pad(ROWS, 0)
    for position in (4, -4):
        with pytest.raises(ValueError, match=f"position {position} is outside row 1, which has 3 tokens"):
            pick(batch.input_ids[..., None], batch.attention_mask, [0, position])


@pytest.mark.parametrize(("positions", "message"), [("first", "unknown positions 'first'"), ([], "positions is empty")])
def test_positions_that_mean_nothing_are_refused(positions, message):
    batch = pad(ROWS, 0)
    with pytest.raises(ValueError, match=message):
        pick(batch.input_ids[..., None], batch.attention_mask, positions)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2]], [[1]], "one shape"),
        ([[1, 2]], [[0, 0]], "every row at least one token"),
        ([[1, 2, 3]], [[1, 0, 1]], "has a hole"),
    ],
)
def test_a_mask_that_is_not_one_run_of_tokens_is_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        Batch(torch.tensor(ids), torch.tensor(mask))


def test_an_empty_text_is_refused(tiny_lm):
    with pytest.raises(ValueError, match="is a text empty"):
        tiny_lm.tokenize(["lamp", ""])


def test_real_tokens_mark_left_aligned_rows():
    mask = pad([[1, 2, 3], [4]], 0, side="left").attention_mask
    assert real_tokens(mask).tolist() == [[True, True, True], [True, False, False]]


def test_buckets_hold_every_row_once_within_the_token_limit():
    lengths = [3, 50, 7, 7, 120, 9, 1]
    batches = bucketed(lengths, max_tokens=60, max_rows=3)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 60 for batch in batches)
    assert max(map(len, batches)) <= 3

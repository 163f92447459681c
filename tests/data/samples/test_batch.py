"""A micro-batch says what is predicted from what, what counts, and where documents begin."""

import dataclasses

import numpy as np
import pytest
import torch

from megascratch.config.errors import UserError
from megascratch.data.samples.batch import collate

EOD = 9


def one(tokens, seq_length=8, **flags):
    """The rows of a batch of one sample."""
    batch = collate([np.array(tokens, dtype=np.int64)], [0], seq_length, EOD, **flags)
    rows = ("ids", "labels", "loss_mask", "positions", "real", "document_starts")
    return {
        name: None if getattr(batch, name) is None else getattr(batch, name)[0].tolist()
        for name in rows
    }


def test_labels_are_the_next_tokens():
    row = one([1, 2, 3, 4, 5], 4)
    assert (row["ids"], row["labels"], row["loss_mask"]) == (
        [1, 2, 3, 4],
        [2, 3, 4, 5],
        [1, 1, 1, 1],
    )
    assert (row["positions"], row["document_starts"]) == ([0, 1, 2, 3], None)
    assert row["real"] == [True] * 4


def test_a_short_sample_is_padded_with_zeros_that_do_not_count():
    row = one([1, 2, 3], 5)
    assert (row["ids"], row["labels"]) == ([1, 2, 3, 0, 0], [2, 3, 0, 0, 0])
    assert row["loss_mask"] == [1, 1, 0, 0, 0]
    assert row["real"] == [True, True, True, False, False], "the last token is read, not learned"


@pytest.mark.parametrize("tokens", [[], [7]])
def test_a_sample_without_a_label_does_not_count_at_all(tokens):
    assert one(tokens, 3)["loss_mask"] == [0, 0, 0]


#        tokens                   positions            where the document begins
CASES = [
    ([1, 2, 9, 3, 4, 9, 5, 6, 7], [0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 3, 3, 3, 6, 6]),
    ([9, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 1, 1, 1]),
    ([9, 9, 1, 9, 9, 9, 2, 9, 3], [0, 0, 0, 1, 0, 0, 0, 1], [0, 1, 2, 2, 4, 5, 6, 6]),
    ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("tokens", "positions", "starts"), CASES)
def test_a_document_begins_behind_the_end_of_the_last_one(tokens, positions, starts):
    row = one(tokens, reset_position_ids=True, reset_attention_mask=True)
    assert (row["positions"], row["document_starts"]) == (positions, starts)
    assert one(tokens, reset_attention_mask=True)["positions"] == list(range(8))


def test_eod_mask_loss_leaves_out_what_an_end_of_document_predicts():
    assert one([1, 2, 9, 3, 9, 5], 5)["loss_mask"] == [1, 1, 1, 1, 1]
    assert one([1, 2, 9, 3, 9, 5], 5, eod_mask_loss=True)["loss_mask"] == [1, 1, 0, 1, 0]


def test_padding_is_no_end_of_document_even_where_its_id_is():
    batch = collate(
        [np.array([1, 2, 3])], [0], 5, 0, reset_position_ids=True, reset_attention_mask=True
    )
    assert batch.document_starts.tolist() == [[0] * 5] and batch.positions.tolist() == [
        [0, 1, 2, 3, 4]
    ]


@pytest.mark.parametrize("flag", ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"])
def test_boundaries_need_an_end_of_document(flag):
    with pytest.raises(UserError, match="need an end-of-document token"):
        collate([np.array([1, 2])], [0], 1, None, **{flag: True})


def test_a_sample_longer_than_the_sequence_is_our_bug():
    with pytest.raises(ValueError, match="sample has 4 tokens, seq_length 2 takes at most 3"):
        one([1, 2, 3, 4], 2)


def test_dtypes_shapes_and_moving():
    batch = collate([np.array([1, 2, 3])] * 2, [7, 8], 2, EOD, reset_attention_mask=True)
    assert batch.samples.tolist() == [7, 8]
    tensors = {name: x for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    special = {"loss_mask": torch.float32, "real": torch.bool}
    for name, tensor in tensors.items():
        assert tensor.dtype == special.get(name, torch.int64)
        assert tensor.shape == ((2,) if name in ("samples", "sample_positions") else (2, 2))
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert (moved.sample_length, moved.in_order) == (2, True)
    assert batch.sample_positions.tolist() == [0, 1]
    without = dataclasses.replace(batch, document_starts=None)
    assert without.to("cpu").document_starts is None

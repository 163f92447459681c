"""A step reads the same samples whatever the layout, each once, dealt as Megatron deals them."""

import numpy as np
import pytest

from megascratch.data.samples.microbatches import microbatches, sample_numbers


class Numbers:
    """Sample i is (i, i + 1, i + 2); 100 of them, then nothing."""

    def __len__(self):
        return 100

    def __getitem__(self, number):
        return np.arange(number, number + 3) if number < len(self) else np.empty(0, dtype=np.int64)


def test_the_deal_is_this_picture():
    """Two ranks, micro-batch size 2, two micro-batches, 40 samples consumed."""
    deal = [[list(sample_numbers(40, k, 2, rank, 2)) for k in range(2)] for rank in range(2)]
    assert deal == [[[40, 41], [44, 45]], [[42, 43], [46, 47]]]


@pytest.mark.parametrize(
    ("micro", "count", "dp"), [(12, 1, 1), (1, 12, 1), (1, 1, 12), (2, 3, 2), (1, 3, 4)]
)
@pytest.mark.parametrize("consumed", [0, 12, 17])
def test_a_steps_samples_depend_on_consumed_and_the_global_batch_alone(micro, count, dp, consumed):
    batches = [
        batch
        for rank in range(dp)
        for batch in microbatches(Numbers(), consumed, micro, count, rank, dp, seq_length=2)
    ]

    numbers = sorted(number for batch in batches for number in batch.samples.tolist())
    assert numbers == list(range(consumed, consumed + 12))
    for batch in batches:
        assert batch.ids.tolist() == [[number, number + 1] for number in batch.samples.tolist()]


def test_behind_the_end_of_a_finite_set_all_is_padding():
    first, second = microbatches(Numbers(), 98, 2, 2, 0, 1, seq_length=2)
    assert first.loss_mask.tolist() == [[1, 1], [1, 1]]
    assert second.loss_mask.tolist() == [[0, 0], [0, 0]] and second.samples.tolist() == [100, 101]


def test_the_flags_reach_every_batch():
    flags = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
    (batch,) = microbatches(Numbers(), 5, 1, 1, 0, 1, seq_length=2, eod=5, **flags)
    read = (batch.positions.tolist(), batch.document_starts.tolist(), batch.loss_mask.tolist())
    assert read == ([[0, 0]], [[0, 1]], [[0, 1]])

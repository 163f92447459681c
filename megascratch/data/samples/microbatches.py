"""Deals the samples of one step to data-parallel ranks and micro-batches, given the samples consumed so far.

A step takes samples `consumed` ... `consumed + global batch - 1`, whatever the layout (law 4). They are dealt as by
Megatron's sampler, here for 2 ranks, micro-batch size 2 and 2 micro-batches, from sample 0:

             micro-batch 0   micro-batch 1
    rank 0       0 1             4 5
    rank 1       2 3             6 7
"""

import numpy as np

from megascratch.data.samples.batch import Batch, collate
from megascratch.data.samples.dataset import Dataset


def sample_numbers(
    consumed: int, micro_batch: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> range:
    """Global numbers of the samples that a rank reads in one micro-batch of a step."""
    first = consumed + (micro_batch * dp_size + dp_rank) * micro_batch_size
    return range(first, first + micro_batch_size)


def microbatches(
    dataset: Dataset,
    consumed: int,
    micro_batch_size: int,
    num_microbatches: int,
    dp_rank: int,
    dp_size: int,
    *,
    seq_length: int,
    eod: int | None = None,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    eod_mask_loss: bool = False,
) -> list[Batch]:
    """This rank's micro-batches of one step. Past the end of a finite dataset, samples are all padding."""

    def batch(micro_batch: int) -> Batch:
        numbers = sample_numbers(consumed, micro_batch, micro_batch_size, dp_rank, dp_size)
        samples = [np.asarray(dataset[number]) for number in numbers]
        return collate(
            samples,
            numbers,
            seq_length,
            eod,
            reset_position_ids=reset_position_ids,
            reset_attention_mask=reset_attention_mask,
            eod_mask_loss=eod_mask_loss,
        )

    return [batch(micro_batch) for micro_batch in range(num_microbatches)]

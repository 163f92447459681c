"""Initial weights as a function of seed, name and global index: fair, and the same for a part as for the whole."""

import hashlib

import numpy as np
import pytest
import torch

from megascratch.parallel.initial_values import fill_all, normal_blocks
from megascratch.parallel.shard import Box
from tests.support import initial_values as law


def test_each_value_is_that_of_the_definition():
    law.each_value_is_that_of_the_definition()


def test_any_box_is_the_slice_of_the_whole():
    law.any_box_is_the_slice_of_the_whole()


def test_no_two_blocks_are_alike():
    law.no_two_blocks_are_alike()


def test_values_do_not_depend_on_the_number_of_threads():
    law.values_do_not_depend_on_the_number_of_threads()


def test_values_depend_on_seed_and_name():
    law.values_depend_on_seed_and_name()


def test_values_are_standard_normal():
    values = law.drawn(3, "layers.0.w", (500, 400))
    assert abs(values.mean()) < 5 / 447 and abs(values.std() - 1) < 5 / 632
    assert abs((np.abs(values) < 1).mean() - 0.6827) < 0.006


def test_a_run_starts_from_these_values():
    """Changing them makes every run another one: a line in the changelog, and the digest here."""
    values = law.drawn(1234, "layers.0.mlp.fc1.weight", (512, 384))
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:16] == "9224c65602d17cfd"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_a_value_is_rounded_once_from_mean_and_std_in_fp64(dtype):
    shape = (300, 300)
    box = Box((10, 250), (290, 300))
    weight = torch.nn.Parameter(torch.zeros(300, 60, dtype=dtype))
    view = weight.detach()[5:285, 7:57]
    fill_all(normal_blocks(1, "w", shape, box, view, std=0.02, mean=1.0))
    exact = law.written_out(1, "w", shape)[box.slices].astype(np.float64) * 0.02 + 1.0
    assert torch.equal(weight.detach()[5:285, 7:57], torch.from_numpy(exact).to(dtype))
    assert (weight[:5] == 0).all() and (weight[:, 57:] == 0).all()  # what is not in the box


def test_a_rank_draws_what_it_holds():
    """Half of the columns: half of the blocks; the last rows of a block that it does not need are not drawn."""
    shape = (1000, 2048)
    drawn = []
    for box in (Box((0, 0), shape), Box((0, 1024), shape), Box((0, 0), (100, 2048))):
        blocks = normal_blocks(1, "w", shape, box, torch.empty(box.shape))
        drawn.append(sum(rows * columns for rows, columns in (block.shape for block in blocks)))
    assert drawn == [1000 * 2048, 1000 * 1024, 100 * 2048]

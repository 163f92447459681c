"""Breaks of initial weights that are the same on every layout, each with the law that must notice."""

from collections.abc import Callable
from typing import Any

from megascratch.parallel import initial_values
from megascratch.parallel.initial_values import normal_blocks
from tests.support.initial_values import (
    any_box_is_the_slice_of_the_whole,
    no_two_blocks_are_alike,
    values_depend_on_seed_and_name,
    values_do_not_depend_on_the_number_of_threads,
)


def without_the_column(key, counter, *rest):
    return plain_block(key, (0, *counter[1:]), *rest)


def without_the_row(key, counter, *rest):
    return plain_block(key, (counter[0], 0, counter[2]), *rest)


def without_the_matrix(key, counter, *rest):
    return plain_block(key, (*counter[:2], 0), *rest)


def with_the_previous_counter(blocks):
    """On each thread, a block is drawn with the counter of the block that the thread drew before."""
    previous = blocks[-1]
    for block in blocks:
        block._replace(counter=previous.counter).fill()
        previous = block


def counted_from_the_first_column(matrix, box):
    """Blocks that begin where the box does, as if the rank's part were the whole."""
    first = box.start[1]
    return plain_cuts((matrix[0], matrix[1] - first), box.moved((0, -first)))


def without_the_seed(seed, *rest):
    return normal_blocks(0, *rest)


def without_the_name(seed, name, *rest):
    return normal_blocks(seed, "", *rest)


plain_block = initial_values.NormalBlock
plain_cuts = initial_values._cuts

INITIAL: dict[str, tuple[Callable[[], None], list[tuple[Any, str, Any]]]] = {
    "the number of a block of initial weights ignores its column": (
        no_two_blocks_are_alike,
        [(initial_values, "NormalBlock", without_the_column)],
    ),
    "the number of a block of initial weights ignores its row": (
        no_two_blocks_are_alike,
        [(initial_values, "NormalBlock", without_the_row)],
    ),
    "all matrices of a stack have the same initial weights": (
        no_two_blocks_are_alike,
        [(initial_values, "NormalBlock", without_the_matrix)],
    ),
    "a thread draws a block with the counter of another": (
        values_do_not_depend_on_the_number_of_threads,
        [(initial_values, "_fill", with_the_previous_counter)],
    ),
    "blocks of initial weights counted from the rank's first column": (
        any_box_is_the_slice_of_the_whole,
        [(initial_values, "_cuts", counted_from_the_first_column)],
    ),
    "initial weights without the seed in their key": (
        values_depend_on_seed_and_name,
        [(initial_values, "normal_blocks", without_the_seed)],
    ),
    "initial weights without the name in their key": (
        values_depend_on_seed_and_name,
        [(initial_values, "normal_blocks", without_the_name)],
    ),
}

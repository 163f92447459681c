"""The laws of initial weights, each an assertion about the functions of `parallel/initial_values.py`."""

import hashlib

import numpy as np
import torch

from megascratch.parallel import initial_values
from megascratch.parallel.shard import Box

SHAPES = [(7, 5), (300, 700), (3, 70_000), (40_000,), (40_000, 1), (2, 3, 40), (3, 200, 300), ()]


def written_out(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The definition in the docstring, block by block in the simplest way: float32 N(0, 1) of that shape."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    rows, columns = (*shape, 1, 1)[:2] if len(shape) < 2 else shape[-2:]
    width = min(columns, 256)
    height = 32_768 // width
    stack = np.empty((int(np.prod(shape[:-2])), rows, columns), np.float32)
    for matrix in range(len(stack)):
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                place = (matrix << 128) + (row // height << 64) + column // width
                stream = np.random.Generator(np.random.Philox(key=key, counter=place << 64))
                part = stack[matrix, row : row + height, column : column + width]
                part[:] = stream.standard_normal(part.shape, np.float32)
    return stack.reshape(shape)


def drawn(seed: int, name: str, shape: tuple[int, ...], box: Box | None = None) -> np.ndarray:
    """What a rank draws that holds the box, or all of it."""
    box = box or Box((0,) * len(shape), shape)
    out = torch.full(box.shape, torch.nan)
    initial_values.fill_all(initial_values.normal_blocks(seed, name, shape, box, out))
    return out.numpy()


def each_value_is_that_of_the_definition() -> None:
    for shape in SHAPES:
        assert np.array_equal(drawn(1, "w", shape), written_out(1, "w", shape)), shape


def any_box_is_the_slice_of_the_whole() -> None:
    for shape in SHAPES:
        whole = drawn(1, "w", shape)
        stream = np.random.default_rng(0)
        for _ in range(10):
            start = tuple(int(stream.integers(size)) for size in shape)
            stop = []
            for first, size in zip(start, shape, strict=True):
                stop.append(int(stream.integers(first, size)) + 1)
            box = Box(start, tuple(stop))
            assert np.array_equal(drawn(1, "w", shape, box), whole[box.slices]), (shape, box)


def no_two_blocks_are_alike() -> None:
    for shape in ((3, 200, 300), (4, 1 << 16)):
        values = drawn(1, "w", shape).ravel()
        assert len(np.unique(values)) > 0.98 * values.size, shape  # float32 repeats a few by chance


def values_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(drawn(1, "w", (300, 700)))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found), "the values depend on the number of threads"


def values_depend_on_seed_and_name() -> None:
    """Correlation of 200,000 pairs: 5 sigma is 0.011."""
    base = drawn(3, "layers.0.w", (500, 400)).ravel()
    for seed, name in ((4, "layers.0.w"), (3, "layers.1.w")):
        other = drawn(seed, name, (500, 400)).ravel()
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.011, (seed, name)

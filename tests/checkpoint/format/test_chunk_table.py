"""Of a table of chunks only what fills every tensor and every file exactly once is accepted."""

import random

import numpy as np
import pytest
import torch

from megascratch.checkpoint.format import chunk_table
from megascratch.checkpoint.format.chunk_table import (
    U64,
    ChunkRows,
    DataFile,
    check_coverage,
    check_files_are_full,
    check_rows,
    decode_files,
    encode_files,
)
from megascratch.parallel.shard import Box
from tests.support import checkpoint_laws
from tests.support.checkpoint_laws import rows_of


def test_only_boxes_that_fill_a_tensor_once_are_accepted():
    checkpoint_laws.only_boxes_that_fill_a_tensor_once_are_accepted()


def test_boxes_whose_volumes_add_up_are_refused_where_they_overlap():
    checkpoint_laws.boxes_whose_volumes_add_up_are_refused_where_they_overlap()


def test_boxes_with_too_many_corners_are_refused_before_they_take_memory():
    """33 dims, all of them split: 2 to the power of 34 corners."""
    boxes = [Box((0,) * 33, (1,) * 33), Box((1,) * 33, (2,) * 33)]
    with pytest.raises(ValueError, match="2 chunks along 33 dims, which is too many"):
        check_coverage("w", (2,) * 33, rows_of(boxes, 33))


def test_a_tensor_without_elements_has_no_chunk():
    check_coverage("w", (0, 3), rows_of([], 2))
    empty = rows_of([Box((0, 0), (0, 3))], 2)
    with pytest.raises(ValueError, match=r"has a chunk outside of it: \[0:0, 0:3\]"):
        check_rows("w", (0, 3), torch.float32, empty, 1)


def test_files_come_back_from_their_rows():
    files = [DataFile("00000.safetensors", 1 << 40, 64, (1 << 64) - 1), DataFile("a" * 64, 8, 8, 0)]
    assert decode_files(encode_files(files)) == files


@pytest.mark.parametrize("name", ["a" * 65, "", ".a", "a/b", "x.json", "x.bin", "\u00e4"])
def test_a_name_that_a_data_file_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="is not a valid name of a data file"):
        encode_files([DataFile(name, 8, 8, 0)])


def test_a_name_that_two_data_files_have_is_refused():
    with pytest.raises(ValueError, match="two data files have the name x"):
        decode_files(encode_files([DataFile("x", 8, 8, 0)] * 2))


def filled(draw: random.Random) -> tuple[list[DataFile], list[tuple[torch.dtype, ChunkRows]]]:
    """Files that chunks of two tensors fill, the chunks in any order."""
    files, rows = [], {torch.float32: [], torch.uint8: []}
    for number in range(draw.randrange(1, 5)):
        header = end = draw.randrange(64)
        for _ in range(draw.randrange(4)):
            dtype = draw.choice(list(rows))
            size = draw.randrange(1, 5)
            rows[dtype].append((number, end, 0, 0, size))
            end += size * dtype.itemsize
        files.append(DataFile(f"{number}.safetensors", end, header, 0))
    tensors = []
    for dtype, own in rows.items():
        draw.shuffle(own)
        tensors.append((dtype, ChunkRows(np.array(own, U64).reshape(len(own), 5))))
    return files, tensors


@pytest.mark.parametrize("seed", range(20))
def test_files_are_full_until_one_number_differs(seed):
    draw = random.Random(seed)
    files, tensors = filled(draw)
    check_files_are_full(files, tensors)
    for _, rows in tensors:
        for row in range(len(rows)):
            for column in (0, 1, 4):
                if column == 0 and len(files) == 1:
                    continue
                numbers = rows.numbers.copy()
                plain = rows.numbers[row, column]
                rows.numbers[row, column] = (plain + U64.type(1)) % (
                    U64.type(len(files)) if column == 0 else U64.type(1 << 63)
                )
                with pytest.raises(ValueError, match=r"chunk at byte|chunks end at byte"):
                    check_files_are_full(files, tensors)
                rows.numbers[:] = numbers
    for number, file in enumerate(files):
        longer = [*files]
        longer[number] = file._replace(bytes=file.bytes + 1)
        with pytest.raises(ValueError, match=f"{file.name} has {file.bytes + 1:,} bytes"):
            check_files_are_full(longer, tensors)


def test_many_chunks_take_little_memory(monkeypatch):
    """A limit of corners, not of chunks: a hundred thousand along one dim are proved."""
    monkeypatch.setattr(chunk_table, "MOST_CORNERS", 1 << 18)
    starts = np.arange(100_000, dtype=U64)
    zeros = np.zeros_like(starts)
    rows = ChunkRows(np.stack([zeros, zeros, zeros, starts, starts + U64.type(1)], 1))
    check_coverage("w", (100_000,), rows)
    with pytest.raises(ValueError, match="hold 100,000 of its 100,001 elements"):
        check_coverage("w", (100_001,), rows)
    rows.starts[-1] -= U64.type(1)
    rows.stops[-1] -= U64.type(1)
    with pytest.raises(ValueError, match=r"tensor w has chunks that overlap$"):
        check_coverage("w", (100_000,), rows)

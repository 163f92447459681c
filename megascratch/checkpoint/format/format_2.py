"""Reads manifests of format 2, which older versions wrote: the chunks of each tensor are in `manifest.json` itself.

    {"format": 2, "step": 123, "state": {...},
     "files": {"00003.safetensors": {"bytes": 1048, "header_bytes": 1024, "header_xxh3_64": "16 hex digits"}},
     "tensors": {name: {"shape": [4, 6], "dtype": "float32",
                        "chunks": [{"file": "00003.safetensors", "offset": 1024,
                                    "start": [0, 0], "stop": [1, 6], "xxh3_64": "..."}, ...]}}}

What it says is written down as format 3 in memory, so that no reader needs to know of it.
"""

from typing import Any

import numpy as np

from megascratch.checkpoint.format.chunk_table import (
    DTYPES,
    MOST_FILE_BYTES,
    U64,
    WHERE,
    ChunkRows,
    DataFile,
    require_file_name,
)
from megascratch.checkpoint.format.manifest import (
    Manifest,
    TensorChunks,
    contents_of,
    parse,
    require_checksum,
    require_number,
    require_shape,
    unsigned,
)
from megascratch.config.printable import shown


def parse_format_2(body: dict[str, Any]) -> Manifest:
    """The manifest of a body of format 2, with its table of chunks.

    Raises: ValueError, KeyError, TypeError or UserError if it is not valid.
    """
    files: list[DataFile] = []
    numbers = {}  # name of a file -> its number
    for name, record in body["files"].items():
        require_file_name(name)
        numbers[name] = len(files)
        files.append(
            DataFile(
                name,
                _small(record["bytes"]),
                _small(record["header_bytes"]),
                require_checksum(record["header_xxh3_64"]),
            )
        )
    tensors = {}
    for name, record in body["tensors"].items():
        dtype = DTYPES[record["dtype"]]
        shape = require_shape(name, record["shape"], dtype)
        rows = _rows(name, len(shape), record["chunks"], numbers)
        tensors[name] = TensorChunks(shape, dtype, rows)
    contents = contents_of(body["step"], body["state"], files, tensors, "format2.bin")
    return parse(unsigned(contents.manifest), contents.table)


def _rows(name: str, dims: int, chunks: list[dict[str, Any]], numbers: dict[str, int]) -> ChunkRows:
    rows = []
    for chunk in chunks:
        start = tuple(map(_small, chunk["start"]))
        stop = tuple(map(_small, chunk["stop"]))
        if len(start) != dims or len(stop) != dims:
            raise ValueError(
                f"a chunk of {shown(name)} from {list(start)} to {list(stop)} is not a box of a tensor with {dims} dims"
            )
        if chunk["file"] not in numbers:
            raise ValueError(
                f"a chunk is stored in {shown(chunk['file'])}, which is not among the files"
            )
        checksum = require_checksum(chunk["xxh3_64"])
        rows.append((numbers[chunk["file"]], _small(chunk["offset"]), checksum, *start, *stop))
    return ChunkRows(np.array(rows, U64).reshape(len(rows), WHERE + 2 * dims))


def _small(value: Any) -> int:
    """A size, an offset or an index. Raises: ValueError."""
    if require_number(value) > MOST_FILE_BYTES:
        raise ValueError(f"{shown(value, 40)} is larger than any file")
    return int(value)

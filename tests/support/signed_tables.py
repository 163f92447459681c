"""The table of chunks of a step, changed and signed anew: what a hostile or careless program would write."""

import json
from collections.abc import Callable

import numpy as np

from megascratch.checkpoint.format.chunk_table import FILE_ROW, U64
from megascratch.checkpoint.format.io import checksum
from megascratch.checkpoint.format.manifest import signed

Change = Callable[[np.ndarray, dict[str, np.ndarray]], None]
"""Changes the rows of the data files, and of each tensor its rows of numbers, in place."""


def changed_table(manifest: bytes, table: bytes, change: Change) -> tuple[bytes, bytes]:
    """The manifest and the table after a change, with checksums and sizes that are those of the new rows."""
    body = json.loads(manifest)["body"]
    content = bytearray(table)
    number = body["files"]["number"]
    files = np.frombuffer(content, FILE_ROW, number)
    rows = {}
    end = files.nbytes
    for name, entry in sorted(body["tensors"].items()):
        width = 3 + 2 * len(entry["shape"])
        numbers = np.frombuffer(content, U64, entry["chunks"] * width, end)
        rows[name] = numbers.reshape(-1, width)
        end += numbers.nbytes
    change(files, rows)
    body["files"]["bytes"] = sum(files["bytes"].tolist())
    body["files"]["xxh3_64"] = f"{checksum(files.tobytes()):016x}"
    for name, entry in body["tensors"].items():
        entry["xxh3_64"] = f"{checksum(rows[name].tobytes()):016x}"
    return signed(json.dumps(body).encode()), bytes(content)

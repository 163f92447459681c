"""One safetensors file: tensors in one at a time, their checksums out, and the reverse.

Format: 8 bytes little-endian length of the header, the header (JSON, `{key: {dtype, shape, data_offsets}}`, padded with
spaces to a multiple of 8), then the bytes. Written here rather than by the library, so that only one tensor at a time
needs to be in this machine's memory; read by the library, which maps the file.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megascratch.config.errors import UserError

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip


class Slot(NamedTuple):
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]


def write(path: Path, slots: Mapping[str, Slot]) -> dict[str, int]:
    """Writes the tensors and forces them to the disk; crc32 of each one's bytes by key."""
    order = sorted(slots, key=lambda key: -slots[key].dtype.itemsize)  # so that each lies at a multiple of its itemsize
    checksums = {}
    with path.open("xb") as file:
        file.write(_header({key: slots[key] for key in order}))
        for key in order:
            raw = raw_bytes(slots[key].fetch())
            checksums[key] = zlib.crc32(raw)
            file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def _header(slots: Mapping[str, Slot]) -> bytes:
    entries, offset = {}, 0
    for key, (shape, dtype, _) in slots.items():
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        entries[key] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one element counts as contiguous whatever its stride says
    return flat.view(torch.uint8).numpy().data


def read(path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype, crc32: int) -> Tensor:
    """A tensor of a file, mapped, not copied. Raises: UserError where it is missing, of another shape, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or missing: {str(error).splitlines()[0]}") from error
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise UserError(f"{path} is damaged: tensor {key} is {list(tensor.shape)} {tensor.dtype}, "
                        f"the manifest says {list(shape)} {dtype}")
    if zlib.crc32(raw_bytes(tensor)) != crc32:
        raise UserError(f"{path} is damaged: the bytes of tensor {key} do not fit their crc32")
    return tensor

"""The format of `manifest.json`, the table of contents of a checkpoint: writes, parses and checks it.

    {"sha256": "hex digest of the bytes of body",
    "body": {"format": 2,
             "step": 123,
             "state": {...},                              scalars and settings, any JSON
             "files": {"00003.safetensors": {"bytes": 1048, "header_bytes": 1024, "header_xxh3_64": "16 hex digits"}},
             "tensors": {name: {"shape": [4, 6],          of the full tensor, without padding
                                "dtype": "float32",
                                "chunks": [{"file": "00003.safetensors", "offset": 1024,      of the first byte
                                            "start": [0, 0], "stop": [1, 6], "xxh3_64": "..."}, ...]}}}}

The chunks of a tensor are boxes that fill it exactly once. The header and the chunks of a file fill the file exactly
once, so every byte of a checkpoint has a checksum. The manifest names no ranks and no layout: a reader takes the chunks
that overlap the boxes it wants.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from megascratch.config.json_record import parse_json
from megascratch.config.printable import shown
from megascratch.config.saved import require_valid_state
from megascratch.parallel.shard import Box

FILE = "manifest.json"
STEP_NAME = re.compile(r"step_(\d{8,})")  # of the step folder
FORMAT = 2
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
    )
}
MOST_CHUNK_BYTES = 1 << 28
"""A larger chunk is refused, because a reader holds a chunk in memory."""

_HEAD = b'{"sha256": "'
_MIDDLE = b'",\n"body": '
_TAIL = b"}\n"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{16}")


class StoredBox(NamedTuple):
    """One box of a tensor, and where its bytes are stored."""

    file: str  # inside the step folder
    offset: int  # of the first byte in the file
    box: Box  # position in the full tensor
    xxh3_64: str


@dataclass(frozen=True)
class TensorEntry:
    """A tensor and the chunks that fill it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[StoredBox, ...]

    def chunk_bytes(self, chunk: StoredBox) -> int:
        return volume(chunk.box) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DataFile(NamedTuple):
    """A file of chunks; its safetensors header ends where the first chunk begins."""

    bytes: int
    header_bytes: int
    header_xxh3_64: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    state: dict[str, Any]
    files: dict[str, DataFile]
    tensors: dict[str, TensorEntry]

    @property
    def nbytes(self) -> int:
        """The size of all data files together."""
        return sum(file.bytes for file in self.files.values())


def to_text(manifest: Manifest) -> bytes:
    """The content of manifest.json. Raises: TypeError for a state that is not JSON."""
    tensors = {}
    for name, whole in manifest.tensors.items():
        tensors[name] = {
            "shape": list(whole.shape),
            "dtype": str(whole.dtype).removeprefix("torch."),
            "chunks": [_chunk_record(chunk) for chunk in whole.chunks],
        }
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "state": manifest.state,
        "files": {name: file._asdict() for name, file in manifest.files.items()},
        "tensors": tensors,
    }
    return signed(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def signed(body: bytes) -> bytes:
    """Puts the digest of a body in front of it."""
    return _HEAD + _digest(body) + _MIDDLE + body + _TAIL


def parse(text: bytes) -> Manifest:
    """The reverse of `to_text`. Raises: ValueError, KeyError or TypeError if the text is not a valid manifest."""
    digest_end = len(_HEAD) + 64
    digest = text[len(_HEAD) : digest_end]
    body_text = text[digest_end + len(_MIDDLE) : -len(_TAIL)]
    if text != _HEAD + digest + _MIDDLE + body_text + _TAIL:
        raise ValueError("it is not a manifest file")
    if digest != _digest(body_text):
        raise ValueError("its sha256 does not match its content")
    body = parse_json(body_text)
    if body["format"] != FORMAT:
        raise ValueError(
            f"it has format {shown(body['format'], 40)}, this version reads only format {FORMAT}"
        )
    files = {_file_name(name): _data_file(entry) for name, entry in body["files"].items()}
    tensors = {name: _tensor_entry(name, entry) for name, entry in body["tensors"].items()}
    step = _number(body["step"])
    manifest = Manifest(step, dict(body["state"]), files, tensors)
    require_valid_state(manifest.state)
    check_coverage(manifest)
    return manifest


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _chunk_record(chunk: StoredBox) -> dict[str, Any]:
    return {
        "file": chunk.file,
        "offset": chunk.offset,
        "start": chunk.box.start,
        "stop": chunk.box.stop,
        "xxh3_64": chunk.xxh3_64,
    }


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number, 0 or more")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(map(_number, values))


def _checksum(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is not a checksum")
    return value


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name == FILE:
        raise ValueError(f"{name!r} is not a valid name of a data file")
    return name


def _data_file(record: dict[str, Any]) -> DataFile:
    return DataFile(
        bytes=_number(record["bytes"]),
        header_bytes=_number(record["header_bytes"]),
        header_xxh3_64=_checksum(record["header_xxh3_64"]),
    )


def _tensor_entry(name: str, record: dict[str, Any]) -> TensorEntry:
    whole = TensorEntry(
        shape=_numbers(record["shape"]),
        dtype=DTYPES[record["dtype"]],
        chunks=tuple(map(_stored_box, record["chunks"])),
    )
    for chunk in whole.chunks:
        if whole.chunk_bytes(chunk) > MOST_CHUNK_BYTES:
            box = box_text(chunk.box)
            raise ValueError(
                f"tensor {shown(name)} has a chunk {box} of more than {MOST_CHUNK_BYTES:,} bytes"
            )
    return whole


def _stored_box(record: dict[str, Any]) -> StoredBox:
    start = _numbers(record["start"])
    stop = _numbers(record["stop"])
    if len(start) != len(stop):
        raise ValueError(f"a chunk from {list(start)} to {list(stop)} is not a box")
    return StoredBox(
        file=_file_name(record["file"]),
        offset=_number(record["offset"]),
        box=Box(start, stop),
        xxh3_64=_checksum(record["xxh3_64"]),
    )


def check_coverage(manifest: Manifest) -> None:
    """Raises: ValueError unless the chunks of every tensor are inside it, are disjoint and fill it, and the header and
    the chunks of every file fill the file."""
    for name, whole in manifest.tensors.items():
        boxes = [chunk.box for chunk in whole.chunks]
        for box in boxes:
            if not _inside(box, whole.shape):
                shape = list(whole.shape)
                raise ValueError(
                    f"tensor {shown(name)} of shape {shape} has a chunk outside of it: {box_text(box)}"
                )
        overlap = _first_overlap(boxes)
        if overlap is not None:
            one, other = overlap
            raise ValueError(
                f"tensor {shown(name)} has chunks that overlap: {box_text(one)} and {box_text(other)}"
            )
        filled = sum(volume(box) for box in boxes)
        wanted = math.prod(whole.shape)
        if filled != wanted:
            raise ValueError(
                f"the chunks of tensor {shown(name)} hold {filled:,} of its {wanted:,} elements"
            )
    _require_full_files(manifest)


def _require_full_files(manifest: Manifest) -> None:
    ends = {name: file.header_bytes for name, file in manifest.files.items()}
    for _, whole, chunk in boxes_by_file(manifest.tensors):
        if chunk.file not in ends:
            raise ValueError(f"a chunk is stored in {chunk.file}, which is not among the files")
        end = ends[chunk.file]
        if chunk.offset != end:
            raise ValueError(
                f"{chunk.file} has a chunk at byte {chunk.offset:,}, but the previous one ends at byte {end:,}"
            )
        ends[chunk.file] += whole.chunk_bytes(chunk)
    for name, file in manifest.files.items():
        if ends[name] != file.bytes:
            raise ValueError(
                f"{name} has {file.bytes:,} bytes, its chunks end at byte {ends[name]:,}"
            )


def boxes_by_file(tensors: dict[str, TensorEntry]) -> list[tuple[str, TensorEntry, StoredBox]]:
    """Every chunk with its tensor, file by file from the first byte to the last."""
    found = [(name, whole, chunk) for name, whole in tensors.items() for chunk in whole.chunks]
    return sorted(found, key=lambda item: item[2][:2])


def volume(box: Box) -> int:
    return math.prod(box.shape)


def box_text(box: Box) -> str:
    """Like [0:2, 4:6]."""
    ranges = [f"{start}:{stop}" for start, stop in zip(box.start, box.stop, strict=True)]
    return f"[{', '.join(ranges)}]"


def whole_box(shape: Iterable[int]) -> Box:
    """The box of a full tensor."""
    shape = tuple(shape)
    return Box((0,) * len(shape), shape)


def _inside(box: Box, shape: tuple[int, ...]) -> bool:
    if len(box.start) != len(shape):
        return False
    sides = zip(box.start, box.stop, shape, strict=True)
    return all(0 <= start < stop <= size for start, stop, size in sides)


def _first_overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Sweeps along dim 0: compares a box only with those that do not end before it starts."""
    open_boxes: list[Box] = []
    for box in sorted(boxes):
        open_boxes = [
            other for other in open_boxes if not box.start or other.stop[0] > box.start[0]
        ]
        for other in open_boxes:
            if other.overlap(box) is not None:
                return other, box
        open_boxes.append(box)
    return None

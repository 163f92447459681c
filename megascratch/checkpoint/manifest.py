"""`manifest.json`: the table of contents that makes a folder of safetensors files a checkpoint; pure arithmetic.

    {"sha256": hex digest of the text of "body" (JSON with sorted keys, no spaces, ASCII),
     "body": {"format": 1,
              "step": 123,
              "state": {...},                              scalars and settings, any JSON
              "tensors": {name: {"shape": [4, 6],          of the whole, without padding
                                 "dtype": "float32",
                                 "chunks": [{"file": "00003.safetensors", "key": "17",
                                             "start": [0, 0], "stop": [2, 6], "crc32": 3735928559}, ...]}}}}

The chunks of a tensor are boxes that fill its whole exactly once. No rank, no layout and no file order appears, so
reading is box overlap. The tensor `key` of `file` has the box's shape; crc32 is over its bytes as they lie in the file.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box

FILE = "manifest.json"
FORMAT = 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
}


class Chunk(NamedTuple):
    """One box of a tensor, and where its bytes lie."""

    file: str  # inside the step folder
    key: str  # of the tensor in the file
    box: Box  # place in the whole
    crc32: int


@dataclass(frozen=True)
class Whole:
    """One whole tensor as chunks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Whole]


def read_manifest(step_folder: str | Path) -> Manifest:
    """Reads and checks the table of contents; no tensor is touched.

    Raises: UserError where the folder is no checkpoint, or its manifest is damaged.
    """
    path = Path(step_folder) / FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{step_folder} is not a checkpoint: {FILE} cannot be read ({error.strerror})") from error
    try:
        return parse(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged: {reason}; load another step of the run") from error


def to_text(manifest: Manifest) -> bytes:
    """The content of manifest.json. Raises: TypeError for a state that is not JSON."""
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "state": manifest.state,
        "tensors": {
            name: {
                "shape": list(whole.shape),
                "dtype": str(whole.dtype).removeprefix("torch."),
                "chunks": [_chunk_entry(chunk) for chunk in whole.chunks],
            }
            for name, whole in manifest.tensors.items()
        },
    }
    inner = _canonical(body)
    return f'{{"sha256": "{_digest(inner)}",\n"body": {inner}}}\n'.encode()


def parse(text: bytes) -> Manifest:
    """The reverse of `to_text`. Raises: ValueError, KeyError or TypeError for what is none, says why where it can."""
    record = json.loads(text)
    body = record["body"]
    if record["sha256"] != _digest(_canonical(body)):
        raise ValueError("its sha256 does not fit its content")
    if body["format"] != FORMAT:
        raise ValueError(f"it has format {body['format']}, this version reads format {FORMAT}")
    tensors = {name: _whole(entry) for name, entry in body["tensors"].items()}
    manifest = Manifest(int(body["step"]), dict(body["state"]), tensors)
    require_full_cover(manifest.tensors)
    return manifest


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(entry: dict[str, Any]) -> Whole:
    return Whole(tuple(map(int, entry["shape"])), DTYPES[entry["dtype"]], tuple(map(_chunk, entry["chunks"])))


def _chunk_entry(chunk: Chunk) -> dict[str, Any]:
    return {"file": chunk.file, "key": chunk.key, **chunk.box._asdict(), "crc32": chunk.crc32}


def _chunk(entry: dict[str, Any]) -> Chunk:
    if Path(entry["file"]).name != entry["file"]:
        raise ValueError(f"file name {entry['file']!r} leaves the folder")
    box = Box(tuple(map(int, entry["start"])), tuple(map(int, entry["stop"])))
    if len(box.start) != len(box.stop):
        raise ValueError(f"a chunk from {list(box.start)} to {list(box.stop)} is no box")
    return Chunk(entry["file"], str(entry["key"]), box, int(entry["crc32"]))


def require_full_cover(tensors: dict[str, Whole]) -> None:
    """Raises: ValueError unless the chunks of every tensor lie inside it, are disjoint, and fill it."""
    for name, whole in tensors.items():
        boxes = [chunk.box for chunk in whole.chunks]
        for box in boxes:
            if not _inside(box, whole.shape):
                raise ValueError(f"tensor {name} of shape {list(whole.shape)} has no place for a chunk {box_text(box)}")
        twice = _first_overlap(boxes)
        if twice is not None:
            raise ValueError(f"tensor {name} has chunks that overlap: {box_text(twice[0])} and {box_text(twice[1])}")
        filled, wanted = sum(volume(box) for box in boxes), math.prod(whole.shape)
        if filled != wanted:
            raise ValueError(f"the chunks of tensor {name} hold {filled:,} of its {wanted:,} elements")


def volume(box: Box) -> int:
    return math.prod(box.shape)


def box_text(box: Box) -> str:
    """Like [0:2, 4:6]."""
    return f"[{', '.join(f'{a}:{b}' for a, b in zip(box.start, box.stop, strict=True))}]"


def _inside(box: Box, shape: tuple[int, ...]) -> bool:
    return len(box.start) == len(shape) and all(0 <= a < b <= size for a, b, size in zip(*box, shape, strict=True))


def _first_overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Sweeps along dim 0: a box is compared only with those that have not ended where it starts."""
    open_boxes: list[Box] = []
    for box in sorted(boxes):
        open_boxes = [other for other in open_boxes if not box.start or other.stop[0] > box.start[0]]
        for other in open_boxes:
            if other.overlap(box) is not None:
                return other, box
        open_boxes.append(box)
    return None

"""Validates SentencePiece's precompiled character map, because the native library follows its offsets unchecked.

    u32 n | trie of n bytes (u32 units) | texts, each followed by a zero byte

The trie is a double array (Aoe 1989; darts-clone): from unit u at place p a byte c leads to place p ^ offset(u) ^ c. A
place outside the trie, or a value outside the texts, would read foreign memory or crash the process.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.tokenizer.sentence_piece_model import fields

# fields of SentencePiece's ModelProto: how a text is normalised before, and after
NORMALIZERS = (
    3,
    5,
)
CHARSMAP = 2  # field of a NormalizerSpec


def require_valid_map(raw: bytes, name: str) -> None:
    """Raises: UserError where a walk through the trie could leave it."""
    if raw and not _is_valid(raw):
        raise UserError(f"{name}: its precompiled character map is damaged")


def _is_valid(raw: bytes) -> bool:
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size < 4 or size % 4 or size > len(raw) - 4:
        return False
    units = np.frombuffer(raw, "<u4", size // 4, 4).astype(np.int64)
    texts = raw[4 + size :]
    label = units & 0xFF
    has_value = units & (1 << 8) != 0
    is_leaf = units >> 31 != 0
    offset = (units >> 10) << ((units & (1 << 9)) >> 6)

    places = np.arange(len(units))
    targets = places ^ offset
    inner = (places == 0) | (~is_leaf & (label != 0))  # a leaf or a label of 0 is never matched
    furthest = (targets[inner] | 0xFF).max(initial=0)
    if furthest >= len(units):
        return False

    values = units[targets[inner & has_value]] & ((1 << 31) - 1)
    if (values > len(texts)).any():
        return False
    first_bytes = np.frombuffer(texts + b"\0", np.uint8)[values]
    return bool((first_bytes & 0xC0 != 0x80).all())  # a text starts at a character


def maps_in_json(record: Any, name: str) -> Iterator[bytes]:
    """Every character map in a tokenizer.json. Raises: UserError where one is not base64."""
    waiting = [record]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            if "precompiled_charsmap" in part:
                try:
                    yield base64.b64decode(part["precompiled_charsmap"] or "", validate=True)
                except (binascii.Error, TypeError, ValueError) as error:
                    raise UserError(
                        f"{name}: its precompiled character map is not base64"
                    ) from error


def maps_in_model(model: bytes) -> Iterator[bytes]:
    """Every character map in a SentencePiece model, as far as its bytes can be parsed."""
    for spec in fields(model):
        if spec.number not in NORMALIZERS or not isinstance(spec.value, bytes):
            continue
        for field in fields(spec.value):
            if field.number == CHARSMAP and isinstance(field.value, bytes):
                yield field.value

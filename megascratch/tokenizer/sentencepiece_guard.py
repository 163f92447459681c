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
from megascratch.tokenizer.protobuf import fields

NORMALIZERS = (3, 5)  # fields of SentencePiece's ModelProto: how a text is normalised before, and after
CHARSMAP = 2  # field of a NormalizerSpec


def require_valid_map(raw: bytes, name: str) -> None:
    """Raises: UserError where a walk through the trie could leave it."""
    if raw and not _is_valid(raw):
        raise UserError(f"{name}: its precompiled character map is damaged")


def _is_valid(raw: bytes) -> bool:
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size < 4 or size % 4 or size > len(raw) - 4:
        return False
    units, texts = np.frombuffer(raw, "<u4", size // 4, 4).astype(np.int64), raw[4 + size :]
    places = np.arange(len(units))
    targets = places ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    inner = (places == 0) | ((units >> 31 == 0) & (units & 0xFF != 0))  # a leaf or a label of 0 is never matched
    if (targets[inner] | 0xFF).max(initial=0) >= len(units):
        return False
    values = units[targets[inner & (units & (1 << 8) != 0)]] & ((1 << 31) - 1)
    starts = np.frombuffer(texts + b"\0", np.uint8)
    return bool((values <= len(texts)).all() and (starts[np.minimum(values, len(texts))] & 0xC0 != 0x80).all())


def maps_in_json(record: Any, name: str) -> Iterator[bytes]:
    """Every character map in a tokenizer.json. Raises: UserError where one is not base64."""
    waiting = [record]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "precompiled_charsmap" in one:
                try:
                    yield base64.b64decode(one["precompiled_charsmap"] or "", validate=True)
                except (binascii.Error, TypeError, ValueError) as error:
                    raise UserError(f"{name}: its precompiled character map is not base64") from error
            waiting += one.values()
        elif isinstance(one, list):
            waiting += [item for item in one if isinstance(item, dict | list)]


def maps_in_model(model: bytes) -> Iterator[bytes]:
    """Every character map in a SentencePiece model, as far as its bytes can be parsed."""
    for spec in fields(model):
        if spec.number not in NORMALIZERS or not isinstance(spec.value, bytes):
            continue
        for field in fields(spec.value):
            if field.number == CHARSMAP and isinstance(field.value, bytes):
                yield field.value

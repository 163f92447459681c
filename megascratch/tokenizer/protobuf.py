"""Reads and writes the fields of a protobuf message without its schema."""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5  # wire types


class Field(NamedTuple):
    """One field."""

    number: int
    value: int | bytes
    """The number of a varint, else the bytes."""
    start: int
    stop: int
    """Position in the message, key and length included."""


def fields(message: bytes) -> Iterator[Field]:
    """All fields, up to the first byte that cannot be part of one."""
    start = 0
    try:
        while start < len(message):
            key, at = _varint(message, start)
            number, wire = key >> 3, key & 7
            value: int | bytes
            if wire == VARINT:
                value, stop = _varint(message, at)
            elif wire == DELIMITED:
                size, at = _varint(message, at)
                stop = at + size
                value = message[at:stop]
            elif wire in (EIGHT_BYTES, FOUR_BYTES):
                stop = at + (8 if wire == EIGHT_BYTES else 4)
                value = message[at:stop]
            else:
                return
            yield Field(number, value, start, stop)
            start = stop
    except IndexError:
        return


def delimited(number: int, content: bytes) -> bytes:
    """The encoding of a field that holds bytes."""
    return written((number << 3) | DELIMITED) + written(len(content)) + content


def written(value: int) -> bytes:
    """The encoding of a varint."""
    raw = bytearray()
    while value > 0x7F:
        raw.append((value & 0x7F) | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at

"""Reads a serialised SentencePiece model (a protobuf message) and changes its settings, without the schema.

    ModelProto        1 pieces (each a message)    3 normalizer
    SentencePiece     1 piece    2 score    3 type
    NormalizerSpec    3 add_dummy_prefix

A setting is changed by appending: if a field occurs twice in a protobuf message, the last one counts, and messages that
occur twice are merged.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

# fields of ModelProto
PIECES = 1
NORMALIZER = 3
# fields of SentencePiece
PIECE = 1
TYPE = 3
# types of a piece
NORMAL = 1
CONTROL = 3
USER_DEFINED = 4
ADD_DUMMY_PREFIX = 3  # field of NormalizerSpec

# wire types
VARINT = 0
EIGHT_BYTES = 1
DELIMITED = 2
FOUR_BYTES = 5

AS_CONTROL = bytes([TYPE << 3 | VARINT, CONTROL])
NO_DUMMY_PREFIX = bytes([ADD_DUMMY_PREFIX << 3 | VARINT, 0])


def as_control(model: bytes, is_special: Callable[[str, bool], bool]) -> bytes:
    """The model in which special pieces are control symbols: the library never finds them in a text. Ids stay.

    Args:
        is_special: called for each normal or user-defined piece with its text and whether it is user-defined.
    """
    changed: list[bytes] = []
    at = 0
    for field in fields(model):
        if field.number != PIECES or not isinstance(field.value, bytes):
            continue
        if _is_found(field.value, is_special):
            changed.append(model[at : field.start])
            changed.append(_delimited(PIECES, field.value + AS_CONTROL))
            at = field.stop
    changed.append(model[at:])
    return b"".join(changed)


def without_dummy_prefix(model: bytes) -> bytes:
    """The model that puts no space in front of a text."""
    return model + _delimited(NORMALIZER, NO_DUMMY_PREFIX)


def _is_found(piece: bytes, is_special: Callable[[str, bool], bool]) -> bool:
    """Whether a piece is special and the library would find it in a text."""
    kind = NORMAL
    text = ""
    for field in fields(piece):
        if field.number == PIECE and isinstance(field.value, bytes):
            text = field.value.decode(errors="replace")
        elif field.number == TYPE and isinstance(field.value, int):
            kind = field.value
    return kind in (NORMAL, USER_DEFINED) and is_special(text, kind == USER_DEFINED)


# ---- protobuf --------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a message."""

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
            number = key >> 3
            wire = key & 7
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


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The varint at a position, and the position after it."""
    value = 0
    shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80 or shift > 63:
            return value, at


def _delimited(number: int, content: bytes) -> bytes:
    """The encoding of a field that holds bytes."""
    return _encoded_varint(number << 3 | DELIMITED) + _encoded_varint(len(content)) + content


def _encoded_varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append((value & 0x7F) | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)

"""Changes settings of a serialised SentencePiece model without its schema.

This works by appending: if a field occurs twice in a protobuf message, the last one counts, and messages that occur
twice are merged.

    ModelProto        1 pieces (each a message)    3 normalizer
    SentencePiece     1 piece    2 score    3 type
    NormalizerSpec    3 add_dummy_prefix
"""

from collections.abc import Callable

from megascratch.tokenizer.protobuf import delimited, fields

PIECES, NORMALIZER = 1, 3
PIECE, TYPE = 1, 3
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
AS_CONTROL = bytes([TYPE << 3, CONTROL])
NO_DUMMY_PREFIX = bytes([3 << 3, 0])


def as_control(model: bytes, is_special: Callable[[str, bool], bool]) -> bytes:
    """The model in which special pieces are control symbols: the library never finds them in a text. Ids stay.

    Args:
        is_special: called for each normal or user-defined piece with its text and whether it is user-defined.
    """
    changed: list[bytes] = []
    at = 0
    for field in fields(model):
        if field.number == PIECES and isinstance(field.value, bytes) and _is_found(field.value, is_special):
            changed += [model[at : field.start], delimited(PIECES, field.value + AS_CONTROL)]
            at = field.stop
    return b"".join([*changed, model[at:]])


def without_dummy_prefix(model: bytes) -> bytes:
    """The model that puts no space in front of a text."""
    return model + delimited(NORMALIZER, NO_DUMMY_PREFIX)


def _is_found(piece: bytes, is_special: Callable[[str, bool], bool]) -> bool:
    """Whether a piece is special and the library would find it in a text."""
    kind, text = NORMAL, ""
    for field in fields(piece):
        if field.number == PIECE and isinstance(field.value, bytes):
            text = field.value.decode(errors="replace")
        elif field.number == TYPE and isinstance(field.value, int):
            kind = field.value
    return kind in (NORMAL, USER_DEFINED) and is_special(text, kind == USER_DEFINED)

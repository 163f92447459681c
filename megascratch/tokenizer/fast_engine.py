"""Chooses the fastest engine that encodes exactly like the reference library: gigatoken if its self-check passes.

gigatoken encodes 10 to 100 times faster than the reference libraries. It is used where its ids equal the reference's on
adversarial texts and on the beginning of the given text; after a single difference the reference is used, with a
warning. A text with a character that only one of them knows always goes to the reference.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from megascratch.tokenizer.adversarial_texts import probe
from megascratch.tokenizer.interface import as_text
from megascratch.tokenizer.memory import give_back, resident

try:
    from gigatoken import gigatoken_rs
except ImportError:  # no wheel for this machine
    gigatoken_rs = None  # type: ignore[assignment]

SAMPLE = 1 << 15  # characters of the given text in the self-check
LOOKED_AT = 1 << 22  # characters between two measurements of the memory
# bytes; a restart forgets every word, which costs as much as encoding some 10 MB
MOST_GROWN = 3 << 25

UNICODE_17 = (
    (0x88F, 0x88F),
    (0xC5C, 0xC5C),
    (0xCDC, 0xCDC),
    (0x1ACF, 0x1ADD),
    (0x1AE0, 0x1AEB),
    (0xA7CE, 0xA7CF),
    (0xA7D2, 0xA7D2),
    (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1),
    (0x10940, 0x10959),
    (0x10EC5, 0x10EC7),
    (0x10EFA, 0x10EFB),
    (0x11B60, 0x11B67),
    (0x11DB0, 0x11DDB),
    (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8),
    (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6),
    (0x187F8, 0x187FF),
    (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2),
    (0x1E6C0, 0x1E6DE),
    (0x1E6E0, 0x1E6F5),
    (0x1E6FE, 0x1E6FF),
    (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)
"""First and last of the characters that Unicode 17 added; gigatoken splits by Unicode 17, the
reference libraries by 16."""


def _unlike_units() -> np.ndarray:
    """[65536] bool: UTF-16 units that are or begin a character of UNICODE_17; a surrogate marks its whole block."""
    is_unlike = np.zeros(1 << 16, dtype=bool)
    for first, last in UNICODE_17:
        if last >= 1 << 16:  # two units: the first one is a surrogate
            first = 0xD800 + (first - (1 << 16) >> 10)
            last = 0xD800 + (last - (1 << 16) >> 10)
        is_unlike[first : last + 1] = True
    return is_unlike


UNLIKE = _unlike_units()


def same_unicode_classes(text: str) -> bool:
    """Whether all engines put each character of the text into the same class (letter, digit, ...)."""
    return (
        text.isascii() or not UNLIKE[np.frombuffer(text.encode("utf-16-le"), dtype=np.uint16)].any()
    )


Encode = Callable[[str], np.ndarray]
"""A text to its ids, int32."""


def choose(
    tokenizer_json: str,
    reference: Encode,
    texts: Sequence[str],
    specials: Sequence[str] = (),
    longest: int | None = None,
) -> Encode:
    """A fast engine for the tokenizer.json, or `reference` with a warning that says why. It adds no ids around a text.

    Args:
        reference: encodes with the reference library; the fast engine must give the same ids.
        texts: the texts to encode first; their beginning is part of the self-check.
        specials: special tokens, which the self-check mixes into adversarial text.
        longest: a text with more characters always goes to the reference.
    """

    def is_supported(text: str) -> bool:
        return same_unicode_classes(text) and (longest is None or len(text) <= longest)

    try:
        fast = _Gigatoken(tokenizer_json)
        tried = filter(same_unicode_classes, map(as_text, [*probe(specials), *_beginning(texts)]))
        different = first_difference(fast, reference, tried)
    except BaseException as error:  # a panic of its Rust code is not an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _slow(reference, reason)
    if different is not None:
        return _slow(reference, f"its ids differ on {different[:60]!a}")

    def encode(text: str) -> np.ndarray:
        return fast(text) if is_supported(text) else reference(text)

    return encode


def first_difference(one: Encode, other: Encode, texts: Iterable[str | bytes]) -> str | None:
    """The first text for which the two give different ids; None: there is none."""
    for text in map(as_text, texts):
        if not np.array_equal(one(text), other(text)):
            return text
    return None


def _slow(reference: Encode, reason: str) -> Encode:
    warnings.warn(
        f"gigatoken cannot encode with this tokenizer ({reason}); a slower library is used",
        stacklevel=4,
    )
    return reference


class _Gigatoken:
    """Encodes with gigatoken. Its cache keeps every word, so it is restarted when the process has grown by MOST_GROWN:
    memory stays bounded whatever the length of the text."""

    def __init__(self, tokenizer_json: str):
        if gigatoken_rs is None:
            raise ImportError("it is not installed: pip install gigatoken")
        self._json = tokenizer_json
        self._renew()

    def _renew(self) -> None:
        self._backend: Any = None  # frees the old one's memory first
        give_back()
        self._backend = gigatoken_rs.load_hf_json(self._json)
        self._resident = resident()
        self._left = LOOKED_AT

    def _look(self) -> None:
        if resident() > self._resident + MOST_GROWN:
            self._renew()
        else:
            self._left = LOOKED_AT

    def __call__(self, text: str) -> np.ndarray:
        self._left -= len(text)
        if self._left < 0:
            self._look()
        ids: np.ndarray = self._backend.encode(text).view(np.int32)
        return ids


def _beginning(texts: Sequence[str]) -> list[str]:
    taken = []
    size = 0
    for text in texts:
        taken.append(text[: SAMPLE - size])
        size += len(taken[-1])
        if size >= SAMPLE:
            break
    return taken

"""Texts on which tokenizers disagree: a fixed list and any number of random ones, reproducible from a seed.

Every Unicode plane, emoji, combining marks, letters that change length with their case, all kinds of white space,
contractions, digits of many scripts, control characters, bytes that are not UTF-8, halves of surrogate pairs.
"""

import random
from collections.abc import Iterator, Sequence

FIXED: tuple[str | bytes, ...] = (
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n \t x",
    "a" * 400,
    " " * 300 + "x" + "\n" * 50,
    "x = 1\n\n\n    return  y  \n",
    "I'll we've DON'T it'S 'Re ’s '\u017f '\u212a 's's'",
    "1234567 3.14159 ١٢٣٤٥ ⅧⅨ ²³ 0x1F",
    "Grüße, naïve façade; Straße — „Zitat“",
    "Съешь же ещё этих мягких французских булок",
    "天地玄黄，宇宙洪荒。日月盈昃",
    "すべての人間は、生まれながらにして自由",
    "모든 인간은 태어날 때부터",
    "सभी मनुष्यों को गौरव",
    "ทุกคนเกิดมามีอิสระ",
    "يولد جميع الناس أحرارًا",
    "כל בני האדם נולדו",
    "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 👍🏽 ☺️",
    "e\u0301 \u00e9 \u1100\u1161\u11a8 \ufb01 \u0130\u0131 \u01c4\u01c5",
    "\x00\x01\x1b[0m\x7f\x85\xa0\u1680\u180e\u2028\u2029\u200b\u200d\u3000\ufeff\ufffd\uffff",
    "def f(x):\n\tif x<=0 and y!=1: return {'a': [1,2]}  # ok?\n",
    "https://a.b/c?d=e&f=%20#g /usr/lib//x\n/",
    "camelCaseHTTPServer XMLHttpRequest iPhone",
    b"\xff\xfe broken \xe2\x82 utf \xf0\x9f\x98 8 \xc0\xaf \xed\xa0\x80",
    "half \ud83d pair \ude00 and \ud83d\ude00",
    "\u088fx\ua7cey \U00033057z \U00010940a",
    "\U00010348\U0001d54f\U00020bb7\U0003ffff\U000e0041\U0010fffd",
)

_SPACES = " \n\r\t\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u180e\u200b\ufeff"
_CASES = [
    "'s",
    "'S",
    "'\u017f",
    "'ll",
    "'LL",
    "'Re",
    "'ve",
    "'M",
    "'d",
    "'T",
    "don",
    "I",
    "\u0130",
    "ß",
    "Ǆ",
    "ǅ",
    "ʰ",
    "ا",
    "字",
    "\u0301",
    "1",
    "²",
    "Ⅷ",
    "٣",
    " ",
    "aB",
    "Ab",
    ".",
]
_WORDS = [
    "😀",
    "👨‍👩‍👧",
    "🇩🇪",
    "ﷺ",
    "e\u0301",
    " hello",
    "world\n",
    "    ",
    "123456",
    "...",
    "/",
    "\n/",
    "\r\n",
    "<|",
    "|>",
    "</s>",
    "_x",
    "é",
    "\x00",
    "中文",
]


def random_texts(seed: int, count: int, words: Sequence[str] = ()) -> Iterator[str | bytes]:
    """`count` texts; `words` (for example special tokens) are mixed into some of them."""
    choose = random.Random(seed)
    for _ in range(count):
        length = choose.randrange(1, 40)
        match choose.randrange(7):
            case 0:
                yield "".join(chr(choose.randrange(0x20, 0x7F)) for _ in range(length))
            case 1:
                yield "".join(chr(choose.randrange(0x110000)) for _ in range(length))
            case 2:
                yield "".join(choose.choice([*_SPACES, "a", "'", "0"]) for _ in range(length))
            case 3:
                yield "".join(choose.choice(_CASES) for _ in range(length))
            case 4:
                yield "".join(chr(choose.randrange(0x80, 0x3000)) for _ in range(length))
            case 5:
                yield "".join(choose.choice([*_WORDS, *words]) for _ in range(length))
            case _:
                yield choose.randbytes(length)


def probe(words: Sequence[str] = ()) -> list[str | bytes]:
    """The texts of a self-check: the fixed ones, one around each of `words` (at most 50), and some random ones."""
    named = [f"a{word} {word}b\n{word}" for word in words[:50]]
    return [*FIXED, *named, *random_texts(0, 150, words)]

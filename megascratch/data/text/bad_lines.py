"""Counts the bad lines of an input by their reasons, and says what to change if no line is good."""

import re
from collections import Counter
from collections.abc import Sequence

from megascratch.config.printable import printable
from megascratch.data.text.jsonl import BROKEN_JSON, EMPTY_LINE, NO_KEY, NO_OBJECT
from megascratch.data.text.sources import BROKEN, Source, opened

HEAD_BYTES = 4096  # enough to see how a file begins
NOT_JSON_LINES = (BROKEN_JSON, NO_OBJECT, EMPTY_LINE)


class BadReasons:
    """Counts bad lines by the kind of their reason: its words up to a colon, a bracket, a quote or a number."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._keys: list[str] = []  # of the first line without the wanted key

    @property
    def total(self) -> int:
        """Number of bad lines."""
        return self._counts.total()

    def add(self, line: str) -> bool:
        """Counts `line` (FILE:LINE: REASON). Returns whether it is the first of its kind."""
        reason = re.split(r":\d+: ", line, maxsplit=1)[-1]
        kind = re.split(r"[:('\d]| but ", reason, maxsplit=1)[0].strip()
        if kind == NO_KEY and not self._keys:
            self._keys = re.findall(r"'([^']+)'", reason.partition("(it has ")[2])
        self._counts[kind] += 1
        return self._counts[kind] == 1

    def advice(self, sources: Sequence[Source], key_flag: str) -> str:
        """What to change where every line is bad: ": ..." for the end of a message, or nothing.

        Args:
            sources: the inputs; the beginning of the first one is looked at.
            key_flag: the flag that names the key of the text.
        """
        if self._counts[NO_KEY] and self._counts[NO_KEY] == self.total and self._keys:
            keys = [printable(key) for key in self._keys]
            if len(keys) == 1:
                return f": the only key there is {keys[0]}, use {key_flag} {keys[0]}"
            return f": use {key_flag} with one of the keys that are there ({', '.join(keys)})"
        lines = self._counts[BROKEN_JSON] + self._counts[NO_OBJECT]
        if not lines or sum(self._counts[kind] for kind in NOT_JSON_LINES) < self.total:
            return ""
        head = _head(sources[0])
        if b"\0" in head:
            return ""
        if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
            return ": it looks like one JSON document; write each text as an object on a line of its own"
        return ": it looks like plain text, use --input-format text"


def _head(source: Source) -> bytes:
    """How a file begins; nothing if it cannot be read again."""
    if not source.regular:
        return b""
    try:
        with opened(source.path, source.compression) as (file, _):
            return file.read(HEAD_BYTES)
    except BROKEN:
        return b""

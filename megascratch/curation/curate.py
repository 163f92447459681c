"""JSONL in, the lines that pass out, and a report of what was dropped and why.

A line goes through the rules that were asked for, cheapest first, and is dropped by the first that speaks:

    quality (Gopher) -> repetition (Gopher) -> C4 -> contamination -> exact duplicate -> near duplicate

Of duplicates the first stays. The result depends on the lines and the settings alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import orjson

from megascratch.config.errors import UserError
from megascratch.curation.overlap import Contamination, ExactDuplicates, NearDuplicates
from megascratch.curation.quality import Limits, Reason, c4, gopher_quality, gopher_repetition
from megascratch.data.text.documents import Record, read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import Source, find_sources

EXAMPLES = 3  # of each rule in the report
SHOWN = 200  # characters of an example
Rule = Callable[[str, str], Reason | str | None]  # text and place in; why to drop it, the text to keep instead, or None


class Settings(NamedTuple):
    """What is asked for."""

    gopher_quality: bool = False
    gopher_repetition: bool = False
    c4: bool = False
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation texts."""
    decontaminate_key: str = "text"
    decontaminate_words: int = 13
    exact_duplicates: bool = False
    near_duplicates: bool = False
    similarity: float = 0.8
    shingle_words: int = 13
    permutations: int = 128
    limits: Limits = Limits()
    json_key: str = "text"
    sample_by: str = "document"
    """Text files: "document" (the file is one) or "line"."""
    strict: bool = False


@dataclass
class CurationReport:
    """What became of the lines."""

    settings: dict[str, Any]
    lines: int = 0
    kept: int = 0
    changed: int = 0
    """Kept with other words (C4 drops lines of a text)."""
    bytes_read: int = 0
    """UTF-8 bytes of all texts."""
    bytes_kept: int = 0
    bad_lines: int = 0
    evaluation_texts: int = 0
    evaluation_texts_too_short: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def drop(self, reason: Reason, place: str, text: str) -> None:
        """Counts a text, and shows it if it is among the first of its rule."""
        self.dropped[reason.rule] += 1
        shown = self.examples.setdefault(reason.rule, [])
        if len(shown) < EXAMPLES:
            shown.append({"place": place, "reason": reason.detail, "text": text[:SHOWN]})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"dropped": dict(self.dropped.most_common())}


class Curator:
    """Reads files and gives the lines to keep; `report` tells the rest.

    Raises: UserError where no rule is asked for, or one cannot work.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.report = CurationReport({**settings._asdict(), "limits": asdict(settings.limits)})
        self._rules = list(self._rules_asked_for())
        if not self._rules:
            raise UserError(
                "nothing to do: ask for --gopher-quality, --gopher-repetition, --c4, --decontaminate FILE, "
                "--exact-duplicates or --near-duplicates"
            )

    def _rules_asked_for(self) -> Iterator[Rule]:
        asked, limits = self.settings, self.settings.limits
        plain = {"gopher_quality": gopher_quality, "gopher_repetition": gopher_repetition, "c4": c4}
        for name, rule in plain.items():
            if getattr(asked, name):
                yield partial(_without_place, rule, limits)
        if asked.decontaminate:
            found = Contamination(_texts(asked.decontaminate, asked.decontaminate_key), asked.decontaminate_words)
            self.report.evaluation_texts, self.report.evaluation_texts_too_short = found.texts, found.too_short
            yield lambda text, place: found.judge(text)
        if asked.exact_duplicates:
            yield ExactDuplicates().judge
        if asked.near_duplicates:
            yield NearDuplicates(asked.similarity, asked.shingle_words, asked.permutations).judge

    def keep(self, sources: Sequence[Source], bad: Callable[[str], None] = lambda line: None) -> Iterator[bytes]:
        """The lines that pass, in order, without line ends; a changed text is written again under its key, and a row or
        a text file as an object. What gives no text is told to `bad`.

        Raises: UserError for files that cannot be read, and with `strict` for the first bad line.
        """
        for record in read_records(sources, self.settings.json_key, sample_by=self.settings.sample_by):
            self.report.lines += 1
            try:
                kept = self._judge(record)
            except BadLine as reason:
                if self.settings.strict:
                    raise UserError(f"{record.place}: {reason} (--strict: nothing written)") from reason
                bad(f"{record.place}: {reason}")
                self.report.bad_lines += 1
                continue
            if kept is not None:
                self.report.kept += 1
                yield kept

    def _judge(self, record: Record) -> bytes | None:
        """The line to keep, or None. Raises: BadLine."""
        text = original = record.text(self.settings.json_key)
        self.report.bytes_read += len(text.encode())
        for rule in self._rules:
            found = rule(text, record.place)
            if isinstance(found, Reason):
                self.report.drop(found, record.place, original)
                return None
            text = text if found is None else found
        self.report.bytes_kept += len(text.encode())
        if text == original:
            return record.line()
        self.report.changed += 1
        return orjson.dumps(record.fields() | {self.settings.json_key: text}, default=str)


def _without_place(rule: Callable[[str, Limits], Reason | str | None], limits: Limits, text: str, _: str) -> Any:
    return rule(text, limits)


def _texts(paths: Sequence[str], key: str) -> Iterator[str]:
    """Evaluation texts; a bad line would let contamination through, so it is refused."""
    for record in read_records(find_sources(paths), key, [key]):
        try:
            yield record.text(key)
        except BadLine as reason:
            raise UserError(f"--decontaminate {record.place}: {reason}") from reason

"""Filters and deduplicates text corpora (Gopher, C4, decontamination) and reports what was dropped and why.

A line goes through the enabled rules, cheapest first, and the first rule that matches drops it:

    quality (Gopher) -> repetition (Gopher) -> C4 -> contamination -> exact duplicate -> near duplicate

Of duplicates the first one is kept. The result depends only on the lines and the settings.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import orjson

from megascratch.config.errors import UserError
from megascratch.curation.overlap import Contamination, ExactDuplicates, NearDuplicates
from megascratch.curation.quality import Limits, Reason, c4, gopher_quality, gopher_repetition
from megascratch.data.text.documents import Record, read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import Source, find_sources

EXAMPLES = 3  # dropped texts of each rule in the report
SHOWN = 200  # characters of an example
# (text, place) -> why to drop it, the text to keep instead, or None
Rule = Callable[[str, str], Reason | str | None]


class Settings(NamedTuple):
    """Which rules are enabled, and their settings."""

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
    """How a text file is cut: one of `data.text.documents.SAMPLE_BY`."""
    strict: bool = False


@dataclass
class CurationReport:
    """How many lines were read, kept and dropped, and examples."""

    settings: dict[str, Any]
    lines: int = 0
    kept: int = 0
    changed: int = 0
    """Kept, but shortened (C4 drops lines of a text)."""
    bytes_read: int = 0
    """UTF-8 bytes of all texts."""
    bytes_kept: int = 0
    bad_lines: int = 0
    evaluation_texts: int = 0
    evaluation_texts_too_short: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def drop(self, reason: Reason, place: str, text: str) -> None:
        """Counts a dropped text; the first EXAMPLES of each rule are kept as examples."""
        self.dropped[reason.rule] += 1
        shown = self.examples.setdefault(reason.rule, [])
        if len(shown) < EXAMPLES:
            shown.append({"place": place, "reason": reason.detail, "text": text[:SHOWN]})

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self) | {"dropped": dict(self.dropped.most_common())}


class Curator:
    """Reads files and yields the lines to keep; `report` counts the others.

    Raises: UserError where no rule is enabled, or the settings of one are invalid.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.report = CurationReport({**settings._asdict(), "limits": asdict(settings.limits)})
        self._rules = list(self._enabled_rules())
        if not self._rules:
            raise UserError(
                "nothing to do: ask for --gopher-quality, --gopher-repetition, --c4, --decontaminate FILE, "
                "--exact-duplicates or --near-duplicates"
            )

    def _enabled_rules(self) -> Iterator[Rule]:
        settings = self.settings
        if settings.gopher_quality:
            yield lambda text, place: gopher_quality(text, settings.limits)
        if settings.gopher_repetition:
            yield lambda text, place: gopher_repetition(text, settings.limits)
        if settings.c4:
            yield lambda text, place: c4(text, settings.limits)
        if settings.decontaminate:
            texts = _texts(settings.decontaminate, settings.decontaminate_key)
            contamination = Contamination(texts, settings.decontaminate_words)
            self.report.evaluation_texts = contamination.texts
            self.report.evaluation_texts_too_short = contamination.too_short
            yield lambda text, place: contamination.check(text)
        if settings.exact_duplicates:
            yield ExactDuplicates().check
        if settings.near_duplicates:
            yield NearDuplicates(
                settings.similarity, settings.shingle_words, settings.permutations
            ).check

    def keep(
        self, sources: Sequence[Source], bad: Callable[[str], None] = lambda line: None
    ) -> Iterator[bytes]:
        """The lines that pass, in order, without line ends; a changed text is stored under its key, and a row or a text
        file becomes a JSON object. `bad` is called with each record that has no text.

        Raises: UserError for files that cannot be read, and with `strict` for the first bad line.
        """
        for record in read_records(
            sources, self.settings.json_key, sample_by=self.settings.sample_by
        ):
            self.report.lines += 1
            try:
                kept = self._apply_rules(record)
            except BadLine as reason:
                if self.settings.strict:
                    raise UserError(
                        f"{record.place}: {reason} (--strict: nothing written)"
                    ) from reason
                bad(f"{record.place}: {reason}")
                self.report.bad_lines += 1
                continue
            if kept is not None:
                self.report.kept += 1
                yield kept

    def _apply_rules(self, record: Record) -> bytes | None:
        """The line to keep, or None. Raises: BadLine."""
        text = original = record.text(self.settings.json_key)
        self.report.bytes_read += len(text.encode())
        for rule in self._rules:
            result = rule(text, record.place)
            if isinstance(result, Reason):
                self.report.drop(result, record.place, original)
                return None
            if result is not None:
                text = result
        self.report.bytes_kept += len(text.encode())
        if text == original:
            return record.line()
        self.report.changed += 1
        return orjson.dumps(record.fields() | {self.settings.json_key: text}, default=str)


def _texts(paths: Sequence[str], key: str) -> Iterator[str]:
    """Evaluation texts; a bad line is refused, because it would let contamination through."""
    for record in read_records(find_sources(paths), key, [key]):
        try:
            yield record.text(key)
        except BadLine as reason:
            raise UserError(f"--decontaminate {record.place}: {reason}") from reason

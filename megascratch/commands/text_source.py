"""Text for training and comparing tokenizers: read from any input, up to a size, refused where there is none."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from megascratch.commands.input_output import BadLines
from megascratch.config.errors import UserError
from megascratch.config.verbosity import note
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import Source


class Text(NamedTuple):
    """A text, or a part of one, and the group in which it is counted."""

    group: str
    text: str


def texts_of(
    sources: Sequence[Source],
    keys: Sequence[str],
    bad_lines: BadLines,
    group_key: str | None = None,
) -> Iterator[Text]:
    """The texts under `keys` of all sources; large text files come in parts.

    Args:
        bad_lines: notes each line without a text.
        group_key: key of a text's group; None: its file.
    """
    columns = [*keys, group_key] if group_key else list(keys)
    for record in read_records(sources, keys[0], columns, sample_by="part"):
        try:
            texts = [record.text(key) for key in keys]
            group = record.path if group_key is None or record.is_text else record.text(group_key)
        except BadLine as reason:
            bad_lines.add(f"{record.place}: {reason}")
            continue
        for text in texts:
            yield Text(group, text)


def at_most(texts: Iterable[Text], megabytes: int, doing: str) -> Iterator[Text]:
    """The first `megabytes` of the texts; prints a line if there are more."""
    left = megabytes * 10**6
    for each in texts:
        left -= len(each.text.encode())
        if left < 0:
            note(f"{doing} the first {megabytes} MB of the text (--max-megabytes)")
            return
        yield each


def require_text(
    texts: Iterator[Text], sources: Sequence[Source], bad_lines: BadLines, key_flag: str
) -> Iterator[Text]:
    """The texts from the first one that is not empty. Raises: UserError if there is none."""
    for each in texts:
        if each.text:
            return itertools.chain([each], texts)
    raise no_text(sources, bad_lines, key_flag)


def no_text(sources: Sequence[Source], bad_lines: BadLines, key_flag: str) -> UserError:
    """The error for an input without a text."""
    names = ", ".join(source.path for source in sources[:5])
    advice = bad_lines.reasons.advice(sources, key_flag)
    return UserError(
        f"{names}: no text found, {bad_lines.count:,} bad lines{advice}; nothing written"
    )

"""Settings and a data set in, an exact record of what training reads out: which document went to which sample at
which step.

The record is made of the data set's own spans, the very ones that its samples are read from.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from megascratch.config.batch_size import global_batch_size_at
from megascratch.config.settings import Config
from megascratch.data.samples.dataset import Dataset
from megascratch.data.tokens.loss_mask import Masked
from megascratch.data.tokens.token_files import TokenReader


class Use(NamedTuple):
    """Tokens of one document in one sample."""

    step: int
    """From 1, as the log counts."""
    sample: int
    """Number of the sample in the whole run, from 0."""
    place: int
    """Of the first token in the sample."""
    corpus: str
    document: int
    sequence: int
    first_token: int
    """In the sequence."""
    tokens: int


def audit(config: Config, dataset: Dataset, first_step: int, last_step: int) -> Iterator[Use]:
    """Every use in steps `first_step` to `last_step`, both included, in the order of reading.

    The last token of a sample is only a label. `config` is derived: the size of a step follows from it (ramp-up too).
    """
    for step, samples in steps(config, last_step):
        if step >= first_step:
            for sample in samples:
                yield from uses_of(dataset, step, sample)


def steps(config: Config, last_step: int) -> Iterator[tuple[int, range]]:
    """(step, its samples) from the first step on."""
    consumed = 0
    for step in range(1, last_step + 1):
        size = global_batch_size_at(config, consumed)
        yield step, range(consumed, consumed + size)
        consumed += size


def uses_of(dataset: Dataset, step: int, sample: int) -> Iterator[Use]:
    """What one sample is made of, in the order of reading."""
    place = 0
    for span in dataset.spans(sample):
        tokens = span.stop - span.start
        if tokens:
            document = _document_of(span.source, span.sequence)
            yield Use(step, sample, place, span.source.prefix, document, span.sequence, span.start, tokens)
        place += tokens


def _document_of(source: object, sequence: int) -> int:
    """Synthetic sequences are documents themselves."""
    reader = source.reader if isinstance(source, Masked) else source
    if not isinstance(reader, TokenReader):
        return sequence
    return int(np.searchsorted(reader.documents, sequence, side="right")) - 1

"""Lists exactly what training reads: which document is in which sample, at which step (`megascratch data audit`).

The list is made from the dataset's own spans, the ones that its samples are read from.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from megascratch.config.batch_size import global_batch_size_at
from megascratch.config.resolve import ResolvedTraining
from megascratch.data.samples.dataset import Dataset, TokenSpan
from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.loss_mask import Masked
from megascratch.data.tokens.token_files import TokenReader


class Use(NamedTuple):
    """Tokens of one document in one sample."""

    step: int
    """From 1, as in the log."""
    sample: int
    """Number of the sample in the run, from 0."""
    place: int
    """Position of the first token in the sample."""
    corpus: str
    document: int
    sequence: int
    first_token: int
    """Position of the first token in the sequence."""
    tokens: int


def audit(
    training: ResolvedTraining, dataset: Dataset, first_step: int, last_step: int
) -> Iterator[Use]:
    """Every use in steps `first_step` to `last_step`, both included, in reading order.

    The last token of a sample is only a label. `training` gives the size of each step
    (ramp-up too).
    """
    for step, samples in steps(training, last_step):
        if step >= first_step:
            for sample in samples:
                yield from uses_of(dataset, step, sample)


def steps(training: ResolvedTraining, last_step: int) -> Iterator[tuple[int, range]]:
    """(step, its samples) for each step from the first."""
    consumed = 0
    for step in range(1, last_step + 1):
        size = global_batch_size_at(training, consumed)
        yield step, range(consumed, consumed + size)
        consumed += size


def uses_of(dataset: Dataset, step: int, sample: int) -> Iterator[Use]:
    """The documents in one sample, in reading order."""
    place = 0
    for span in dataset.spans(sample):
        tokens = span.stop - span.start
        if tokens:
            document, sequence, start = _place_of(span)
            yield Use(step, sample, place, span.source.prefix, document, sequence, start, tokens)
        place += tokens


def _place_of(span: TokenSpan) -> tuple[int, int, int]:
    """(document, sequence, first token) in the corpus; for synthetic data each sequence is a document."""
    source = span.source.reader if isinstance(span.source, Masked) else span.source
    sequence = span.sequence
    start = span.start
    if isinstance(source, CutCorpus):
        ((sequence, start, _),) = source.in_corpus(np.array([[sequence, start, 0]])).tolist()
        source = source.reader
    document = source.document_of(sequence) if isinstance(source, TokenReader) else sequence
    return document, sequence, start

"""Encodes one work unit of `megascratch preprocess` into a shard: tokenizes batches of documents.

unit -> batches of documents -> ids and lengths as arrays -> the files of one shard
"""

from collections.abc import Generator, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.imports import run_imports
from megascratch.data.prefetch import Prefetch
from megascratch.data.preprocess.documents import DocumentBatch, ReadOptions, read_span
from megascratch.data.preprocess.output_shards import (
    BadRow,
    EncodedDocuments,
    ShardWriter,
    SpanCounts,
    Summary,
)
from megascratch.data.preprocess.work_units import InputSpan, WorkUnit, digests, leaves
from megascratch.data.text.sentences import splitter
from megascratch.data.tokens.token_files import token_dtype
from megascratch.tokenizer import Tokenizer, TokenizerSource
from megascratch.tokenizer.memory import give_back


class Job(NamedTuple):
    """What a process needs to encode a work unit, on any machine that sees the files."""

    tokenizer: TokenizerSource
    reading: ReadOptions
    append_eod: bool
    parse_specials: bool
    """Whether the text of a special token in a document becomes the token."""
    sentences: str | None
    """Language whose rules split texts into sentences; None: a text is one sequence."""
    keep_newlines: bool
    strict: bool
    folder: str
    """Where the shards are written."""
    leaf_bytes: int
    """Bytes of the input that are hashed together."""
    imports: tuple[str, ...] = ()
    """Code of the user's own that may register the tokenizer."""


class EncodeStep(NamedTuple):
    """Progress of a worker since its previous event."""

    documents: int
    tokens: int
    text_bytes: int
    raw_bytes: int


class TokenizerInfo(NamedTuple):
    """What the merging process needs to know about the tokenizer."""

    kind: str
    fingerprint: str
    size: int
    eod: int | None


def load_tokenizer(job: Job) -> Tokenizer:
    """The job's tokenizer, loaded once per process, which first runs the imports that may register it."""
    run_imports(job.imports)
    return _loaded(job.tokenizer)


def vocabulary(job: Job) -> TokenizerInfo:
    """Kind, fingerprint, size and end of document of the job's tokenizer."""
    tokenizer = load_tokenizer(job)
    return TokenizerInfo(tokenizer.kind, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod)


def forget_tokenizer() -> None:
    """Frees the tokenizer of this process, which only waits while other processes encode."""
    _loaded.cache_clear()
    give_back()


@cache
def _loaded(source: TokenizerSource) -> Tokenizer:
    return source.load()


def encode_unit(job: Job, unit: WorkUnit) -> Generator[EncodeStep | Summary, None, None]:
    """Encodes one shard: yields its steps, then its summary; with --strict it stops at the first bad line.

    Raises: UserError where the input cannot be read, the tokenizer fails or the shard cannot be written.
    """
    encoder = Encoder(job)
    counts: list[SpanCounts] = []
    shard = ShardWriter(job.folder, unit.number, len(job.reading.keys), encoder.dtype)
    with shard, _hashes(job, unit) as hashes:
        for part, span in enumerate(unit.spans):
            rows = 0
            raw_bytes = 0
            for batch in read_span(span, job.reading):
                encoded, bad = _encode_batch(encoder, batch, span, rows)
                shard.add(encoded, [BadRow(part, rows + row, reason) for row, reason in bad])
                rows += batch.rows
                raw_bytes += batch.raw_bytes
                yield EncodeStep(
                    documents=len(encoded[0].sequences),
                    tokens=sum(len(one.ids) for one in encoded),
                    text_bytes=sum(one.text_bytes for one in encoded),
                    raw_bytes=batch.raw_bytes,
                )
                if bad and job.strict:
                    yield shard.stopped([*counts, SpanCounts(span.source, rows, [])])
                    return
            own_hashes = islice(hashes, len(leaves(span, job.leaf_bytes)))
            counts.append(SpanCounts(span.source, rows, list(own_hashes)))
            yield EncodeStep(0, 0, 0, span.raw_bytes - raw_bytes)
        yield shard.commit(counts)


def _hashes(job: Job, unit: WorkUnit) -> Prefetch[str]:
    """Hashes the blocks of the unit's input in a thread: reading and hashing release the interpreter lock."""
    hashes = chain.from_iterable(digests(span, job.leaf_bytes) for span in unit.spans)
    count = sum(len(leaves(span, job.leaf_bytes)) for span in unit.spans)
    return Prefetch(hashes, ahead=count)


def _encode_batch(
    encoder: "Encoder", batch: DocumentBatch, span: InputSpan, rows: int
) -> tuple[list[EncodedDocuments], list[tuple[int, str]]]:
    try:
        return encoder(batch)
    except Exception as error:  # a tokenizer's library may raise anything
        place = f"lines {rows + 1} to {rows + batch.rows}"
        if not span.begins:
            place += f" after byte {span.start:,}"
        raise UserError(
            f"{span.name}, {place} cannot be encoded: {type(error).__name__}: {error}"
        ) from error


def utf8_bytes(text: str) -> int:
    """Length of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class Encoder:
    """Encodes batches: returns the ids for each key, and the rows that cannot be encoded."""

    def __init__(self, job: Job):
        self._tokenizer = load_tokenizer(job)
        self._eod = self._tokenizer.eod if job.append_eod else None
        self._parse_specials = job.parse_specials
        self._keys = range(len(job.reading.keys))
        self._split = splitter(job.sentences, job.keep_newlines) if job.sentences else None
        self.dtype = token_dtype(self._tokenizer.vocab_size)

    def __call__(
        self, batch: DocumentBatch
    ) -> tuple[list[EncodedDocuments], list[tuple[int, str]]]:
        try:
            return list(self._encode(batch.documents)), batch.bad
        except UserError:  # some text cannot be encoded: find which
            return self._one_by_one(batch)

    def _one_by_one(
        self, batch: DocumentBatch
    ) -> tuple[list[EncodedDocuments], list[tuple[int, str]]]:
        good = []
        bad = batch.bad
        for number, document in zip(batch.numbers, batch.documents, strict=True):
            try:
                list(self._encode([document]))
                good.append(document)
            except UserError as reason:
                bad.append((number, str(reason)))
        return list(self._encode(good)), sorted(bad)

    def _encode(self, documents: Sequence[list[list[str]]]) -> Iterator[EncodedDocuments]:
        """The encoded documents for each key. Raises: UserError where a text cannot be encoded."""
        for key in self._keys:
            texts = [document[key] for document in documents]  # of each document a list of texts
            text_bytes = sum(map(utf8_bytes, chain.from_iterable(texts)))
            if self._split:
                texts = [
                    list(chain.from_iterable(map(self._split, sequences))) for sequences in texts
                ]
            yield self._arrays(texts, text_bytes)

    def _arrays(self, texts: Sequence[list[str]], text_bytes: int) -> EncodedDocuments:
        """Encodes the texts of each document. A text without ids makes no sequence; a document with ids gets the end of
        document after its last id.

        Sentences are parts of one text, so the ids that the vocabulary puts around a text enclose all of them together.
        """
        flat = list(chain.from_iterable(texts))
        ids, lengths = self._tokenizer.encode_batch(
            flat, self._parse_specials, around=self._split is None
        )
        if len(ids) and not 0 <= ids.min() <= ids.max() <= np.iinfo(self.dtype).max:
            raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit {self.dtype}")
        # of each text
        document_of = np.repeat(np.arange(len(texts)), [len(sequences) for sequences in texts])
        has_ids = lengths > 0
        lengths = lengths[has_ids]  # [sequences]
        sequences = np.bincount(document_of[has_ids], minlength=len(texts))  # [documents]
        is_not_empty = sequences > 0
        last = np.cumsum(sequences)[is_not_empty] - 1  # sequence that ends each document with ids
        ids = ids.astype(self.dtype)
        if self._split:
            first = last - sequences[is_not_empty] + 1
            ids = _insert(ids, lengths, first, self._tokenizer.before, after=False)
            ids = _insert(ids, lengths, last, self._tokenizer.after, after=True)
        if self._eod is not None:
            ids = _insert(ids, lengths, last, [self._eod], after=True)
        return EncodedDocuments(
            ids, lengths.astype(np.int32), sequences.astype(np.int32), text_bytes
        )


def _insert(
    ids: np.ndarray, lengths: np.ndarray, sequences: np.ndarray, extra: Sequence[int], after: bool
) -> np.ndarray:
    """Inserts `extra` before or after each of the given sequences; `lengths` is updated in place."""
    if not extra:
        return ids
    places = np.cumsum(lengths)[sequences]
    if not after:
        places = places - lengths[sequences]
    lengths[sequences] += len(extra)
    count = len(places) * len(extra)
    added = np.repeat(places, len(extra)) + np.arange(count)  # places in the result
    result = np.empty(len(ids) + len(added), ids.dtype)
    is_old = np.ones(len(result), dtype=bool)
    is_old[added] = False
    result[is_old] = ids
    result[added] = np.tile(extra, len(places))
    return result

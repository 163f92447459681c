"""Merges and splits tokenized corpora by document, without decoding (`data merge`, `data split`).

A new corpus is a list of pieces, each a range of documents of an existing corpus. Its index is known before an id is
copied, so both files are written from front to back in blocks: memory does not grow with the corpora.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.digests import BlockDigests
from megascratch.data.tokens.idx_format import BLOCK, HEADER, MAGIC, VERSION, dtype_code
from megascratch.data.tokens.loss_mask import has_mask, mask_of, mask_prefix
from megascratch.data.tokens.manifest import read_manifest, write_manifest
from megascratch.data.tokens.token_files import (
    TokenReader,
    bin_path,
    idx_path,
    open_for_writing,
    put_in_place,
)
from megascratch.runtime.atomic_file import flush_to_disk, partial_path

ROUNDING = 1e-5  # by which fractions such as 0.333333 may miss 1


class DocumentRange(NamedTuple):
    """Documents [first, stop) of one corpus."""

    reader: TokenReader | CutCorpus
    first: int
    stop: int

    @property
    def sequences(self) -> tuple[int, int]:
        """The same range in sequences, [first, stop)."""
        return int(self.reader.documents[self.first]), int(self.reader.documents[self.stop])

    @property
    def corpus(self) -> TokenReader:
        """The corpus itself, if the range is of one that is cut."""
        return self.reader.reader if isinstance(self.reader, CutCorpus) else self.reader


class MergeSummary(NamedTuple):
    """Prefix and counts of a new corpus."""

    prefix: str
    documents: int
    sequences: int
    tokens: int


def merge(readers: Sequence[TokenReader], prefix: str | Path) -> MergeSummary:
    """Concatenates all documents of the corpora into one.

    Raises: UserError for corpora of different dtypes or tokenizers, an output that is an input, a full disk.
    """
    kinds = {reader.dtype.name: reader.prefix for reader in readers}
    if len(kinds) > 1:
        (one, its), (other, theirs) = list(kinds.items())[:2]
        raise UserError(
            f"only corpora of the same dtype can be merged: {its} has {one}, {theirs} has {other}; "
            f"preprocess one of them again with the other's tokenizer"
        )
    pieces = [DocumentRange(reader, 0, len(reader.documents) - 1) for reader in readers]
    return _write_with_mask(prefix, pieces)


def split(
    reader: TokenReader | CutCorpus, prefixes: Sequence[str | Path], counts: Sequence[int]
) -> list[MergeSummary]:
    """Writes the first `counts[0]` documents to the first prefix, the next `counts[1]` to the second, and so on."""
    written = []
    first = 0
    for prefix, count in zip(prefixes, counts, strict=True):
        stop = first + count
        written.append(_write_with_mask(prefix, [DocumentRange(reader, first, stop)]))
        first = stop
    return written


def _write_with_mask(prefix: str | Path, pieces: Sequence[DocumentRange]) -> MergeSummary:
    """Writes the loss masks first, if the corpora have them, so that no corpus appears without its mask."""
    without_mask = [piece.reader.prefix for piece in pieces if not has_mask(piece.reader.prefix)]
    if 0 < len(without_mask) < len(pieces):
        raise UserError(
            f"{without_mask[0]} has no loss mask, others have one: merge only corpora with masks, or only without"
        )
    if not without_mask:
        masks = []
        for reader, first, stop in pieces:
            masks.append(DocumentRange(mask_of(reader), first, stop))
        write_pieces(mask_prefix(prefix), masks)
    return write_pieces(prefix, pieces)


def divide(
    reader: TokenReader, fractions: Sequence[float]
) -> tuple[TokenReader | CutCorpus, list[int]]:
    """The documents of each part. A corpus with too few documents for its fractions is cut inside documents.

    Returns: the corpus, cut if it must be, and the number of its documents in each part.
    Raises: UserError for fractions that `counts_of_fractions` refuses, or too few tokens for them.
    """
    counts = counts_of_fractions(fractions, len(reader.documents) - 1)
    if 0 not in counts:
        return reader, counts
    tokens = counts_of_fractions(fractions, reader.tokens)
    if 0 in tokens:
        raise UserError(
            f"--fractions {_words(fractions)}: part {tokens.index(0)} gets none of the {reader.tokens} tokens of "
            f"{reader.prefix}; use fewer parts or a larger fraction"
        )
    cut = CutCorpus(reader, np.cumsum(tokens).tolist())
    borders = np.searchsorted(cut.documents, cut.ends)  # documents before each cut
    borders[-1] = len(cut.documents) - 1  # empty documents at the end, too
    return cut, np.diff(borders, prepend=0).tolist()


def counts_of_fractions(fractions: Sequence[float], total: int) -> list[int]:
    """How many of `total` documents or tokens each part gets; the borders are the cumulative fractions times `total`,
    rounded half to even.

    `fractions` add up to 1, or are integers (969 30 1), which are divided by their sum.
    Raises: UserError for fractions that are neither, or not above 0.
    """
    if not fractions or any(not 0 < fraction < float("inf") for fraction in fractions):
        raise UserError(f"--fractions {_words(fractions)} must be numbers above 0, such as 0.9 0.1")
    integers = all(float(fraction).is_integer() for fraction in fractions)
    if not integers and abs(sum(fractions) - 1) > ROUNDING:
        rest = 1 - sum(fractions)
        scaled = [round(fraction / sum(fractions), 6) for fraction in fractions[:-1]]
        scaled.append(round(1 - sum(scaled), 6))
        another = (
            f" or, with another part for the rest, {_words([*fractions, rest])}" if rest > 0 else ""
        )
        raise UserError(
            f"--fractions {_words(fractions)} add up to {sum(fractions):g}, they must add up to 1: use "
            f"{_words(scaled)}{another}"
        )
    borders = [round(float(share) * total) for share in np.cumsum(fractions) / sum(fractions)]
    return np.diff(borders, prepend=0).tolist()


def check_counts(counts: Sequence[int], documents: int) -> list[int]:
    """Returns the counts. Raises: UserError where they are not above 0 or do not add up to all documents."""
    if any(count < 1 for count in counts) or sum(counts) != documents:
        raise UserError(
            f"--documents {_words(counts)} must be numbers above 0 that add up to all {documents} documents, "
            f"they add up to {sum(counts)}"
        )
    return list(counts)


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def write_pieces(prefix: str | Path, pieces: Sequence[DocumentRange]) -> MergeSummary:
    """Copies the pieces into one new corpus with its manifest; all three files appear only when they are complete."""
    _check_output(prefix, pieces)
    tokenizer = _tokenizer_of([piece.corpus for piece in pieces])
    digests = BlockDigests()
    with _new_files(prefix, digests) as (bin_file, idx_file):
        low, high, digest = _copy_ids(pieces, bin_file, digests)
        written = _write_index(str(prefix), pieces, idx_file)
        bin_bytes = bin_file.tell()
    manifest: dict[str, Any] = {"tokenizer": tokenizer} if tokenizer else {}
    manifest |= {
        "documents": written.documents,
        "sequences": written.sequences,
        "tokens": written.tokens,
        "min_token": low,
        "max_token": high,
        "bin_bytes": bin_bytes,
        "bin_sha256": digest,
        "idx_sha256": TokenReader(prefix).identity["idx_sha256"],
        "pieces": [_origin(piece) for piece in pieces],
    }
    write_manifest(prefix, manifest)
    return written


def _origin(piece: DocumentRange) -> dict[str, Any]:
    """Where a piece is from. With `cut_at`, the documents are those of the corpus after cuts at these tokens."""
    origin: dict[str, Any] = {"prefix": piece.reader.prefix, "documents": [piece.first, piece.stop]}
    if isinstance(piece.reader, CutCorpus):
        origin["cut_at"] = piece.reader.places
    return origin


def _check_output(prefix: str | Path, pieces: Sequence[DocumentRange]) -> None:
    output = os.path.realpath(bin_path(prefix))
    for piece in pieces:
        if os.path.realpath(bin_path(piece.reader.prefix)) == output:
            raise UserError(f"{prefix} is also an input; choose another output prefix")


def _tokenizer_of(readers: Sequence[TokenReader]) -> dict[str, Any] | None:
    """The tokenizer in the manifests, None if one of them names none. Raises: UserError where two of them differ."""
    known: dict[str, dict[str, Any]] = {}  # prefix -> tokenizer
    for reader in readers:
        manifest = read_manifest(reader) or {}
        tokenizer = manifest.get("tokenizer") or {}
        if "fingerprint" in tokenizer:
            known[reader.prefix] = tokenizer
    by_fingerprint = {tokenizer["fingerprint"]: prefix for prefix, tokenizer in known.items()}
    if len(by_fingerprint) > 1:
        (one, its), (other, theirs) = list(by_fingerprint.items())[:2]
        raise UserError(
            f"only corpora of the same tokenizer can be merged: {its} was made with {one[:16]}, "
            f"{theirs} with {other[:16]}; preprocess one of them again"
        )
    all_are_known = all(reader.prefix in known for reader in readers)
    return known[readers[0].prefix] if all_are_known else None


@contextmanager
def _new_files(prefix: str | Path, digests: BlockDigests) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens .bin and .idx under temporary names; at the end they are moved to their final names, or removed after an
    error. The caller must have added all of .bin to `digests` by then."""
    private = [partial_path(bin_path(prefix)), partial_path(idx_path(prefix))]
    files: list[IO[bytes]] = []
    try:
        files += [open_for_writing(path) for path in private]
        yield files[0], files[1]
        for file in files:
            flush_to_disk(file)
            file.close()
        put_in_place(private[0], private[1], prefix, digests)
    except OSError as error:
        raise UserError(
            f"{prefix} cannot be written: {error.strerror}; temporary files were removed"
        ) from error
    finally:
        for file, path in zip(files, private, strict=False):
            with suppress(OSError):  # a full disk raises again when the buffer cannot be written
                file.close()
            path.unlink(missing_ok=True)


def _copy_ids(
    pieces: Sequence[DocumentRange], file: IO[bytes], digests: BlockDigests
) -> tuple[int, int, str]:
    """Copies the ids; returns (smallest id, largest id, sha256 of everything written)."""
    low = 0
    high = -1
    digest = hashlib.sha256()
    for piece in pieces:
        for _, ids in piece.reader.blocks(*piece.sequences):
            low = min(low, int(ids.min()))
            high = max(high, int(ids.max()))
            digest.update(ids.data)
            digests.update(ids.data)
            file.write(ids.data)
    return low, high, digest.hexdigest()


def _write_index(prefix: str, pieces: Sequence[DocumentRange], file: IO[bytes]) -> MergeSummary:
    """Writes the index: lengths, then pointers, then documents, each in blocks over all pieces."""
    dtype = pieces[0].reader.dtype
    sequences = 0
    documents = 0
    for piece in pieces:
        first, stop = piece.sequences
        sequences += stop - first
        documents += piece.stop - piece.first
    file.write(HEADER.pack(MAGIC, VERSION, dtype_code(dtype), sequences, documents + 1))
    for lengths in _lengths(pieces):
        file.write(lengths.tobytes())
    tokens = 0
    for lengths in _lengths(pieces):
        ends = tokens + np.cumsum(lengths, dtype=np.int64)
        pointers = (ends - lengths) * dtype.itemsize
        file.write(pointers.astype("<i8").tobytes())
        tokens = int(ends[-1])
    file.write(np.zeros(1, "<i8").tobytes())
    before = 0
    for piece in pieces:
        first, stop = piece.sequences
        for start in range(piece.first + 1, piece.stop + 1, BLOCK):
            ends = piece.reader.documents[start : min(start + BLOCK, piece.stop + 1)]
            file.write((ends - first + before).astype("<i8").tobytes())
        before += stop - first
    return MergeSummary(prefix, documents, sequences, tokens)


def _lengths(pieces: Sequence[DocumentRange]) -> Iterator[np.ndarray]:
    for piece in pieces:
        first, stop = piece.sequences
        for start in range(first, stop, BLOCK):
            yield piece.reader.lengths[start : min(start + BLOCK, stop)]

"""Cuts a corpus at token positions inside its documents, without copying it.

    sequences    0: a b c d e f g h        1: i j          cut after 5 and after 8 tokens
    cut          0: a b c d e    1: f g h  2: i j          ends = [1, 2]

`--split` and `data split` do so where a corpus has too few documents for all shares.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from megascratch.data.tokens.token_files import TokenReader


class CutCorpus:
    """The sequences of a corpus, some of them cut in two: a source of samples, and an input of `data split`.

    Attributes: `places` the token positions of the cuts, rising, from 0 to the number of tokens; `ends` how many of the
    new sequences are before each place; `lengths` int32 [S] tokens per new sequence; `documents` int64 [D] the first
    sequence of each document, and their number: a document with a cut in it is two documents.
    """

    def __init__(self, reader: TokenReader, places: Sequence[int]):
        self.reader = reader
        self.prefix = reader.prefix
        self.dtype = reader.dtype
        self.places = list(places)
        stops = np.cumsum(reader.lengths, dtype=np.int64)
        begins = stops - reader.lengths
        inside = np.setdiff1d(self.places, np.append(begins, reader.tokens)).astype(np.int64)
        sequences = np.searchsorted(begins, inside, side="right") - 1  # those that are cut
        new_begins = np.insert(begins, sequences + 1, inside)
        self._original = np.insert(np.arange(len(reader)), sequences + 1, sequences)
        self._offsets = new_begins - begins[self._original]
        self.lengths = np.diff(new_begins, append=reader.tokens).astype(np.int32)
        self.ends: list[int] = np.searchsorted(new_begins, self.places, side="left").tolist()
        borders = reader.documents + np.searchsorted(sequences, reader.documents, side="left")
        self.documents = np.sort(np.append(borders, np.setdiff1d(self.ends, borders)))
        rests = sequences + 1 + np.arange(len(sequences))
        self._in_pieces = np.union1d(rests - 1, rests)  # new sequences that are not whole ones

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines an index: the corpus, and where it is cut."""
        return {**self.reader.identity, "cut": self.places}

    def token_range(self) -> tuple[int, int]:
        """Smallest and largest id, by reading all of them."""
        return self.reader.token_range()

    def in_corpus(self, pieces: np.ndarray) -> np.ndarray:
        """Pieces [n, 3] (sequence, offset, count), by the sequences of the corpus instead of the new ones."""
        sequences, offsets, counts = pieces.T
        return np.column_stack(
            [self._original[sequences], offsets + self._offsets[sequences], counts]
        )

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Ids [length] of a new sequence from token `offset` (default: to its end)."""
        if length is None:
            length = int(self.lengths[sequence]) - offset
        (piece,) = self.in_corpus(np.array([[sequence, offset, length]])).tolist()
        return self.reader.get(*piece)

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated."""
        return self.reader.read(self.in_corpus(pieces))

    def blocks(self, first: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """All ids of the new sequences [first, stop) in order: (offset in .bin, ids), as in `TokenReader`."""
        while first < stop:
            at = int(np.searchsorted(self._in_pieces, first))
            whole_until = int(self._in_pieces[at]) if at < len(self._in_pieces) else stop
            original = int(self._original[first])
            if whole_until == first:
                skipped = int(self._offsets[first]) * self.dtype.itemsize
                yield int(self.reader.pointers[original]) + skipped, self.get(first)
                first += 1
            else:
                end = min(whole_until, stop)
                yield from self.reader.blocks(original, original + end - first)
                first = end

"""Reads a corpus with a loss mask: {prefix}_loss_mask.bin/.idx hold, for each token, 1 where it is to be learned.

In a sample a token that is not to be learned is stored as its complement, ~id, so that whatever moves tokens (packing,
blends, fill-in-the-middle) moves the mask with them; `batch.collate` separates the two again.
"""

from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path


def mask_prefix(prefix: str | Path) -> str:
    """Prefix of the mask's two files."""
    return f"{prefix}_loss_mask"


def has_mask(prefix: str | Path) -> bool:
    """Whether a corpus has a mask or only one of its two files: half a mask is refused later, not ignored."""
    mask = mask_prefix(prefix)
    return idx_path(mask).exists() or bin_path(mask).exists()


def mask_of(reader: TokenReader | CutCorpus) -> TokenReader | CutCorpus:
    """The mask of a corpus, cut at the same places."""
    mask = TokenReader(mask_prefix(reader.prefix))
    return CutCorpus(mask, reader.places) if isinstance(reader, CutCorpus) else mask


class Masked:
    """A reader whose samples mark the tokens that are not to be learned.

    Raises: UserError where the mask is damaged or belongs to another corpus.
    """

    def __init__(self, reader: TokenReader | CutCorpus):
        self.reader = reader
        self.mask = mask_of(reader)
        self.prefix = reader.prefix
        self.lengths = reader.lengths
        low, high = self.mask.token_range()
        if high > 1 or not np.array_equal(self.mask.lengths, reader.lengths):
            raise UserError(
                f"{self.mask.prefix} is not a loss mask of {reader.prefix}: {len(self.mask)} sequences with values "
                f"from {low} to {high}, expected {len(reader)} of the "
                f"same lengths with 0 and 1; make both again, or remove the mask's two files"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What determines an index; the mask does not."""
        return self.reader.identity

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Plain ids [length] of a sequence from token `offset` (default: to its end)."""
        return self.reader.get(sequence, offset, length)

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3]; those that are not to be learned are replaced by their complements."""
        ids = self.reader.read(pieces)
        is_learned = self.mask.read(pieces) > 0
        return np.where(is_learned, ids, ~ids)

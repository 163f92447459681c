"""Fill-in-the-middle (arXiv 2207.14255): rearranges some documents of a sample as prefix, suffix, middle.

Each document of a sample (the tokens between its end-of-document ids) is rearranged with probability `rate`: two cuts
at random places make three parts, and three special ids mark them:

    PSM   <prefix> prefix <suffix> suffix <middle> middle
    SPM   <prefix> <suffix> suffix <middle> prefix middle         with probability `spm_rate`

A sample keeps its length: a document loses its last three tokens to the special ids. All choices are a function of
(seed, sample, place of the document in it), so they are the same on every layout and after every resume (law 4).
"""

from typing import NamedTuple

import numpy as np

from megascratch.data.samples.dataset import Dataset, TokenSpan
from megascratch.data.tokens.indices import stream_key
from megascratch.data.tokens.indices_python import GAMMA, mix64

FILL_IN_MIDDLE = 4  # purpose of a random key, distinct from those in dataset.py
SPECIAL = 3  # ids added to a document


class Choices(NamedTuple):
    """How often documents are rearranged, and the special ids."""

    rate: float
    spm_rate: float
    prefix: int
    middle: int
    suffix: int


class FillInMiddle:
    """The samples of `dataset`, some of their documents rearranged. `eod` None: a sample is one document."""

    def __init__(self, dataset: Dataset, choices: Choices, *, seed: int, eod: int | None):
        self.dataset, self.choices, self.seed, self.eod = dataset, choices, seed, eod

    def __len__(self) -> int:
        return len(self.dataset)

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, before they are rearranged."""
        return self.dataset.spans(number)

    def __getitem__(self, number: int) -> np.ndarray:
        tokens = self.dataset[number].copy()
        ends = np.flatnonzero((tokens == self.eod) | (tokens == ~self.eod)).tolist() if self.eod is not None else []
        for place, (start, stop) in enumerate(zip([0, *(end + 1 for end in ends)], [*ends, len(tokens)], strict=True)):
            key = stream_key(self.seed, number, FILL_IN_MIDDLE, place)
            tokens[start:stop] = rearranged(tokens[start:stop], self.choices, key)
        return tokens


def rearranged(document: np.ndarray, choices: Choices, key: int) -> np.ndarray:
    """The document [n], unchanged or in one of the two orders, with the same length; it depends only on `key`."""
    chosen, spm, one, other = (mix64(key + draw * GAMMA) for draw in range(1, 5))
    room = len(document) - SPECIAL
    if room < 1 or chosen >= choices.rate * 2**64:
        return document
    low, high = sorted((one * (room + 1) >> 64, other * (room + 1) >> 64))
    prefix, middle, suffix = document[:low], document[low:high], document[high:room]
    before_prefix, before_middle, before_suffix = np.array([[choices.prefix], [choices.middle], [choices.suffix]])
    if spm < choices.spm_rate * 2**64:
        return np.concatenate([before_prefix, before_suffix, suffix, before_middle, prefix, middle])
    return np.concatenate([before_prefix, prefix, before_suffix, suffix, before_middle, middle])

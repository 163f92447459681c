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

from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.views import DatasetView
from megascratch.data.tokens.indices import stream_key
from megascratch.parallel.splitmix import GAMMA, mix64

FILL_IN_MIDDLE = 4  # purpose of a random key, distinct from those in dataset.py
SPECIAL = 3  # ids added to a document


class Choices(NamedTuple):
    """How often documents are rearranged, and the special ids."""

    rate: float
    spm_rate: float
    prefix: int
    middle: int
    suffix: int


class FillInMiddle(DatasetView):
    """The samples of `dataset`, some of their documents rearranged. `eod` None: a sample is one document.

    `spans` are those of the tokens before they are rearranged.
    """

    def __init__(self, dataset: Dataset, choices: Choices, *, seed: int, eod: int | None):
        self.parts = [dataset]
        self.choices = choices
        self.seed = seed
        self.eod = eod

    def __len__(self) -> int:
        return len(self.parts[0])

    def origin(self, number: int) -> tuple[int, int]:
        return 0, number

    def __getitem__(self, number: int) -> np.ndarray:
        tokens = super().__getitem__(number).copy()
        ends = []  # place of the eod after each document but the last
        if self.eod is not None:
            is_eod = (tokens == self.eod) | (tokens == ~self.eod)
            ends = np.flatnonzero(is_eod).tolist()
        start = 0
        for document, stop in enumerate([*ends, len(tokens)]):
            key = stream_key(self.seed, number, FILL_IN_MIDDLE, document)
            tokens[start:stop] = rearranged(tokens[start:stop], self.choices, key)
            start = stop + 1
        return tokens


def rearranged(document: np.ndarray, choices: Choices, key: int) -> np.ndarray:
    """The document [n], unchanged or in one of the two orders, with the same length; it depends only on `key`."""
    # each 0 ... 2^64 - 1
    chosen, spm, one, other = (mix64(key + draw * GAMMA) for draw in range(1, 5))
    room = len(document) - SPECIAL
    if room < 1 or chosen >= choices.rate * 2**64:
        return document
    one_cut = one * (room + 1) >> 64
    other_cut = other * (room + 1) >> 64
    low = min(one_cut, other_cut)
    high = max(one_cut, other_cut)
    prefix = document[:low]
    middle = document[low:high]
    suffix = document[high:room]
    before_prefix = np.array([choices.prefix])
    before_middle = np.array([choices.middle])
    before_suffix = np.array([choices.suffix])
    if spm < choices.spm_rate * 2**64:
        return np.concatenate([before_prefix, before_suffix, suffix, before_middle, prefix, middle])
    return np.concatenate([before_prefix, prefix, before_suffix, suffix, before_middle, middle])

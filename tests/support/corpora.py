"""Small corpora for the tests, among them the two that MMIDIDX's golden values were measured on."""

from pathlib import Path

import numpy as np

from megascratch.data.tokens.token_files import TokenWriter


def write(prefix: Path, documents: list, dtype: str = "uint16") -> str:
    """One corpus of the documents; gives its prefix."""
    with TokenWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return str(prefix)


def golden(prefix: Path, documents: int, seed: int) -> str:
    """Documents of 1 to 119 random ids below 999."""
    random = np.random.RandomState(seed)
    return write(
        prefix, [random.randint(0, 999, size=random.randint(1, 120)) for _ in range(documents)]
    )


def counting(prefix: Path, lengths: list[int]) -> str:
    """Documents whose tokens, read one after the other, are 0, 1, 2 ..."""
    ends = np.cumsum(lengths)
    return write(
        prefix,
        [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)],
        "int32",
    )


class Numbers:
    """Sample i of part p is [p, i]."""

    def __init__(self, part, size):
        self.part, self.size = part, size

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return np.array([self.part, number])

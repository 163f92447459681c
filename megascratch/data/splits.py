"""Settings in, data sets out: opens and checks every corpus and gives train, valid and test."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.dataset import Blend, Corpus, Dataset
from megascratch.data.indexed import Reader
from megascratch.data.manifest import check_corpus
from megascratch.data.mock import MockReader
from megascratch.data.split import DEFAULT_SPLIT, SPLITS, prefixes_and_weights, ranges, shares


class Splits(NamedTuple):
    """What a run reads; None where no samples are asked for, or the split's share is 0. `train` has no end."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None


def open_splits(
    data: DataConfig,
    *,
    seed: int,
    vocab_size: int,
    eod: int | None = None,
    fingerprint: str | None = None,
    train_samples: int = 0,
    valid_samples: int = 0,
    test_samples: int = 0,
) -> Splits:
    """Opens what `data` names. `fingerprint` is the tokenizer's; the numbers of samples say which splits are needed.

    Raises: UserError for missing or damaged files, ids outside the vocabulary, another tokenizer, and splits without
    a sample that are asked for samples.
    """
    wanted = dict(zip(SPLITS, (train_samples, valid_samples, test_samples), strict=True))
    own = dict(zip(SPLITS, (data.train_data_path, data.valid_data_path, data.test_data_path), strict=True))
    opener = _Opener(data, seed, vocab_size, fingerprint)

    def dataset(name: str) -> Dataset | None:
        if wanted[name] <= 0:
            return None
        if data.mock_data:
            return opener.mock(name, eod)
        if any(own.values()):
            words = own[name]
            return None if words is None else opener.whole(words, name)
        if data.data_path is None:
            raise UserError("no data: give --data-path, --train-data-path or --mock-data")
        return opener.share(data.data_path, name)

    return Splits(*(dataset(name) for name in SPLITS))


class _Opener:
    """Opens each corpus once, however many splits read it."""

    def __init__(self, data: DataConfig, seed: int, vocab_size: int, fingerprint: str | None):
        self.data, self.seed, self.vocab_size, self.fingerprint = data, seed, vocab_size, fingerprint
        self._readers: dict[str, Reader] = {}

    def mock(self, name: str, eod: int | None) -> Dataset:
        source = MockReader(self.vocab_size, eod)
        limits = ranges("1,1,1", len(source))[SPLITS.index(name)]
        assert limits is not None
        return Corpus(
            source, *limits, seq_length=self.data.seq_length, seed=self.seed, finite=name != "train", cache=None
        )

    def whole(self, words: Sequence[str], name: str) -> Dataset:
        """Every sequence of the corpora belongs to this split."""
        prefixes, weights = prefixes_and_weights(words, f"--{name}-data-path")
        return self._mix(
            [self._corpus(prefix, 0, len(self._reader(prefix)), name) for prefix in prefixes], weights, name
        )

    def share(self, words: Sequence[str], name: str) -> Dataset | None:
        """The part of the corpora that `--split` gives to this split."""
        split = self.data.split or DEFAULT_SPLIT
        if shares(split)[SPLITS.index(name)] == 0:
            return None
        prefixes, weights = prefixes_and_weights(words, "--data-path")
        return self._mix([self._part(prefix, split, name) for prefix in prefixes], weights, name)

    def _part(self, prefix: str, split: str, name: str) -> Corpus:
        sequences = len(self._reader(prefix))
        first, stop = ranges(split, sequences)[SPLITS.index(name)] or (0, 0)
        if first == stop:
            raise UserError(
                f"--split {split} leaves no sequence of {prefix} ({sequences} sequences) to {name}, which is asked for "
                f"samples; give it a larger share, at least about {1 / max(sequences, 1):.3g} of the whole, or 0"
            )
        return self._corpus(prefix, first, stop, name)

    def _corpus(self, prefix: str, first: int, stop: int, name: str) -> Corpus:
        return Corpus(
            self._reader(prefix),
            first,
            stop,
            seq_length=self.data.seq_length,
            seed=self.seed,
            finite=name != "train",
            cache=self._cache(prefix),
        )

    def _mix(self, parts: list[Corpus], weights: list[float] | None, name: str) -> Dataset:
        if len(parts) == 1:
            return parts[0]
        return Blend(parts, weights or [float(len(part)) for part in parts], finite=name != "train")

    def _cache(self, prefix: str) -> Path:
        return Path(self.data.data_cache_path or Path(prefix).parent / "cache")

    def _reader(self, prefix: str) -> Reader:
        if prefix not in self._readers:
            reader = Reader(prefix)
            check_corpus(reader, self.vocab_size, self.fingerprint, self._cache(prefix))
            self._readers[prefix] = reader
        return self._readers[prefix]

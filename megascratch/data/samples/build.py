"""Builds the train, valid and test datasets from the settings: opens and checks every corpus first.

With `--mock-data` there are no corpora: `MockReader` makes sequences without files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from megascratch.config.errors import Problems, UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.dataset import Corpus, Dataset, SingleSourceDataset, WeightedSource
from megascratch.data.samples.fill_in_middle import Choices, FillInMiddle
from megascratch.data.samples.megatron_order import MegatronBlend, MegatronCorpus, sizes_to_build
from megascratch.data.samples.own_order import OwnOrder
from megascratch.data.samples.packing import Packed
from megascratch.data.samples.split_spec import (
    DEFAULT_SPLIT,
    SPLITS,
    has_too_few_sequences,
    named_prefixes,
    prefixes_and_weights,
    ranges,
    shares,
)
from megascratch.data.samples.views import Blend, Curriculum
from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, KnownDigests
from megascratch.data.tokens.loss_mask import Masked, has_mask
from megascratch.data.tokens.manifest import check_corpus
from megascratch.data.tokens.remote import open_corpus
from megascratch.data.tokens.token_files import TokenReader

MOCK_SEQUENCES = 100_000
MOCK_LONGEST = 4096
FEWEST = 2  # tokens of a sample: one to read, one to predict


class Sequences(NamedTuple):
    """Sequences [first, stop) of a source."""

    source: TokenReader | CutCorpus
    first: int
    stop: int


class Splits(NamedTuple):
    """The datasets of a run; None where no samples are needed, or the split's share is 0. `train` is endless."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None
    corpora: Mapping[str, TokenReader]
    """Every corpus that was opened, by the prefix that the user gave."""
    ordered: Sequence[SingleSourceDataset] = ()
    """Every part of a corpus in the order in which a split reads it; each knows the index caches it opened."""
    cuts: Sequence[str] = ()
    """A sentence for each corpus that is cut inside a document."""

    def order_digests(self, first_sample: int) -> dict[str, str]:
        """Digests to compare the reading order of machines: of the first sample, and of the index caches."""
        assert self.train is not None
        sample = np.ascontiguousarray(self.train[first_sample], dtype=np.int64)
        digests: list[str] = []
        for part in self.ordered:
            digests += part.index_digests()
        caches = " ".join(sorted(digests))
        return {
            f"sample {first_sample}": xxhash.xxh3_128_hexdigest(sample.tobytes()),
            "index caches": xxhash.xxh3_128_hexdigest(caches.encode()) if caches else "none",
        }


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
    samples_read: int | None = None,
    known: KnownDigests = NOTHING_KNOWN,
) -> Splits:
    """Opens the corpora in `data`. `fingerprint` is the tokenizer's; a split with 0 samples is not needed.

    Args:
        samples_read: how many of `train_samples` training reads; None: all of them.
        known: digests of files that need not be computed again.

    Raises: UserError for missing or damaged files, ids outside the vocabulary, another tokenizer, and needed splits
    without a sample.
    """
    wanted = {"train": train_samples, "valid": valid_samples, "test": test_samples}
    own = {
        "train": data.train_data_path,
        "valid": data.valid_data_path,
        "test": data.test_data_path,
    }
    read = train_samples if samples_read is None else samples_read
    opener = _Opener(data, seed, vocab_size, fingerprint, wanted, read, known)
    opener.open_all(named_prefixes(_words_of(data, own, wanted)))

    def dataset(name: str) -> Dataset | None:
        if wanted[name] <= 0:
            return None
        if data.mock_data:
            return opener.mock(name, eod)
        if any(own.values()):
            words = own[name]
            return None if words is None else opener.all_sequences(words, name)
        if data.data_path is None:
            raise UserError("no data: give --data-path, --train-data-path or --mock-data")
        return opener.share(data.data_path, name)

    train = dataset("train")
    valid = dataset("valid")
    test = dataset("test")
    if train is not None and data.fim_rate > 0:
        choices = Choices(
            rate=data.fim_rate,
            spm_rate=data.fim_spm_rate,
            prefix=data.fim_prefix_id or 0,
            middle=data.fim_middle_id or 0,
            suffix=data.fim_suffix_id or 0,
        )
        train = FillInMiddle(train, choices, seed=seed, eod=eod)
    return Splits(train, valid, test, opener.readers, opener.ordered, opener.cut_notices())


def _words_of(
    data: DataConfig, own: Mapping[str, list[str] | None], wanted: Mapping[str, int]
) -> Iterator[list[str] | None]:
    """The arguments that name the corpora of the needed splits."""
    if data.mock_data:
        return
    if any(own.values()):
        for name in SPLITS:
            if wanted[name] > 0:
                yield own[name]
    else:
        yield data.data_path
    for stage in data.data_stages or ():
        yield stage.split()[1:]


class _Opener:
    """Opens each corpus once, however many splits read it."""

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        vocab_size: int,
        fingerprint: str | None,
        wanted: dict[str, int],
        read: int,
        known: KnownDigests,
    ):
        self.data = data
        self.seed = seed
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.wanted = wanted
        self.read = read
        self.known = known
        self.readers: dict[str, TokenReader] = {}
        self.cut: dict[str, CutCorpus] = {}
        self.ordered: list[SingleSourceDataset] = []

    def open_all(self, prefixes: Sequence[str]) -> None:
        """Opens all corpora. Raises: UserError with every problem of every corpus."""
        problems = Problems()
        for prefix in prefixes:
            problems.attempt(partial(self._reader, prefix))
        problems.require_none()

    def mock(self, name: str, eod: int | None) -> Dataset:
        source = MockReader(self.vocab_size, eod)
        limits = ranges("1,1,1", len(source))[SPLITS.index(name)]
        assert limits is not None
        return self._ordered(source, limits, name, self.wanted[name], None)

    def cut_notices(self) -> list[str]:
        """A sentence for each corpus that is cut inside a document."""
        split = self.data.split or DEFAULT_SPLIT
        return [cut_notice(corpus, f"--split {split}") for corpus in self.cut.values()]

    def all_sequences(self, words: Sequence[str], name: str) -> Dataset:
        """A dataset of all sequences of the corpora, for one split."""

        def all_of(prefix: str) -> Sequences:
            reader = self._reader(prefix)
            return Sequences(reader, 0, len(reader))

        return self._mix(words, f"--{name}-data-path", name, all_of)

    def share(self, words: Sequence[str], name: str) -> Dataset | None:
        """A dataset of the part of the corpora that `--split` gives to this split."""
        split = self.data.split or DEFAULT_SPLIT
        at = SPLITS.index(name)
        if shares(split)[at] == 0:
            return None

        def part_of(prefix: str) -> Sequences:
            reader = self._reader(prefix)
            order = self.data.data_order
            if order != "megatron" and has_too_few_sequences(split, len(reader)):
                return self._cut_part(reader, split, name)
            first, stop = ranges(split, len(reader))[at] or (0, 0)
            if first == stop:
                raise _no_sequence(reader, split, name, order)
            return Sequences(reader, first, stop)

        return self._mix(words, "--data-path", name, part_of)

    def _cut_part(self, reader: TokenReader, split: str, name: str) -> Sequences:
        """The part of a corpus with too few sequences for `split`: it is cut at token positions."""
        limits = ranges(split, reader.tokens)
        if reader.prefix not in self.cut:
            borders = {
                stop for first_and_stop in limits if first_and_stop for stop in first_and_stop
            }
            self.cut[reader.prefix] = CutCorpus(reader, sorted(borders))
        corpus = self.cut[reader.prefix]
        at_token, end_token = _or_nothing(limits[SPLITS.index(name)])
        if name != "train" and end_token - at_token < FEWEST:
            raise _too_few_tokens(reader, split, name)
        first = corpus.ends[corpus.places.index(at_token)]
        return Sequences(corpus, first, corpus.ends[corpus.places.index(end_token)])

    def _mix(
        self, words: Sequence[str], flag: str, name: str, part_of: Callable[[str], Sequences]
    ) -> Dataset:
        if name == "train" and self.data.data_stages:
            return self._staged(words, flag, part_of)
        prefixes, weights = prefixes_and_weights(words, flag)
        if len(prefixes) == 1:
            (prefix,) = prefixes
            return self._corpus(part_of(prefix), name, self.wanted[name])
        sizes: Sequence[int | None] = [None] * len(prefixes)
        if weights:
            sizes = sizes_to_build(weights, self.wanted[name])
        parts = []
        for prefix, size in zip(prefixes, sizes, strict=True):
            parts.append(self._corpus(part_of(prefix), name, size))
        if self.data.data_order == "megatron":
            return self._megatron_blend(parts, weights, name)
        if weights is None:
            weights = [float(len(part)) for part in parts]
        return Blend(parts, weights, finite=name != "train")

    def _megatron_blend(
        self, parts: list[Dataset], weights: list[float] | None, name: str
    ) -> MegatronBlend:
        mixed = MegatronBlend(parts, weights, self.wanted[name])
        if name == "train" and len(mixed) < self.read:
            raise UserError(
                f"the blend has {len(mixed)} samples in one epoch, training reads {self.read}; without weights "
                f"--data-order megatron reads each sample at most once: give weights, or train for fewer samples"
            )
        return mixed

    def _corpus(self, part: Sequences, name: str, wanted: int | None) -> Dataset:
        prefix = part.source.prefix
        source = Masked(part.source) if has_mask(prefix) else part.source
        return self._ordered(source, part[1:], name, wanted, self._cache(prefix))

    def _ordered(
        self,
        source: WeightedSource,
        limits: tuple[int, int],
        name: str,
        wanted: int | None,
        cache: Path | None,
    ) -> Dataset:
        """Sequences [first, stop) in the configured order; `wanted` samples are enough (None: one epoch)."""
        length = self.data.seq_length
        seed = self.seed
        finite = name != "train"
        dataset: SingleSourceDataset
        if self.data.data_order == "megatron":
            dataset = MegatronCorpus(
                source, *limits, seq_length=length, seed=seed, wanted=wanted, cache=cache
            )
        elif not finite and self.data.data_order != "keyed":
            dataset = OwnOrder(
                source, *limits, name=self.data.data_order, seq_length=length, seed=seed
            )
        elif self.data.packing == "best-fit":
            dataset = Packed(
                source, *limits, seq_length=length, seed=seed, finite=finite, cache=cache
            )
        else:
            dataset = Corpus(
                source, *limits, seq_length=length, seed=seed, finite=finite, cache=cache
            )
        self.ordered.append(dataset)
        return dataset

    def _staged(
        self, words: Sequence[str], flag: str, part_of: Callable[[str], Sequences]
    ) -> Curriculum:
        """The blend of `flag` from sample 0, then those of --data-stages."""
        firsts = [0]
        blends = [prefixes_and_weights(words, flag)]
        for stage in self.data.data_stages or ():
            first, *words = stage.split()
            firsts.append(int(first))
            blends.append(prefixes_and_weights(words, "--data-stages"))
        corpora: dict[str, Dataset] = {}
        for prefixes, _ in blends:
            for prefix in prefixes:
                if prefix not in corpora:
                    corpora[prefix] = self._corpus(part_of(prefix), "train", None)
        stage_weights = []
        for prefixes, weights in blends:
            if weights is None:
                weights = [len(corpora[prefix]) for prefix in prefixes]
            weight_of = dict.fromkeys(corpora, 0.0)
            for prefix, weight in zip(prefixes, weights, strict=True):
                weight_of[prefix] += weight
            stage_weights.append(list(weight_of.values()))
        return Curriculum(list(corpora.values()), firsts, stage_weights)

    def _cache(self, prefix: str) -> Path:
        if self.data.data_cache_path:
            return Path(self.data.data_cache_path)
        return Path(prefix).parent / "cache"

    def _reader(self, prefix: str) -> TokenReader:
        if prefix not in self.readers:
            reader = open_corpus(prefix, self.data.data_cache_path, self.known)
            check_corpus(reader, self.vocab_size, self.fingerprint, self._cache(prefix))
            self.readers[prefix] = reader
        return self.readers[prefix]


def cut_notice(corpus: CutCorpus, flag: str) -> str:
    """Says that a corpus is cut inside a document because it has too few of them for the shares of `flag`."""
    documents = len(corpus.reader.documents) - 1
    tokens = corpus.reader.tokens
    places = [f"{place:,}" for place in corpus.places if 0 < place < tokens]
    return (
        f"{corpus.prefix} has too few documents for {flag} ({documents:,}): it is cut inside a document, after "
        f"{' and '.join(places)} of {tokens:,} tokens"
    )


def _no_sequence(reader: TokenReader, split: str, name: str, order: str) -> UserError:
    """The error for a share without a sequence, in a corpus that may not be cut inside a document."""
    remedy = f"give it files of its own with --train-data-path and --{name}-data-path"
    if order == "megatron":
        remedy = f"use --data-order keyed, which does, or {remedy}"
        if name == "valid":
            remedy += ", or --split 1,0,0 to train without validation"
    never = ", which Megatron's order never cuts" if order == "megatron" else ""
    return UserError(
        f"--split {split} leaves no sequence of {reader.prefix} (it has {len(reader)}{never}) to {name}: {remedy}"
    )


def _too_few_tokens(reader: TokenReader, split: str, name: str) -> UserError:
    """The error for a share of a corpus that is cut inside a document, and too small for one prediction."""
    tokens = [stop - first for first, stop in map(_or_nothing, ranges(split, reader.tokens))]
    at = SPLITS.index(name)
    what = (
        f"--split {split} gives {name} {tokens[at]} of the {reader.tokens} tokens of {reader.prefix}, which needs at "
        f"least {FEWEST}"
    )
    tokens[0] -= FEWEST - tokens[at]
    tokens[at] = FEWEST
    if tokens[0] < FEWEST:
        return UserError(f"{what}: use more text")
    return UserError(f"{what}: use --split {','.join(map(str, tokens))} or a larger share")


def _or_nothing(limits: tuple[int, int] | None) -> tuple[int, int]:
    return limits or (0, 0)


class MockReader:
    """Synthetic data (`--mock-data`, as in Megatron), the same on every machine.

    100,000 sequences of 1 to 4,095 tokens: 1, 2, 3 ... modulo the vocabulary, then `eod` (if there is one).
    """

    prefix = "mock data"

    def __init__(self, vocab_size: int, eod: int | None):
        self.vocab_size = vocab_size
        self.eod = eod
        self.lengths = np.random.default_rng(0).integers(
            1, MOCK_LONGEST, size=MOCK_SEQUENCES, dtype=np.int32
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the sequences."""
        return {"mock": MOCK_SEQUENCES, "vocab_size": self.vocab_size, "eod": self.eod}

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Ids [length] of a sequence from token `offset` (default: to its end)."""
        end = int(self.lengths[sequence])
        stop = end if length is None else offset + length
        ids = np.arange(offset + 1, stop + 1, dtype=np.int64) % self.vocab_size
        if self.eod is not None and stop == end and len(ids):
            ids[-1] = self.eod
        return ids

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated."""
        ids = [np.empty(0, np.int64)]
        for sequence, offset, count in pieces.tolist():
            ids.append(self.get(sequence, offset, count))
        return np.concatenate(ids)

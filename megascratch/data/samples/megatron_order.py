"""Reads samples in exactly Megatron-LM's order (`--data-order megatron`), so that a run can be moved here midway.

Megatron's GPTDataset concatenates E epochs of all sequences, E just large enough for the samples a run asks for:

    document_index   the sequences E times, shuffled together
    sample_index     (place in document_index, offset) of token 0, L, 2 L ...
    shuffle_index    the order in which the samples are read

With one exception: if less than 80 % of the last epoch's samples are needed, its sequences and samples are shuffled
separately, after the others. All shuffles draw from one MT19937 generator, NumPy's RandomState(seed).

So sample i depends on how many samples are asked for: another `train_iters` gives another order. `Corpus`, the default,
does not depend on it.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.samples.dataset import NO_PIECES, Dataset, SingleSourceDataset, WeightedSource
from megascratch.data.samples.views import Blend, DatasetView
from megascratch.data.tokens.index_cache import BlockwiseArray, in_memory, load_or_build
from megascratch.data.tokens.indices import legacy_shuffle, pieces_between, sample_rows

FORMAT = 1  # version of the cached indices; part of their key
SEPARATE_BELOW = 0.80  # fraction of an epoch's samples
SURPLUS = 0.005  # fraction of samples built beyond those a blend is expected to take
ROWS = 1 << 20  # rows of the sample index built together
NARROW = np.iinfo(np.int32).max


class Epochs(NamedTuple):
    """How often the sequences are repeated, and how many samples that gives."""

    repeats: int
    """Number of concatenated epochs."""
    samples: int
    """Samples in all of them."""
    alone: int | None
    """First sample of a last epoch that is shuffled separately; None: there is none."""


def epochs(tokens: int, wanted: int | None, seq_length: int) -> Epochs:
    """The fewest epochs of `tokens` > 0 tokens that hold `wanted` samples; None: one epoch."""
    wanted = wanted or 0
    needed_tokens = wanted * seq_length + 1
    repeats = max(-(-needed_tokens // tokens), 1)  # rounded up
    samples = (repeats * tokens - 1) // seq_length
    before_last = ((repeats - 1) * tokens - 1) // seq_length
    per_epoch = (tokens - 1) // seq_length
    separate = repeats > 1 and wanted - before_last < int(SEPARATE_BELOW * per_epoch)
    return Epochs(repeats, samples, before_last if separate else None)


def validation_start(step: int, eval_interval: int, samples: int, size: int) -> int:
    """First sample of the validation after `step` steps, with `samples` samples per validation. As in Megatron, each
    validation continues where the previous one ended, so this depends only on the step. After the last complete
    validation that fits into the dataset of `size` samples, the next one starts at sample 0 again."""
    previous = max(step - 1, 0) // eval_interval
    per_pass = max(size // samples, 1)
    return previous % per_pass * samples


class MegatronCorpus(SingleSourceDataset):
    """Sequences [first, stop) of one source in Megatron's order: a dataset of at least `wanted` samples.

    `wanted` None: one epoch. `seed` is a NumPy seed, below 2^32. `cache` is the folder of the index cache; None:
    build in memory.

    Raises: UserError where the range has too few tokens for one sample.
    """

    def __init__(
        self,
        source: WeightedSource,
        first: int,
        stop: int,
        *,
        seq_length: int,
        seed: int,
        wanted: int | None,
        cache: Path | None,
    ):
        super().__init__(source, first, stop, seq_length, seed, cache)
        self.epochs = epochs(max(self.tokens, 1), wanted, seq_length)
        if self.epochs.samples < 1 or self.tokens == 0:
            raise UserError(
                f"{source.prefix}: sequences {first} to {stop} hold {self.tokens} tokens, one sample of --seq-length "
                f"{seq_length} needs {seq_length + 1}; use more text or a shorter --seq-length"
            )
        arrays = (
            in_memory(self._build())
            if cache is None
            else load_or_build(cache, self._key(), self._build)
        )
        self.documents = arrays["document_index"]
        self.cuts = arrays["sample_index"]
        self.order = arrays["shuffle_index"]

    def __len__(self) -> int:
        return self.epochs.samples

    def pieces(self, number: int) -> np.ndarray:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        if number >= len(self):
            return NO_PIECES
        cut = int(self.order[number])
        (place, offset), (last_place, last_offset) = self.cuts[cut : cut + 2].tolist()
        return pieces_between(
            self.source.lengths, self.documents, place, offset, last_place, last_offset
        )

    def index_keys(self) -> list[dict[str, Any]]:
        return [self._key()]

    def _key(self) -> dict[str, Any]:
        """Everything that determines the index."""
        return {
            **self.source.identity,
            "split": [self.first, self.stop],
            "seq_length": self.seq_length,
            "megatron": FORMAT,
            "seed": self.seed,
            "epochs": list(self.epochs),
        }

    def _build(self) -> dict[str, np.ndarray | BlockwiseArray]:
        random = np.random.RandomState(self.seed).get_state(legacy=False)["state"]
        state = np.append(random["key"], random["pos"]).astype(np.uint32)
        documents = self._document_index(state)
        samples = self.epochs.samples
        largest_entry = max(len(documents), int(self.source.lengths.max()))
        cut_dtype = np.dtype(np.int32 if largest_entry <= NARROW else np.int64)
        cuts = BlockwiseArray(cut_dtype, (samples + 1, 2), self._sample_index(documents, cut_dtype))
        fits_uint32 = samples < np.iinfo(np.uint32).max - 1
        order_dtype = np.dtype(np.uint32 if fits_uint32 else np.int64)
        order = BlockwiseArray(order_dtype, (samples,), self._shuffle_index(order_dtype, state))
        return {"document_index": documents, "sample_index": cuts, "shuffle_index": order}

    def _document_index(self, state: np.ndarray) -> np.ndarray:
        repeats, _, alone = self.epochs
        dtype = np.int32 if self.stop <= NARROW else np.int64
        documents = np.empty((repeats, self.stop - self.first), dtype)
        documents[:] = np.arange(self.first, self.stop, dtype=dtype)
        together = repeats if alone is None else repeats - 1  # epochs that are shuffled together
        legacy_shuffle(documents[:together].reshape(-1), state)
        legacy_shuffle(documents[together:].reshape(-1), state)
        return documents.reshape(-1)

    def _sample_index(self, documents: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
        last = np.zeros((1, 2), dtype)
        yield last
        for start in range(0, self.epochs.samples, ROWS):
            rows = min(ROWS, self.epochs.samples - start)
            place, offset = last[-1].tolist()
            wide = dtype == np.int64
            last = sample_rows(
                self.source.lengths, documents, self.seq_length, place, offset, rows, wide
            )
            yield last

    def _shuffle_index(self, dtype: np.dtype, state: np.ndarray) -> Iterator[np.ndarray]:
        order = np.arange(self.epochs.samples, dtype=dtype)
        alone = self.epochs.samples if self.epochs.alone is None else self.epochs.alone
        legacy_shuffle(order[:alone], state)
        legacy_shuffle(order[alone:], state)
        yield order


def sizes_to_build(weights: Sequence[float], wanted: int) -> list[int]:
    """Samples to build for each dataset, so that a blend of `wanted` samples does not run out of them."""
    sizes = []
    for weight in weights:
        expected = ceil(wanted * weight)
        sizes.append(ceil(expected * (1 + SURPLUS)))
    return sizes


class MegatronBlend(DatasetView):
    """Several datasets blended as in Megatron's BlendedDataset: by the rule of `Blend`, for a fixed number of samples.

    `weights` None: in proportion to the sizes. `wanted` None: every sample once (without weights).

    Raises: UserError where the blend takes more samples of a dataset than it has.
    """

    def __init__(
        self, parts: Sequence[Dataset], weights: Sequence[float] | None, wanted: int | None
    ):
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        all_samples = int(sizes.sum())
        if wanted is None:
            self._count = all_samples
        elif weights is None:
            self._count = min(wanted, all_samples)
        else:
            self._count = sum(ceil(wanted * weight) for weight in weights)
        self.parts = list(parts)
        if weights is None:
            weights = sizes.tolist()
        self.blend = Blend(parts, weights, finite=wanted is None)
        taken = self.blend.taken(self._count)
        too_many = taken > sizes
        if too_many.any():
            part = int(too_many.argmax())
            raise UserError(
                f"dataset {part + 1} of the blend has {sizes[part]} samples, Megatron's order takes {taken[part]}: "
                f"give it more text or a smaller weight, or use --data-order keyed"
            )

    def __len__(self) -> int:
        return self._count

    def is_past_the_end(self, number: int) -> bool:
        return number >= self._count or self.blend.is_past_the_end(number)

    def origin(self, number: int) -> tuple[int, int]:
        return self.blend.origin(number)

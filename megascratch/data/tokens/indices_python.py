"""Python version of the C++ index functions, with identical results: for tests, and where no compiler is available."""

import mmap
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.digests import BLOCK_BYTES
from megascratch.data.tokens.idx_format import TOKEN_DTYPES, broken_laws, read_index
from megascratch.parallel.splitmix import GAMMA, mix64

NO_LIMIT = -1


class TokenFile(NamedTuple):
    """A memory-mapped .bin and the position of each sequence in it; the C++ one checks its arrays when it is made."""

    bytes: np.ndarray
    """uint8 [size]."""
    code: int
    """Code of the ids' dtype (`idx_format.DTYPES`)."""
    lengths: np.ndarray
    """int32 [sequences]: tokens of each."""
    pointers: np.ndarray
    """int64 [sequences]: byte offset of each."""
    checked: np.ndarray
    """uint8 [blocks of BLOCK_BYTES]: 1 where the bytes were compared with their digest; size 0: nothing to compare."""
    limit: int
    """Ids must be in [0, limit); NO_LIMIT: any id is accepted."""


def sound_index(raw: "mmap.mmap | bytes", bin_bytes: int) -> bool:
    """Whether the bytes of an .idx follow every rule of the format, given the size of its .bin."""
    try:
        index = read_index(Path(), raw)
    except UserError:
        return False
    for _ in broken_laws(index):
        return False
    return index.end <= bin_bytes


def permutation(count: int, key: int) -> np.ndarray:
    """int64 [count]: 0 ... count - 1 in an order that depends only on `key` (Fisher-Yates, one draw per place)."""
    order = list(range(count))
    for place in range(count - 1, 0, -1):
        other = mix64(key + place * GAMMA) * (place + 1) >> 64
        order[place], order[other] = order[other], order[place]
    return np.array(order, dtype=np.int64)


def legacy_shuffle(items: np.ndarray, state: np.ndarray) -> None:
    """Shuffles `items` [n] in place as numpy.random.RandomState does, starting from `state`, which is advanced.

    `state` is uint32 [625]: MT19937's 624 words and the number of the next one to be used.
    """
    bits = _generator(state)
    np.random.RandomState(bits).shuffle(items)
    _save(bits, state)


def legacy_draws(place: int, count: int, state: np.ndarray) -> np.ndarray:
    """int64 [count]: the numbers that `legacy_shuffle` draws for place, place - 1 ..., each from 0 to its place (masked
    rejection)."""
    bits = _generator(state)
    result = np.empty(count, dtype=np.int64)
    for at in range(count):
        top = place - at
        mask = (1 << top.bit_length()) - 1
        while True:
            word = bits.random_raw()
            if top > 0xFFFFFFFF:
                word = word << 32 | bits.random_raw()
            if word & mask <= top:
                break
        result[at] = word & mask
    _save(bits, state)
    return result


def _generator(state: np.ndarray) -> Any:
    bits = np.random.MT19937()
    bits.state = {"bit_generator": "MT19937", "state": {"key": state[:-1], "pos": int(state[-1])}}
    return bits


def _save(bits: Any, state: np.ndarray) -> None:
    saved = bits.state["state"]
    state[:-1] = saved["key"]
    state[-1] = saved["pos"]


def sample_index(
    lengths: np.ndarray, order: np.ndarray, seq_length: int, keep_partial: bool, start: int = 0
) -> np.ndarray:
    """int64 [n + 1, 2]: (place in `order`, offset) of token start, start + L ... of the concatenated sequences.

    Sample j runs from row j to row j + 1, both included. `keep_partial` adds the remaining tokens as a last sample.
    """
    if seq_length < 1:
        raise ValueError(f"seq_length {seq_length} must be at least 1")
    if start < 0:
        raise ValueError(f"start {start} is negative")
    sizes = lengths[order]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    steps = max(total - 1 - start, 0)  # tokens with a next one
    count = -(-steps // seq_length) if keep_partial else steps // seq_length
    if count == 0:
        return np.zeros((1, 2), dtype=np.int64)
    tokens = start + np.minimum(np.arange(count + 1, dtype=np.int64) * seq_length, steps)
    places = np.searchsorted(ends, tokens, side="right")
    begins = ends - sizes
    return np.stack([places, tokens - begins[places]], axis=1)


def sample_rows(
    lengths: np.ndarray,
    order: np.ndarray,
    seq_length: int,
    place: int,
    offset: int,
    rows: int,
    wide: bool,
) -> np.ndarray:
    """int64 (`wide`) or int32 [rows, 2]: (place in `order`, offset) of the tokens L, 2 L ... after (place, offset).

    Raises: IndexError where the sequences end before.
    """
    ends = np.cumsum(lengths[order[place:]], dtype=np.int64)
    tokens = offset + seq_length * np.arange(1, rows + 1, dtype=np.int64)
    places = np.searchsorted(ends, tokens, side="right")
    if rows and (not len(ends) or places[-1] == len(ends)):
        raise IndexError("the sequences end too early")
    begins = np.concatenate([[0], ends])
    result = np.stack([place + places, tokens - begins[places]], axis=1)
    return result.astype(np.int64 if wide else np.int32)


def pieces_between(
    lengths: np.ndarray,
    order: np.ndarray,
    place: int,
    offset: int,
    last_place: int,
    last_offset: int,
) -> np.ndarray:
    """int64 [n, 3]: (sequence, offset, count) of the tokens from (place in `order`, offset) to the last, included."""
    rows = []
    for at in range(place, last_place + 1):
        start = offset if at == place else 0
        stop = last_offset + 1 if at == last_place else int(lengths[order[at]])
        rows.append((int(order[at]), start, stop - start))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def read_pieces(file: TokenFile, pieces: np.ndarray) -> np.ndarray | None:
    """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated; None if a block is unverified.

    Raises: IndexError outside a sequence or the file, OverflowError for an id that is negative or not below the limit.
    """
    dtype = np.dtype(TOKEN_DTYPES[file.code]).newbyteorder("<")
    ids = [np.empty(0, dtype=np.int64)]
    all_verified = True
    for sequence, offset, count in pieces.tolist():
        if not (
            0 <= sequence < len(file.lengths)
            and 0 <= offset <= offset + count <= file.lengths[sequence]
        ):
            raise IndexError(f"tokens {offset} to {offset} + {count} of sequence {sequence}")
        start = int(file.pointers[sequence]) + offset * dtype.itemsize
        stop = start + count * dtype.itemsize
        if start < 0 or stop > len(file.bytes):
            raise IndexError(f"sequence {sequence} lies outside the token file")
        ids.append(np.frombuffer(file.bytes, dtype, count, start))
        if count and len(file.checked):
            first_block = start // BLOCK_BYTES
            last_block = (stop - 1) // BLOCK_BYTES
            if not file.checked[first_block : last_block + 1].all():
                all_verified = False
    if not all_verified:
        return None
    tokens = np.concatenate(ids)
    if (
        file.limit != NO_LIMIT
        and len(tokens)
        and not 0 <= tokens.min() <= tokens.max() < file.limit
    ):
        raise OverflowError("an id lies outside the vocabulary")
    return tokens


def blend(
    weights: np.ndarray, taken: np.ndarray, limits: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """int32 and int64 [count]: which dataset gives the next sample, and which of its samples.

    The dataset furthest below its share is chosen, of equal ones the first; `taken` [d] samples were given before;
    no dataset gives more than its limit.
    """
    given = int(taken.sum())
    taken = taken.copy()
    datasets = np.empty(count, dtype=np.int32)
    samples = np.empty(count, dtype=np.int64)
    for at in range(count):
        deficit = weights * float(max(given + at, 1)) - taken
        deficit[taken >= limits] = -np.inf
        dataset = int(deficit.argmax())
        if deficit[dataset] == -np.inf:
            raise ValueError(f"all datasets are used up after {given + at} samples")
        datasets[at] = dataset
        samples[at] = taken[dataset]
        taken[dataset] += 1
    return datasets, samples


def best_fit(
    lengths: np.ndarray, first: int, stop: int, seq_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs sequences [first, stop) into samples of at most L + 1 tokens; one that fits is not cut (arXiv 2404.10830).

    int64 [pieces, 2]: (sequence, offset of its first token); int64 [samples]: pieces up to the end of each sample.
    First come the full samples of long sequences, in order, which share their border tokens; then the remainders, the
    longest first, each in the fullest sample that has room (of equal ones the last used), else in a new one.
    """
    samples: list[list[tuple[int, int]]] = []  # the pieces of each
    remainders = []  # (tokens, sequence, offset)
    for sequence in range(first, stop):
        length = int(lengths[sequence])
        full = max(length - 1, 0) // seq_length
        for part in range(full):
            samples.append([(sequence, part * seq_length)])
        rest = length - full * seq_length
        border = 1 if full else 0  # this token is already the last one of a full sample
        if rest > border:
            remainders.append((rest, sequence, full * seq_length))
    remainders.sort(key=lambda remainder: -remainder[0])  # stable: of equal ones the first sequence
    with_room: dict[
        int, list[int]
    ] = {}  # tokens that still fit -> the samples, the last used at the end
    for count, sequence, offset in remainders:
        fitting = [room for room, stack in with_room.items() if stack and room >= count]
        if fitting:
            room = min(fitting)
            sample = with_room[room].pop()
        else:
            room = seq_length + 1
            sample = len(samples)
            samples.append([])
        samples[sample].append((sequence, offset))
        with_room.setdefault(room - count, []).append(sample)
    pieces = list(chain.from_iterable(samples))
    ends = np.cumsum([len(sample) for sample in samples], dtype=np.int64)
    return np.array(pieces, dtype=np.int64).reshape(-1, 2), ends

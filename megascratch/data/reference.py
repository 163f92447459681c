"""The C++ indices once more in Python, with the same numbers: oracle of the tests, and used where no compiler is."""

import numpy as np

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014): 64 bits in, 64 well mixed bits out."""
    value &= MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def permutation(count: int, key: int) -> np.ndarray:
    """int64 [count]: 0 ... count - 1 in an order that is a function of `key` (Fisher-Yates, one draw per place)."""
    order = list(range(count))
    for place in range(count - 1, 0, -1):
        other = mix64(key + place * GAMMA) * (place + 1) >> 64
        order[place], order[other] = order[other], order[place]
    return np.array(order, dtype=np.int64)


def sample_index(
    lengths: np.ndarray, order: np.ndarray, seq_length: int, keep_partial: bool, start: int = 0
) -> np.ndarray:
    """int64 [n + 1, 2]: (place in `order`, offset) of token start, start + L ... of the sequences laid end to end.

    Sample j runs from row j to row j + 1, both included. `keep_partial` adds the rest as a shorter last sample.
    """
    if seq_length < 1:
        raise ValueError(f"seq_length {seq_length} must be at least 1")
    if start < 0:
        raise ValueError(f"start {start} is negative")
    sizes = lengths[order]
    ends = np.cumsum(sizes)
    steps = max(int(ends[-1]) - 1 - start, 0) if len(ends) else 0
    count = -(-steps // seq_length) if keep_partial else steps // seq_length
    if count == 0:
        return np.zeros((1, 2), dtype=np.int64)
    tokens = start + np.minimum(np.arange(count + 1, dtype=np.int64) * seq_length, steps)
    places = np.searchsorted(ends, tokens, side="right")
    return np.stack([places, tokens - (ends - sizes)[places]], axis=1)


def blend(weights: np.ndarray, taken: np.ndarray, limits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [count] twice: which dataset gives the next sample, and which of its samples.

    The dataset furthest behind its share goes first, ties to the lowest; `taken` [d] samples were given before,
    no dataset gives more than its limit.
    """
    taken, given = taken.copy(), int(taken.sum())
    datasets, samples = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for at in range(count):
        behind = np.where(taken < limits, weights * float(max(given + at, 1)) - taken, -np.inf)
        datasets[at] = behind.argmax()
        if behind[datasets[at]] == -np.inf:
            raise ValueError(f"all datasets are used up after {given + at} samples")
        samples[at] = taken[datasets[at]]
        taken[datasets[at]] += 1
    return datasets, samples

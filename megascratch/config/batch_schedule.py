"""Reads `step_batch_size_schedule`, the global batch sizes of a run and where each begins: "0:256 300M:512".

An entry is THRESHOLD:SIZE; entries are separated by spaces or commas. A threshold counts tokens, as in Megatron-LM, and
becomes whole samples, rounded down. A number may end in K, M, B or T (10^3, 10^6, 10^9, 10^12). A threshold that ends
in s counts samples: a resolved config has all of them in that form.
"""

from typing import NamedTuple

SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
EXAMPLE = "0:256 300M:512"


class BatchSize(NamedTuple):
    """From `first_sample` on, a step has `size` sequences."""

    first_sample: int
    size: int


def read_schedule(text: str, seq_length: int | None = None) -> tuple[BatchSize, ...]:
    """The batch sizes in rising order of their first samples; the first one begins at 0.

    Args:
        seq_length: tokens of a sample; None: all thresholds are in samples.

    Raises: ValueError, which says what is wrong.
    """
    sizes = []
    for entry in text.replace(",", " ").split():
        threshold, colon, size = entry.partition(":")
        if not colon:
            raise ValueError(f"{entry!r} is not THRESHOLD:SIZE")
        sizes.append(BatchSize(_first_sample(threshold, seq_length), _number(size)))
    sizes.sort(key=lambda one: one.first_sample)
    if not sizes:
        raise ValueError("it has no entry")
    if sizes[0].first_sample != 0:
        raise ValueError(f"its first threshold must be 0, not {sizes[0].first_sample:,} samples")
    for before, after in zip(sizes, sizes[1:], strict=False):
        if before.first_sample == after.first_sample:
            raise ValueError(
                f"two batch sizes, {before.size} and {after.size}, begin at sample {after.first_sample:,}"
            )
    for one in sizes:
        if one.size < 1:
            raise ValueError(f"a batch size must be at least 1, not {one.size}")
    return tuple(sizes)


def in_samples(text: str, seq_length: int) -> str:
    """The same schedule with every threshold in samples. Raises: ValueError, like `read_schedule`."""
    sizes = read_schedule(text, seq_length)
    return " ".join(f"{one.first_sample}s:{one.size}" for one in sizes)


def first_size(text: str | None) -> int | None:
    """The batch size at the beginning; None without a schedule that can be read."""
    sizes = _readable(text)
    return sizes[0].size if sizes else None


def last_size(text: str | None) -> int | None:
    """The batch size at the end; None without a schedule that can be read."""
    sizes = _readable(text)
    return sizes[-1].size if sizes else None


def _readable(text: str | None) -> tuple[BatchSize, ...]:
    if text is None:
        return ()
    try:
        return read_schedule(text, 1)
    except ValueError:
        return ()


def _first_sample(text: str, seq_length: int | None) -> int:
    if text.endswith("s"):
        return _number(text[:-1])
    tokens = _number(text)
    if tokens and seq_length is None:
        raise ValueError(f"{text} counts tokens: the number of tokens of a sample is unknown")
    return tokens // (seq_length or 1)


def _number(text: str) -> int:
    suffix = text[-1:].upper()
    digits = text[:-1] if suffix in SUFFIXES else text
    try:
        number = int(float(digits) * SUFFIXES.get(suffix, 1))
    except (ValueError, OverflowError):
        number = -1
    if number < 0:
        raise ValueError(f"{text!r} is not a number such as 256, 2.4B or 300M")
    return number

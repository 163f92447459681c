"""Boxes of tensors in the files of a checkpoint: their size and their text."""

import math
from collections.abc import Iterable

from megascratch.parallel.shard import Box


def volume(box: Box) -> int:
    """The number of elements."""
    return math.prod(box.shape)


def box_text(box: Box) -> str:
    """Like [0:2, 4:6]."""
    ranges = [f"{start}:{stop}" for start, stop in zip(box.start, box.stop, strict=True)]
    return f"[{', '.join(ranges)}]"


def whole_box(shape: Iterable[int]) -> Box:
    """The box of a full tensor."""
    shape = tuple(shape)
    return Box((0,) * len(shape), shape)

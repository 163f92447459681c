"""The one door through which a step asks for the numbers of a tensor. It waits for the device; a rank whose world is
imagined (`imagined.py`) has tensors without numbers, so who asks says what it would be told.
"""

from typing import TypeVar, cast

from torch import Tensor

T = TypeVar("T")


def told(x: Tensor, imagined: T) -> T:
    """The numbers of a tensor, as nested lists (a scalar: as one number).

    Args:
        imagined: the answer, in the shape of x, if x has no memory.
    """
    return imagined if x.is_meta else cast(T, x.tolist())

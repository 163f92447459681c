"""Activation recomputation (checkpointing): keeps only the inputs of a part of the model; backward runs it again.

(Chen et al. 2016, arXiv 1604.06174.) The result is exact without saving a random state, because dropout does not use a
generator (law 3). Weight gradients are added once, since only the forward runs twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def with_recompute(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Returns function(*args). Its collectives run again in backward, on all ranks in the same order."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result

"""A part of the forward pass in, the same result out, of which only the inputs are kept: backward computes the rest
again (Chen et al. 2016, arXiv 1604.06174).

Exact because dropout is a function of its place and not of a generator (law 3), so no random state is saved; weight
gradients are delivered once, since only the forward runs twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def with_recompute(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args); its collectives run again in backward, on all ranks in one order."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result

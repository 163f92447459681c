"""What every kernel asks first: whether its tensors are ordinary ones, which it may read by address.

In a dry run (`parallel/device_kind.py`) a kernel does everything but the launch, so that it allocates the same.
"""

import torch
from torch import Tensor, nn

from megascratch.parallel.device_kind import is_imitated

_TYPES = frozenset((Tensor, nn.Parameter))
_functorch_level = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack


def only_formulas() -> bool:
    """Whether a layer must be written in plain operations of torch: because torch.compile fuses them, or because a
    functorch transform (vmap, grad, jvp), which has rules for nothing else, is under way."""
    return torch.compiler.is_compiling() or _functorch_level() is not None


def are_ordinary(*tensors: Tensor) -> bool:
    """Whether the tensors are torch's own, with memory behind them, and new ones will be, too. A fake tensor, a DTensor
    and any other subclass has none, or means something else by it; under a dispatch mode such as FakeTensorMode, what
    is allocated next is such a tensor. In a dry run the tensors of the target count as ordinary."""
    for tensor in tensors:
        if type(tensor) not in _TYPES:
            return False
    return (_dispatch_modes() == 0 or is_imitated(*tensors)) and not only_formulas()

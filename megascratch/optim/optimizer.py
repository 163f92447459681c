"""The interface of optimizers: each names the tensors that it keeps for every weight, and updates flat stretches.

Data parallelism owns the memory. It asks an optimizer for `state_names`, makes a tensor of zeros for each name, as long
as the weights, and hands out stretches of them: so ZeRO-1, offload to host memory and checkpoints (``optim.NAME.*``)
work for every optimizer. `megascratch.optim.OPTIMIZERS` has them by the name that the setting `optimizer` gives.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from megascratch.config.settings import OptimConfig


class Stretch(NamedTuple):
    """Weights with the same weight decay and learning rate; all tensors have the same shape and type (fp32 or fp64).

    The shape is [n]: neighbours in memory, of any number of weights, maybe beginning or ending inside one. For an
    optimizer that needs whole matrices it is one weight in its own shape, without padding.
    """

    weight: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]  # by the optimizer's `state_names`; zeros before the first step
    decays: bool


class Optimizer(ABC):
    """Updates stretches in place; the learning rate is given at each step."""

    state_names: ClassVar[tuple[str, ...]]
    """The tensors that are kept for every weight, by their names in checkpoints; 'master' is taken."""
    needs_whole_matrices: ClassVar[bool] = False
    """Whether the update of an element depends on its place in the matrix, and so on all of the matrix."""

    @abstractmethod
    def __init__(self, stretches: Sequence[Stretch], optim: OptimConfig):
        """`stretches` may be empty, or hold no elements."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Updates so far. It can be set: a checkpoint restores it together with the state."""

    @steps.setter
    @abstractmethod
    def steps(self, taken: int) -> None: ...

    def set_weight_decay(self, weight_decay: float) -> None:
        """Called before each step of a run whose weight decay changes (`weight_decay_incr_style`): the decay of the
        stretches that have one. An optimizer without this method cannot be used in such a run."""
        raise NotImplementedError(f"{type(self).__name__} cannot change its weight decay")

    @abstractmethod
    def step(self, lr: float) -> None:
        """Updates all weights by their gradients, at learning rate `lr`, and counts one step."""


MakeOptimizer = Callable[[Sequence[Stretch], OptimConfig], Optimizer]

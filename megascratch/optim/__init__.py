"""Optimizers by the name that the setting `optimizer` gives."""

from functools import partial
from typing import NamedTuple

from megascratch.config.part_options import PartName, options_of
from megascratch.config.registry import look_up
from megascratch.config.settings import OptimConfig
from megascratch.optim.adamw import AdamW
from megascratch.optim.optimizer import MakeOptimizer, Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": AdamW}


class OptimizerKind(NamedTuple):
    """An optimizer as the settings choose it."""

    make: MakeOptimizer
    state_names: tuple[str, ...]
    needs_whole_matrices: bool
    changes_weight_decay: bool
    """Whether it can follow a schedule of the weight decay."""


def optimizer_kind(optim: OptimConfig) -> OptimizerKind:
    """The optimizer that the settings name, with the options of one that a user registered."""
    found = look_up("optimizer", optim.optimizer, OPTIMIZERS)
    options = options_of(PartName("optimizer", optim.optimizer), optim.optimizer_options)
    return OptimizerKind(
        partial(found, **dict(options)),
        tuple(found.state_names),
        getattr(found, "needs_whole_matrices", False),
        getattr(found, "set_weight_decay", Optimizer.set_weight_decay)
        is not Optimizer.set_weight_decay,
    )

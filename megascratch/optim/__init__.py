"""Optimizers by the name that the setting `optimizer` gives."""

from megascratch.optim.adamw import AdamW
from megascratch.optim.optimizer import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": AdamW}

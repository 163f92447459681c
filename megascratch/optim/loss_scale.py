"""Static and dynamic loss scaling for fp16: keeps small gradients from becoming zero.

The loss is multiplied by the scale before backward and the gradients are divided by it before the update. A dynamic
scale grows while nothing overflows and falls when something does (Micikevicius et al. 2018, arXiv 1710.03740,
section 3.2).
"""

from dataclasses import dataclass, replace

from megascratch.config.settings import OptimConfig

GROWTH = 2.0
BACKOFF = 0.5


@dataclass(frozen=True)
class LossScale:
    """The scale and the counters that change it; save it as ``vars(scale)``, restore it with ``LossScale(**saved)``."""

    scale: float = 1.0
    clean_steps: int = 0  # since the last change or overflow
    overflows_left: int = 1  # before the scale falls

    @classmethod
    def start(cls, optim: OptimConfig) -> "LossScale":
        """The scale of the first step; 1 unless the run uses fp16."""
        if not optim.fp16:
            return cls()
        scale = optim.initial_loss_scale if optim.loss_scale is None else optim.loss_scale
        return cls(scale, 0, optim.hysteresis)

    def after(self, overflowed: bool, optim: OptimConfig) -> "LossScale":
        """The scale of the next step. After `hysteresis` overflows each further one halves the scale, down to
        `min_loss_scale`; `loss_scale_window` steps in a row without overflow double it and reset the hysteresis."""
        if not optim.fp16 or optim.loss_scale is not None:
            return self
        if overflowed:
            left = max(self.overflows_left - 1, 0)
            scale = self.scale
            if left == 0:
                scale = max(scale * BACKOFF, optim.min_loss_scale)
            return LossScale(scale, 0, left)
        if self.clean_steps + 1 < optim.loss_scale_window:
            return replace(self, clean_steps=self.clean_steps + 1)
        return LossScale(self.scale * GROWTH, 0, optim.hysteresis)

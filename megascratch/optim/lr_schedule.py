"""Learning-rate schedules: warm-up, then constant, linear, cosine, inverse-square-root or WSD decay.

The rate is a pure function of the position in the run, so a resumed run needs no state.

The position is what was done *before* the step: step n (the first is 0) takes the rate at n steps, or at the samples
consumed so far. So the first step of a warm-up takes exactly `lr_warmup_init` (0 by default: it moves nothing) and
step n = warm-up length takes `lr`. This is Megatron-LM's rule; nanoGPT's is lr (n + 1) / (warmup + 1), one step ahead.
"""

import math
from collections.abc import Callable
from functools import partial

from megascratch.config.errors import UserError
from megascratch.config.part_options import PartName, options_of
from megascratch.config.registry import look_up
from megascratch.config.settings import OptimConfig

Curve = Callable[..., float]

# A curve maps the fraction of the decay that is done, 0 to 1, to the fraction of (lr - min_lr) that is left.
CURVES: dict[str, Curve] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (math.cos(math.pi * done) + 1.0),
}

OTHER_STYLES = ("constant", "inverse-square-root", "WSD")
"""Styles that are more than a curve."""

CURVE_POINTS = 1000
"""Where a registered curve is checked before training, in addition to 0."""

WSD_CURVES: dict[str, Curve] = {
    **CURVES,
    "exponential": lambda done: 2.0 * 0.5**done - 1.0,
    "minus_sqrt": lambda done: 1.0 - math.sqrt(done),
}


def learning_rate(
    optim: OptimConfig, step: int, consumed_samples: int, batch_size: int | None = None
) -> float:
    """The rate of step `step` (0-based), before which `consumed_samples` were consumed.

    The position is `consumed_samples` if the decay is given in samples, otherwise `step`, also while the batch size
    changes. With lr_schedule_unit samples it is `consumed_samples` in both cases, and a length in steps counts as many
    samples as that many full batches.

    Args:
        batch_size: samples of a full batch; needed with lr_schedule_unit samples and a decay in steps.

    Raises:
        ValueError: neither `lr_decay_iters` nor `lr_decay_samples` is set, or `batch_size` is missing.
    """
    if optim.lr_decay_samples is not None:
        return _rate(
            optim,
            consumed_samples,
            optim.lr_decay_samples,
            optim.lr_warmup_samples,
            optim.lr_wsd_decay_samples,
        )
    if optim.lr_decay_iters is not None and optim.lr_schedule_unit == "samples":
        if batch_size is None:
            raise ValueError("lr_schedule_unit samples counts full batches: batch_size is missing")
        tail = optim.lr_wsd_decay_iters
        return _rate(
            optim,
            consumed_samples,
            optim.lr_decay_iters * batch_size,
            optim.lr_warmup_iters * batch_size,
            None if tail is None else tail * batch_size,
        )
    if optim.lr_decay_iters is not None:
        return _rate(
            optim, step, optim.lr_decay_iters, optim.lr_warmup_iters, optim.lr_wsd_decay_iters
        )
    raise ValueError(
        "the length of the decay is unknown: lr_decay_iters or lr_decay_samples must be derived first"
    )


def _rate(optim: OptimConfig, n: int, length: int, warmup: float, tail: int | None) -> float:
    """The rate at position n; all numbers have the same unit, steps or samples."""
    if optim.lr_warmup_fraction is not None:
        warmup = optim.lr_warmup_fraction * length
    if n <= warmup and warmup > 0:
        rise = optim.lr - optim.lr_warmup_init
        return optim.lr_warmup_init + rise * n / warmup
    if optim.lr_decay_style == "constant":
        return optim.lr
    if n > length:
        return optim.min_lr
    if optim.lr_decay_style == "inverse-square-root":
        rate = optim.lr * math.sqrt(max(warmup, 1) / max(n, 1))
        return max(optim.min_lr, rate)
    left = _part_left(optim, n, length, warmup, tail)
    return optim.min_lr + left * (optim.lr - optim.min_lr)


def require_curve(optim: OptimConfig) -> None:
    """Raises: UserError unless the curve stays within [0, 1] from the beginning of the decay to its end."""
    if optim.lr_decay_style in (*CURVES, *OTHER_STYLES):
        return
    curve = _curve(optim)
    for number in range(CURVE_POINTS + 1):
        done = number / CURVE_POINTS
        try:
            left = float(curve(done))
        except Exception as error:
            raise UserError(
                f"the learning-rate curve {optim.lr_decay_style} fails at {done:g}: {type(error).__name__}: {error}"
            ) from error
        if not 0.0 <= left <= 1.0:  # nan is not
            raise UserError(
                f"the learning-rate curve {optim.lr_decay_style} is {left:g} at {done:g}: it must be the fraction of "
                "lr - min_lr that is left, 0 to 1, for each fraction of the decay that is done"
            )


def _curve(optim: OptimConfig) -> Curve:
    """The curve that the settings name, with the options of one that a user registered."""
    style = optim.lr_decay_style
    options = dict(options_of(PartName("lr_curve", style), optim.optimizer_options))
    curve = look_up("lr_curve", style, CURVES)
    return partial(curve, **options) if options else curve


def _part_left(optim: OptimConfig, n: int, length: int, warmup: float, tail: int | None) -> float:
    """The fraction of (lr - min_lr) that is left at warmup <= n <= length."""
    if optim.lr_decay_style != "WSD":
        done = (n - warmup) / max(length - warmup, 1)
        return _curve(optim)(done)
    start = length - (tail or 0)  # of the tail
    if n <= start:
        return 1.0
    done = (n - start) / (length - start)
    return WSD_CURVES[optim.lr_wsd_decay_style](done)

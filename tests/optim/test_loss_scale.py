"""The loss scale's moves, step by step."""

import pytest

from megascratch.config.settings import OptimConfig
from megascratch.optim.loss_scale import LossScale

DYNAMIC = OptimConfig(
    fp16=True, initial_loss_scale=16.0, loss_scale_window=3, hysteresis=2, min_loss_scale=2.0
)

MOVES = [  # steps: . clean, x overflow; the scale after each
    ("...", [16, 16, 32]),
    ("......", [16, 16, 32, 32, 32, 64]),
    ("..x...", [16, 16, 16, 16, 16, 32]),  # an overflow starts the window again
    ("xx", [16, 8]),  # the first one is forgiven
    ("xxx", [16, 8, 4]),  # those after it are not
    ("x.x", [16, 16, 8]),  # nor does a clean step renew it
    ("x...xx", [16, 16, 16, 32, 32, 16]),  # but a full window does
    ("xxxxxx", [16, 8, 4, 2, 2, 2]),  # the floor
]


@pytest.mark.parametrize("steps, scales", MOVES)
def test_the_dynamic_scale_moves_like_this(steps, scales):
    scale, seen = LossScale.start(DYNAMIC), []
    for step in steps:
        scale = scale.after(step == "x", DYNAMIC)
        seen.append(scale.scale)
    assert seen == scales


@pytest.mark.parametrize(
    "optim, scale",
    [
        (OptimConfig(), 1.0),
        (OptimConfig(bf16=True), 1.0),
        (OptimConfig(fp16=True, loss_scale=128.0), 128.0),
    ],
)
def test_other_scales_stay(optim, scale):
    start = LossScale.start(optim)
    assert start.scale == scale and start.after(True, optim) == start == start.after(False, optim)


def test_megatrons_start_is_two_to_the_32():
    assert LossScale.start(OptimConfig(fp16=True)).scale == 2.0**32


def test_a_restored_scale_goes_on_as_if_nothing_had_happened():
    before = LossScale.start(DYNAMIC).after(True, DYNAMIC).after(False, DYNAMIC)
    restored = LossScale(**vars(before))
    assert restored == before and restored.after(True, DYNAMIC).scale == 8.0

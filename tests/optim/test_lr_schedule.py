"""Learning rates against values worked out by hand."""

import math

import pytest

from megascratch.config.settings import OptimConfig
from megascratch.optim.lr_schedule import learning_rate

LINEAR = {"lr": 1.0, "min_lr": 0.1, "lr_decay_iters": 110, "lr_warmup_iters": 10}
WSD = LINEAR | {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 50}

RATES = {  # settings, {step: rate}
    "linear": (
        LINEAR,
        {0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0, 35: 0.775, 60: 0.55, 110: 0.1, 111: 0.1, 9999: 0.1},
    ),
    "cosine": (
        LINEAR | {"lr_decay_style": "cosine"},
        {5: 0.5, 10: 1.0, 35: 0.1 + 0.45 * (1 + math.sqrt(0.5)), 60: 0.55, 110: 0.1, 200: 0.1},
    ),
    "constant": (
        LINEAR | {"lr_decay_style": "constant"},
        {0: 0.0, 5: 0.5, 10: 1.0, 110: 1.0, 5000: 1.0},
    ),
    "inverse square root": (
        LINEAR | {"lr_decay_style": "inverse-square-root"},
        {5: 0.5, 10: 1.0, 40: 0.5, 90: 1 / 3, 111: 0.1},
    ),
    "inverse square root stops at min-lr": (
        LINEAR | {"lr_decay_style": "inverse-square-root", "min_lr": 0.4},
        {40: 0.5, 100: 0.4},
    ),
    "inverse square root without warm-up": (
        LINEAR | {"lr_decay_style": "inverse-square-root", "lr_warmup_iters": 0},
        {0: 1.0, 1: 1.0, 4: 0.5, 64: 0.125},
    ),
    "wsd linear": (
        WSD | {"lr_wsd_decay_style": "linear"},
        {5: 0.5, 10: 1.0, 60: 1.0, 85: 0.55, 110: 0.1},
    ),
    "wsd cosine": (WSD | {"lr_wsd_decay_style": "cosine"}, {60: 1.0, 85: 0.55, 110: 0.1}),
    "wsd exponential": (WSD, {60: 1.0, 85: 0.1 + 0.9 * (math.sqrt(2) - 1), 110: 0.1}),
    "wsd minus_sqrt": (WSD | {"lr_wsd_decay_style": "minus_sqrt"}, {60: 1.0, 72.5: 0.55, 110: 0.1}),
    "warm-up from above zero": (LINEAR | {"lr_warmup_init": 0.2}, {0: 0.2, 5: 0.6, 10: 1.0}),
    "warm-up as a fraction": (
        LINEAR | {"lr_warmup_iters": 0, "lr_warmup_fraction": 0.25},
        {11: 0.4, 27.5: 1.0, 110: 0.1},
    ),
    "no warm-up": (LINEAR | {"lr_warmup_iters": 0}, {0: 1.0, 55: 0.55, 110: 0.1}),
    "all warm-up": (LINEAR | {"lr_warmup_iters": 110}, {55: 0.5, 110: 1.0, 111: 0.1}),
    "a run of no steps": (LINEAR | {"lr_warmup_iters": 0, "lr_decay_iters": 0}, {0: 1.0, 1: 0.1}),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_those_worked_out_by_hand(name):
    settings, rates = RATES[name]
    for step, rate in rates.items():
        assert learning_rate(
            OptimConfig(**settings), step, consumed_samples=10**9
        ) == pytest.approx(rate, abs=1e-12)


def test_a_run_in_samples_looks_at_samples_alone():
    optim = OptimConfig(lr=1.0, lr_decay_samples=1000, lr_warmup_samples=100)
    assert [learning_rate(optim, 10**9, n) for n in (0, 50, 100, 550, 1000)] == [
        0.0,
        0.5,
        1.0,
        0.5,
        0.0,
    ]


def test_wsd_in_samples_falls_over_its_last_samples():
    optim = OptimConfig(
        lr=1.0,
        lr_decay_style="WSD",
        lr_wsd_decay_style="linear",
        lr_decay_samples=1000,
        lr_wsd_decay_samples=200,
    )
    assert [learning_rate(optim, 0, n) for n in (800, 900, 1000)] == [1.0, 0.5, 0.0]


def test_the_first_step_of_a_warmup_takes_the_rate_at_no_steps_as_in_megatron():
    optim = OptimConfig(lr=1.0, lr_decay_iters=100, lr_warmup_iters=4, lr_decay_style="constant")
    assert [learning_rate(optim, step, 0) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_an_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="length of the decay is unknown"):
        learning_rate(OptimConfig(), 0, 0)

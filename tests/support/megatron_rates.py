"""Command lines of Megatron-LM and the rates of their steps.

The rows hold what `OptimizerParamScheduler` of megatron-core 0.16.1 gives; a deep test asks it
(`tests/optim/test_megatron_core.py`).
"""

from typing import Any, NamedTuple

import pytest

from megascratch.config.batch_size import global_batch_size_at
from megascratch.config.load import read_config
from megascratch.config.resolve import resolve
from megascratch.training.state import TrainState, next_rates

COMMON = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--mock-data --micro-batch-size 2 --vocab-size 64 --lr 1.0 --flags-of megatron"
)


class Run(NamedTuple):
    """A command line of Megatron-LM and its rates."""

    flags: str
    core: dict[str, Any]
    """Arguments of the scheduler, as Megatron-LM's `get_optimizer_param_scheduler` computes them from the flags."""
    rates: dict[int, tuple[float, ...]]
    """Step -> its learning rate, the decoupled one if there is one, and its weight decay."""
    overflows: tuple[int, ...] = ()
    """Steps that overflow."""
    decoupled: tuple[float, float] | None = None
    """max_lr and min_lr of the embedding's group."""


CONSTANT = {
    "init_lr": 0.0,
    "max_lr": 1.0,
    "min_lr": 0.0,
    "start_wd": 0.01,
    "end_wd": 0.01,
    "wd_incr_steps": 40,
    "wd_incr_style": "constant",
}
COSINE = "--global-batch-size 4 --train-iters 10 --lr-decay-style cosine --lr-warmup-iters 2"
OF_COSINE = {"lr_decay_style": "cosine", "lr_warmup_steps": 8, "lr_decay_steps": 40}
RUNS = {
    "cosine": Run(
        COSINE,
        OF_COSINE,
        {0: (0.0, 0.01), 3: (0.961939766256, 0.01), 6: (0.5, 0.01), 9: (0.038060233744, 0.01)},
    ),
    "linear over more steps than the run has": Run(
        "--global-batch-size 4 --train-iters 10 --lr-decay-iters 13 --min-lr 0.25 --lr-warmup-fraction 0.3",
        {
            "lr_decay_style": "linear",
            "lr_warmup_steps": 0.3 * 52,
            "lr_decay_steps": 52,
            "min_lr": 0.25,
        },
        {
            0: (0.0, 0.01),
            3: (0.769230769231, 0.01),
            6: (0.826923076923, 0.01),
            9: (0.57967032967, 0.01),
        },
    ),
    "inverse square root without warm-up": Run(
        "--global-batch-size 4 --train-iters 10 --lr-decay-style inverse-square-root",
        {"lr_decay_style": "inverse-square-root", "lr_warmup_steps": 0, "lr_decay_steps": 40},
        {
            0: (1.0, 0.01),
            3: (0.288675134595, 0.01),
            6: (0.204124145232, 0.01),
            9: (0.166666666667, 0.01),
        },
    ),
    "WSD": Run(
        "--global-batch-size 4 --train-iters 10 --lr-decay-style WSD --lr-wsd-decay-iters 5",
        {
            "lr_decay_style": "WSD",
            "lr_warmup_steps": 0,
            "lr_decay_steps": 40,
            "wsd_decay_steps": 20,
            "lr_wsd_decay_style": "exponential",
        },
        {0: (1.0, 0.01), 3: (1.0, 0.01), 6: (0.741101126592, 0.01), 9: (0.148698354997, 0.01)},
    ),
    "linear weight decay": Run(
        f"{COSINE} --start-weight-decay 0.1 --end-weight-decay 0.5 --weight-decay-incr-style linear",
        {**OF_COSINE, "start_wd": 0.1, "end_wd": 0.5, "wd_incr_style": "linear"},
        {0: (0.0, 0.1), 3: (0.961939766256, 0.22), 6: (0.5, 0.34), 9: (0.038060233744, 0.46)},
    ),
    "cosine weight decay": Run(
        f"{COSINE} --start-weight-decay 0.1 --end-weight-decay 0.5 --weight-decay-incr-style cosine",
        {**OF_COSINE, "start_wd": 0.1, "end_wd": 0.5, "wd_incr_style": "cosine"},
        {
            0: (0.0, 0.1),
            3: (0.961939766256, 0.182442949542),
            6: (0.5, 0.361803398875),
            9: (0.038060233744, 0.490211303259),
        },
    ),
    "a decoupled rate": Run(
        f"{COSINE} --min-lr 0.125 --decoupled-lr 0.5 --decoupled-min-lr 0.25",
        {**OF_COSINE, "min_lr": 0.125},
        {
            0: (0.0, 0.0, 0.01),
            3: (0.966697295474, 0.490484941564, 0.01),
            6: (0.5625, 0.375, 0.01),
            9: (0.158302704526, 0.259515058436, 0.01),
        },
        decoupled=(0.5, 0.25),
    ),
    "a decoupled rate with the end of the others": Run(
        f"{COSINE} --min-lr 0.125 --decoupled-lr 0.5",
        {**OF_COSINE, "min_lr": 0.125},
        {
            0: (0.0, 0.0, 0.01),
            3: (0.966697295474, 0.485727412346, 0.01),
            6: (0.5625, 0.3125, 0.01),
            9: (0.158302704526, 0.139272587654, 0.01),
        },
        decoupled=(0.5, 0.125),
    ),
    "steps that overflow": Run(
        f"{COSINE} --fp16",
        OF_COSINE,
        {0: (0.0, 0.01), 3: (0.5, 0.01), 6: (0.961939766256, 0.01), 9: (0.5, 0.01)},
        overflows=(0, 1, 4),
    ),
    "a batch that grows": Run(
        "--step-batch-size-schedule 0:2,128:4,320:8 --train-samples 60 --lr-decay-style cosine "
        "--lr-warmup-samples 10",
        {
            "lr_decay_style": "cosine",
            "lr_warmup_steps": 10,
            "lr_decay_steps": 60,
            "wd_incr_steps": 60,
        },
        {0: (0.0, 0.01), 3: (0.6, 0.01), 6: (0.964888242944, 0.01), 9: (0.468604740235, 0.01)},
    ),
    "a batch that grows in a run of steps": Run(
        "--rampup-batch-size 2 2 16 --global-batch-size 8 --train-iters 10 --lr-warmup-iters 2",
        {
            "lr_decay_style": "linear",
            "lr_warmup_steps": 16,
            "lr_decay_steps": 80,
            "wd_incr_steps": 80,
        },
        {0: (0.0, 0.01), 3: (0.375, 0.01), 6: (0.9375, 0.01), 9: (0.5625, 0.01)},
    ),
}
STEPS = 10


def ours(run: Run) -> tuple[list[tuple[float, ...]], list[int]]:
    """The rates of ten steps by the flags, and the samples of each step."""
    config, _, problems, _ = read_config([*COMMON.split(), *run.flags.split()])
    assert problems == []
    legal = resolve(config, 1)
    state = TrainState()
    rates = []
    sizes = []
    for step in range(STEPS):
        lr, others = next_rates(legal.optim, legal.training, state)
        decay = legal.optim.weight_decay if others.weight_decay is None else others.weight_decay
        decoupled = () if others.decoupled_lr is None else (others.decoupled_lr,)
        rates.append((lr, *decoupled, decay))
        sizes.append(global_batch_size_at(legal.training, state.consumed_samples))
        state.count(sizes[-1], step in run.overflows)
    return rates, sizes


def rates_are_those_of_megatron_core(name: str) -> None:
    """The rates of the flags are those of the table."""
    run = RUNS[name]
    rates, _ = ours(run)
    for step, expected in run.rates.items():
        assert rates[step] == pytest.approx(expected, abs=1e-12), step

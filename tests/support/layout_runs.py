"""The layout law on the session's pool of ranks: small configs, their traces on any layout, and what must be equal."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch

from megascratch.config.errors import Problems
from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import Batch
from megascratch.parallel import groups
from megascratch.training.setup import TrainingRun, build_run
from megascratch.training.start.settings import LegalSettings
from megascratch.verification import run_layout
from megascratch.verification.run_layout import (
    RankTrace,
    RunRecord,
    assemble,
    difference,
    gather,
    one_process,
)
from tests.support.rank_pool import group_maker, on_ranks

__all__ = [
    "RunRecord",
    "assemble",
    "built_run",
    "config_of",
    "difference",
    "gather",
    "serial",
    "settings_of",
    "synthetic_batch",
    "trace",
    "traced",
    "train_on_rank",
    "world_of",
]

STEPS = 5
BASE = with_fields(
    Config(),
    {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "vocab_size": 61,
        "make_vocab_size_divisible_by": 8,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_length": 16,
        "micro_batch_size": 1,
        "global_batch_size": 8,
        "lr": 1e-2,
        "lr_decay_style": "constant",
        "clip_grad": 0.5,
        "weight_decay": 0.1,
        "fp64": True,
        "mock_data": True,
        "train_iters": STEPS,
        "init_method_std": 0.1,
        "ddp_bucket_size": 3000,
        "seed": 7,
    },
)


def config_of(**settings: Any) -> ResolvedConfig:
    config = with_fields(BASE, settings)
    world = 1
    for name in (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "data_parallel_size",
        "context_parallel_size",
    ):
        world *= settings.get(name, 1)
    validate(flat(config), world)
    return resolve(config, world)


def world_of(config: ResolvedConfig) -> int:
    """The ranks of a run."""
    return run_layout.world_of(config.parallel)


def synthetic_batch(config: ResolvedConfig, numbers: range) -> Batch:
    """The samples of these numbers, of the config's text."""
    return run_layout.synthetic_batch(config.data, config.model.vocab_size, numbers)


def settings_of(config: ResolvedConfig) -> LegalSettings:
    """What a run is started from."""
    return LegalSettings(flat(config), config, world_of(config))


def built_run(config: ResolvedConfig) -> TrainingRun:
    """On a rank: a run as pretraining builds it, with groups of the pool; elsewhere that of one process."""
    with patch.object(groups, "start", lambda *args: group_maker()):
        return build_run(settings_of(config), Problems())


def train_on_rank(config: ResolvedConfig, steps: int = STEPS) -> RankTrace:
    """On a rank."""
    return run_layout.train_on_rank(config, steps)


def trace(config: ResolvedConfig, steps: int = STEPS, run: Callable = train_on_rank) -> RunRecord:
    """Trains on the layout of `config` by `run(config, steps)` on each rank and gathers."""
    return gather(on_ranks(world_of(config), run, config, steps))


@lru_cache(maxsize=8)
def traced(config: ResolvedConfig, steps: int = STEPS) -> RunRecord:
    """A plain `trace` that several tests compare with; made once."""
    return trace(config, steps)


def serial(config: ResolvedConfig, steps: int = STEPS) -> RunRecord:
    """The reference; made once for each model."""
    return _alone(one_process(config), steps)


@lru_cache(maxsize=256)
def _alone(config: ResolvedConfig, steps: int) -> RunRecord:
    return gather([train_on_rank(config, steps)])


def assert_identical(a: RunRecord, b: RunRecord) -> None:
    """Every number to the last bit."""
    assert a.losses == b.losses and a.norms == b.norms
    for step, (grads, others) in enumerate(zip(a.grads, b.grads, strict=True)):
        assert grads.keys() == others.keys()
        for name, grad in grads.items():
            assert torch.equal(grad, others[name]), (
                f"{name} of step {step} differs by {difference(grad, others[name])}"
            )
    assert a.params.keys() == b.params.keys()
    for name, param in a.params.items():
        assert torch.equal(param, b.params[name]), (
            f"{name} differs by {difference(param, b.params[name])}"
        )


def assert_same(serial: RunRecord, parallel: RunRecord, tolerance: float) -> None:
    """Law 1, told by the first thing that differs."""
    for step, (a, b) in enumerate(zip(serial.losses, parallel.losses, strict=True)):
        assert abs(a - b) <= tolerance * abs(a), f"loss of step {step}: {a} and {b}"
        norm_a, norm_b = serial.norms[step], parallel.norms[step]
        for name, grad in serial.grads[step].items():
            far = difference(grad, parallel.grads[step][name])
            assert far <= tolerance, f"{name} of step {step} is off by {far:.2e}"
        assert abs(norm_a - norm_b) <= tolerance * norm_a, (
            f"norm of step {step}: {norm_a} and {norm_b}"
        )
    assert serial.params.keys() == parallel.params.keys()
    for name, param in serial.params.items():
        far = difference(param, parallel.params[name])
        assert far <= tolerance, f"{name} after {len(serial.losses)} steps is off by {far:.2e}"

"""The layout law's measuring device: trains a small model on any layout and gathers all that the law speaks of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megascratch.config.derive import derive
from megascratch.config.fields import with_fields
from megascratch.config.laws import validate
from megascratch.config.settings import Config, ParallelConfig
from megascratch.data.batch import Batch, collate
from megascratch.data.loader import sample_numbers
from megascratch.parallel.held import Held
from megascratch.training.trainer import Trainer
from tests.pool import mesh_of, on_ranks

STEPS = 5
BASE = with_fields(Config(), {
    "num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61, "make_vocab_size_divisible_by": 8,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "seq_length": 16, "micro_batch_size": 1, "global_batch_size": 8,
    "lr": 1e-2, "lr_decay_style": "constant", "clip_grad": 0.5, "weight_decay": 0.1, "fp64": True, "mock_data": True,
    "train_iters": STEPS, "init_method_std": 0.1, "ddp_bucket_size": 3000, "seed": 7,
})  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What a run did, in whole tensors."""

    losses: list[float]
    norms: list[float]
    grads: list[dict[str, Tensor]]  # per step, before clipping
    params: dict[str, Tensor]  # after the last step


def config_of(**settings: Any) -> Config:
    config = with_fields(BASE, settings)
    world = 1
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size"):
        world *= settings.get(name, 1)
    config = derive(config, world)
    validate(config, world)
    return config


def batch_of(config: Config, numbers: range) -> Batch:
    """Sample i is a function of i; samples differ in length and hold several documents, so valid tokens are unequal."""
    assert config.model.vocab_size is not None
    samples, s = [], config.data.seq_length
    for number in numbers:
        random = np.random.default_rng(number)
        length = s + 1 - int(random.integers(s // 2))
        samples.append(random.integers(0, config.model.vocab_size, length))
    return collate(
        samples,
        numbers,
        s,
        eod=3,
        reset_position_ids=config.data.reset_position_ids,
        reset_attention_mask=config.data.reset_attention_mask,
        eod_mask_loss=config.data.eod_mask_loss,
    )


def train_on_rank(config: Config, steps: int = STEPS) -> tuple[list[float], list[float], list[list[Held]], list[Held]]:
    """On a rank: (losses, norms, this rank's gradient boxes per step, its parameter boxes)."""
    parallel, size = config.parallel, config.training.micro_batch_size
    mesh = mesh_of(
        parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.data_parallel_size
    )
    trainer = Trainer(config, mesh)
    grads: list[list[Held]] = []
    plain_norm = trainer.data_parallel.norm

    def norm_and_record() -> Tensor:
        grads.append(_copies(trainer.data_parallel.gradients()))
        return plain_norm()

    trainer.data_parallel.norm = norm_and_record  # type: ignore[method-assign]
    losses, norms, consumed = [], [], 0
    for step in range(steps):
        count = config.training.global_batch_size // (size * mesh.dp.size)
        numbers = [sample_numbers(consumed, m, size, mesh.dp.rank, mesh.dp.size) for m in range(count)]
        result = trainer.train_step([batch_of(config, n) for n in numbers], config.optim.lr, step + 1)
        consumed += config.training.global_batch_size
        losses.append(trainer.global_loss(result.loss))
        norms.append(result.grad_norm)
    state = trainer.data_parallel.state()
    return losses, norms, grads, _copies({name: held for name, held in state.items() if name.startswith("param.")})


def _copies(held: dict[str, list[Held]]) -> list[Held]:
    return [replace(box, tensor=box.tensor.clone()) for boxes in held.values() for box in boxes]


def trace(config: Config, steps: int = STEPS, run: Callable = train_on_rank) -> Trace:
    """Trains on the layout of `config` by `run(config, steps)` on each rank and gathers; checks on the way that all
    ranks report the same numbers, that every element is held exactly once, and that copies are equal."""
    world = (
        config.parallel.tensor_model_parallel_size
        * config.parallel.pipeline_model_parallel_size
        * (config.parallel.data_parallel_size or 1)
    )
    return gathered(on_ranks(world, run, config, steps))


def gathered(ranks: list) -> Trace:
    """What `train_on_rank` gave on each rank, in whole tensors."""
    losses, norms = ranks[0][:2]
    for other in ranks:
        assert other[0] == losses and other[1] == norms, "ranks disagree on loss or norm"
    grads = [whole([rank[2][step] for rank in ranks]) for step in range(len(losses))]
    return Trace(losses, norms, grads, whole([rank[3] for rank in ranks]))


def serial(config: Config) -> Trace:
    """The reference: one process, every step one micro-batch that holds the whole global batch; made once for each
    model."""
    plain = {name: getattr(ParallelConfig(), name) for name in vars(ParallelConfig())}
    plain["micro_batch_size"] = config.training.global_batch_size
    plain["ddp_bucket_size"] = 10**6
    return _alone(derive(with_fields(config, plain), 1))


@lru_cache(maxsize=256)
def _alone(config: Config) -> Trace:
    return gathered([train_on_rank(config)])


def whole(ranks: list[list[Held]]) -> dict[str, Tensor]:
    """The whole tensors that the boxes of all ranks make up."""
    tensors: dict[str, Tensor] = {}
    count: dict[str, Tensor] = {}
    everything = [box for held in ranks for box in held]
    for box in sorted(everything, key=lambda box: box.copy):
        if box.name not in tensors:
            tensors[box.name] = torch.full(box.whole_shape, torch.nan, dtype=box.dtype)
            count[box.name] = torch.zeros(box.whole_shape, dtype=torch.int64)
        if box.copy == 0:
            tensors[box.name][box.box.slices] = box.tensor
            count[box.name][box.box.slices] += 1
        else:
            assert torch.equal(tensors[box.name][box.box.slices], box.tensor), f"copy {box.copy} of {box.name} differs"
    for name, times in count.items():
        assert (times == 1).all(), f"{name} is not held exactly once"
    return tensors


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest element."""
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item()


def assert_identical(a: Trace, b: Trace) -> None:
    """Every number to the last bit."""
    assert a.losses == b.losses and a.norms == b.norms
    for step, (grads, others) in enumerate(zip(a.grads, b.grads, strict=True)):
        assert grads.keys() == others.keys()
        for name, grad in grads.items():
            assert torch.equal(grad, others[name]), f"{name} of step {step} differs by {difference(grad, others[name])}"
    assert a.params.keys() == b.params.keys()
    for name, param in a.params.items():
        assert torch.equal(param, b.params[name]), f"{name} differs by {difference(param, b.params[name])}"


def assert_same(serial: Trace, parallel: Trace, tolerance: float) -> None:
    """Law 1, told by the first thing that differs."""
    for step, (a, b) in enumerate(zip(serial.losses, parallel.losses, strict=True)):
        assert abs(a - b) <= tolerance * abs(a), f"loss of step {step}: {a} and {b}"
        norm_a, norm_b = serial.norms[step], parallel.norms[step]
        for name, grad in serial.grads[step].items():
            far = difference(grad, parallel.grads[step][name])
            assert far <= tolerance, f"{name} of step {step} is off by {far:.2e}"
        assert abs(norm_a - norm_b) <= tolerance * norm_a, f"norm of step {step}: {norm_a} and {norm_b}"
    assert serial.params.keys() == parallel.params.keys()
    for name, param in serial.params.items():
        far = difference(param, parallel.params[name])
        assert far <= tolerance, f"{name} after {len(serial.losses)} steps is off by {far:.2e}"

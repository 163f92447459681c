"""The layout law's measuring device: a run on some layout in, everything the law speaks of in whole tensors out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megascratch.config.derive import derive
from megascratch.config.fields import with_fields
from megascratch.config.settings import Config, ParallelConfig
from megascratch.data.samples.batch import Batch, collate
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import Pool, mesh_of

KINDS = ("loss", "grad norm", "gradients", "weights")  # what the law speaks of
EOD = 3  # the token that ends a document in synthetic samples


class RankTrace(NamedTuple):
    """What one rank saw of a run."""

    losses: list[float]
    norms: list[float]
    grads: list[list[ShardedTensor]]  # its boxes of each step, before clipping
    params: list[ShardedTensor]  # its boxes after the last step
    initial: list[ShardedTensor]  # its boxes before the first step


@dataclass(frozen=True)
class RunRecord:
    """What a run did, in whole tensors."""

    losses: list[float]
    norms: list[float]
    grads: list[dict[str, Tensor]]  # per step, before clipping
    params: dict[str, Tensor]  # after the last step
    initial: dict[str, Tensor]  # before the first step

    @property
    def moved(self) -> dict[str, Tensor]:
        """By what each weight has changed, in fp64."""
        return {name: weight.double() - self.initial[name].double() for name, weight in self.params.items()}


class Difference(NamedTuple):
    """How far one number or tensor is from the reference, by some yardstick."""

    kind: str  # of KINDS
    step: int  # 0: before the first step
    tensor: str
    value: float


class RanksDisagree(AssertionError):
    """What the ranks hold or say does not make up one model.

    Args:
        what: 'numbers' (loss or norm), 'copies' (ranks hold other values of one element) or 'places' (an element is
            held by nobody or twice).
        tensor: its name, '' for numbers.
    """

    def __init__(self, what: str, tensor: str, text: str):
        super().__init__(text)
        self.what, self.tensor = what, tensor


def world_of(config: Config) -> int:
    """Ranks of a derived config."""
    parallel = config.parallel
    return (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * (parallel.data_parallel_size or 1)
    )


def synthetic_batch(config: Config, numbers: range) -> Batch:
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
        eod=EOD,
        reset_position_ids=config.data.reset_position_ids,
        reset_attention_mask=config.data.reset_attention_mask,
        eod_mask_loss=config.data.eod_mask_loss,
    )


def train_on_rank(config: Config, steps: int) -> RankTrace:
    """On a rank: trains on synthetic samples and keeps copies of what it holds, on the CPU: gradients without the loss
    scale, of bf16 and fp16 weights the masters."""
    parallel, size = config.parallel, config.training.micro_batch_size
    assert parallel.data_parallel_size is not None and config.training.global_batch_size is not None
    mesh = mesh_of(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.data_parallel_size,
        config.training.device or "cpu",
    )
    trainer = Trainer(config, mesh)
    grads: list[list[ShardedTensor]] = []
    plain_norm = trainer.data_parallel.norm

    def norm_and_record() -> Tensor:
        held = _copies(trainer.data_parallel.gradients())
        grads.append([replace(box, tensor=box.tensor / trainer.scale.scale) for box in held])
        return plain_norm()

    trainer.data_parallel.norm = norm_and_record  # type: ignore[method-assign]
    initial = _parameters(trainer)
    losses, norms, consumed = [], [], 0
    for step in range(steps):
        count = config.training.global_batch_size // (size * mesh.dp.size)
        numbers = [sample_numbers(consumed, m, size, mesh.dp.rank, mesh.dp.size) for m in range(count)]
        result = trainer.train_step([synthetic_batch(config, n) for n in numbers], config.optim.lr, step + 1)
        consumed += config.training.global_batch_size
        losses.append(trainer.global_loss(result.loss))
        norms.append(result.grad_norm)
    return RankTrace(losses, norms, grads, _parameters(trainer), initial)


def _parameters(trainer: Trainer) -> list[ShardedTensor]:
    state = trainer.data_parallel.state()
    kind = "optim.master." if trainer.spec.dtype in (torch.bfloat16, torch.float16) else "param."
    boxes = _copies({name: held for name, held in state.items() if name.startswith(kind)})
    return [replace(box, name=f"param.{box.name.removeprefix(kind)}") for box in boxes]


def _copies(held: dict[str, list[ShardedTensor]]) -> list[ShardedTensor]:
    return [replace(box, tensor=box.tensor.detach().to("cpu", copy=True)) for boxes in held.values() for box in boxes]


def run_on_layout(pool: Pool, config: Config, steps: int, run: Callable = train_on_rank) -> RunRecord:
    """Trains on the layout of `config` by `run(config, steps)` on each rank of the pool and gathers.

    Raises:
        RankFailed: a rank raised, hung or died.
        RanksDisagree: see `gather`.
    """
    return gather(pool.run(world_of(config), run, config, steps))


def gather(ranks: list) -> RunRecord:
    """What `train_on_rank` gave on each rank, in whole tensors; checks on the way that all ranks report the same
    numbers, that every element is held exactly once, and that copies are equal.

    Raises:
        RanksDisagree: one of these does not hold.
    """
    first: RankTrace = ranks[0]
    for rank, other in enumerate(ranks):
        if _numbers(other) != _numbers(first):
            raise RanksDisagree("numbers", "", f"ranks 0 and {rank} disagree on loss or norm")
    grads = [assemble([rank.grads[step] for rank in ranks]) for step in range(len(first.losses))]
    params, initial = assemble([rank.params for rank in ranks]), assemble([rank.initial for rank in ranks])
    return RunRecord(first.losses, first.norms, grads, params, initial)


def _numbers(rank: RankTrace) -> tuple[str, str]:
    """Words compare as equal where numbers are nan."""
    return str(rank.losses), str(rank.norms)


def one_process(config: Config) -> Config:
    """The reference of a layout: one process, every step one micro-batch that holds the whole global batch."""
    plain = {name: getattr(ParallelConfig(), name) for name in vars(ParallelConfig())}
    plain["micro_batch_size"] = config.training.global_batch_size
    plain["ddp_bucket_size"] = 10**6
    return derive(with_fields(config, plain), 1)


def assemble(ranks: list[list[ShardedTensor]]) -> dict[str, Tensor]:
    """The whole tensors that the boxes of all ranks make up.

    Raises:
        RanksDisagree: an element is held by nobody or twice, or a copy differs.
    """
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
        elif not torch.equal(tensors[box.name][box.box.slices], box.tensor):
            raise RanksDisagree("copies", box.name, f"copy {box.copy} of {box.name} differs")
    for name, times in count.items():
        if not (times == 1).all():
            raise RanksDisagree("places", name, f"{name} is not held exactly once")
    return tensors


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest element of `a`; infinite for other shapes and for nan."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    far = ((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item()
    return far if far == far else float("inf")

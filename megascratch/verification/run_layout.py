"""Trains a few steps on a layout and records what the layout law compares: losses, gradient norms, gradients and
weights, assembled into full tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megascratch.config.fields import flat, with_fields
from megascratch.config.imports import run_imports
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import DataConfig, ParallelConfig
from megascratch.data.samples.batch import Batch, collate
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.optim.schedules import OtherRates, weight_decay
from megascratch.parallel.sharded_tensor import MODEL, ShardedTensor
from megascratch.training.start.inputs import own_schedule
from megascratch.training.trainer import Trainer
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool, mesh_for
from megascratch.verification.shrink import EOD

KINDS = ("loss", "grad norm", "gradients", "weights")  # what the layout law compares


class RankTrace(NamedTuple):
    """What one rank recorded of a run."""

    losses: list[float]
    norms: list[float]
    grads: list[list[ShardedTensor]]  # this rank's boxes in each step, before clipping
    params: list[ShardedTensor]  # this rank's boxes after the last step
    initial: list[ShardedTensor]  # this rank's boxes before the first step


@dataclass(frozen=True)
class RunRecord:
    """What all ranks recorded of a run, in full tensors."""

    losses: list[float]
    norms: list[float]
    grads: list[dict[str, Tensor]]  # per step, before clipping
    params: dict[str, Tensor]  # after the last step
    initial: dict[str, Tensor]  # before the first step

    @property
    def moved(self) -> dict[str, Tensor]:
        """How much each weight has changed, in fp64."""
        moved = {}
        for name, weight in self.params.items():
            moved[name] = weight.double() - self.initial[name].double()
        return moved


class Difference(NamedTuple):
    """How far one number or tensor is from the reference, as measured by a `Tolerance`."""

    kind: str  # one of KINDS
    step: int  # 0: before the first step
    tensor: str
    value: float


class RanksDisagree(AssertionError):
    """The numbers or tensors of the ranks do not form one consistent model.

    Args:
        what: 'numbers' (loss or norm), 'copies' (ranks hold different values of one element) or 'places' (no rank holds
            an element, or it is held twice).
        tensor: the name of the tensor; '' for numbers.
    """

    def __init__(self, what: str, tensor: str, text: str):
        super().__init__(text)
        self.what = what
        self.tensor = tensor


def world_of(parallel: ParallelConfig) -> int:
    """The number of ranks of a layout."""
    return Layout.of(parallel).world


def synthetic_batch(data: DataConfig, vocab_size: int, numbers: range) -> Batch:
    """A batch of synthetic samples; sample i is a function of i. Samples differ in length and hold several documents,
    so the micro-batches have different numbers of valid tokens."""
    samples = []
    s = data.seq_length
    for number in numbers:
        random = np.random.default_rng(number)
        length = s + 1 - int(random.integers(s // 2))
        samples.append(random.integers(0, vocab_size, length))
    return collate(
        samples,
        numbers,
        s,
        eod=EOD,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod_mask_loss=data.eod_mask_loss,
    )


def train_on_rank(config: ResolvedConfig, steps: int) -> RankTrace:
    """Runs on each rank: trains on synthetic samples, and copies this rank's tensors to the CPU: gradients without the
    loss scale, and for bf16 and fp16 the master weights."""
    run_imports(config.training.imports or ())  # a worker has not read the settings
    micro_batch_size = config.training.micro_batch_size
    global_batch_size = config.training.global_batch_size
    mesh = mesh_for(Layout.of(config.parallel), config.training.device)
    trainer = Trainer(config, mesh, own_schedule(flat(config)))
    grads: list[list[ShardedTensor]] = []
    plain_parts = trainer.data_parallel.norm_parts

    def record_and_sum() -> Tensor:
        boxes = _copies(trainer.data_parallel.gradients())
        scale = trainer.scale.scale
        grads.append([replace(box, tensor=box.tensor / scale) for box in boxes])
        return plain_parts()

    trainer.data_parallel.norm_parts = record_and_sum  # type: ignore[method-assign]
    initial = _parameters(trainer)
    microbatches = global_batch_size // (micro_batch_size * mesh.dp.size)
    losses = []
    norms = []
    for step in range(steps):
        consumed = step * global_batch_size
        batches = []
        for m in range(microbatches):
            numbers = sample_numbers(consumed, m, micro_batch_size, mesh.dp.rank, mesh.dp.size)
            batches.append(synthetic_batch(config.data, config.model.vocab_size, numbers))
        others = OtherRates(config.optim.decoupled_lr)
        if config.optim.weight_decay_incr_style != "constant":
            decay = weight_decay(config.optim, config.training, step, consumed)
            others = others._replace(weight_decay=decay)
        result = trainer.train_step(batches, config.optim.lr, step + 1, others=others)
        losses.append(trainer.global_loss(result.loss))
        norms.append(result.grad_norm)
    return RankTrace(losses, norms, grads, _parameters(trainer), initial)


def _parameters(trainer: Trainer) -> list[ShardedTensor]:
    """The weights, or their masters where they have some, and the state that layers keep."""
    state = trainer.data_parallel.state()
    boxes = []
    for name, held in state.items():
        if name.startswith(MODEL):
            finest = state.get(f"optim.master.{name.removeprefix('param.')}", held)
            boxes += [replace(box, name=name) for box in finest]
    return _copies({"": boxes})


def _copies(held: dict[str, list[ShardedTensor]]) -> list[ShardedTensor]:
    """All boxes, with copies of their tensors on the CPU."""
    copies = []
    for boxes in held.values():
        for box in boxes:
            copies.append(replace(box, tensor=box.tensor.detach().to("cpu", copy=True)))
    return copies


def run_on_layout(pool: Pool, case: Case, steps: int, run: Callable = train_on_rank) -> RunRecord:
    """Trains on the layout of a case: calls `run(config, steps)` on each rank of the pool and gathers the results.

    Raises:
        RankFailed: a rank raised, hung or died.
        RanksDisagree: see `gather`.
    """
    return gather(pool.run(world_of(case.config.parallel), run, case.config, steps))


def gather(ranks: list) -> RunRecord:
    """Assembles the results of `train_on_rank` of all ranks. Checks that all ranks report the same numbers, that every
    element is held exactly once, and that copies are equal.

    Raises:
        RanksDisagree: one of these checks fails.
    """
    first: RankTrace = ranks[0]
    for rank, other in enumerate(ranks):
        if _numbers(other) != _numbers(first):
            raise RanksDisagree("numbers", "", f"ranks 0 and {rank} disagree on loss or norm")
    grads = []
    for step in range(len(first.losses)):
        grads.append(assemble([rank.grads[step] for rank in ranks]))
    params = assemble([rank.params for rank in ranks])
    initial = assemble([rank.initial for rank in ranks])
    return RunRecord(first.losses, first.norms, grads, params, initial)


def _numbers(rank: RankTrace) -> tuple[str, str]:
    """Losses and norms as texts, because nan is equal to nan only as text."""
    return str(rank.losses), str(rank.norms)


def one_process(config: ResolvedConfig) -> ResolvedConfig:
    """The config of the reference run: one process, and one micro-batch per step that is the entire global batch. With
    the mean of micro-batch means it keeps the micro-batches, which are the same samples on every layout."""
    plain = dict(vars(ParallelConfig()))
    if config.training.calculate_per_token_loss:
        plain["micro_batch_size"] = config.training.global_batch_size
    plain["ddp_bucket_size"] = 10**6
    return resolve(with_fields(config, plain), 1)


def assemble(ranks: list[list[ShardedTensor]]) -> dict[str, Tensor]:
    """Full tensors, assembled from the boxes of all ranks.

    Raises:
        RanksDisagree: an element is held by no rank or twice, or a copy differs.
    """
    tensors: dict[str, Tensor] = {}
    count: dict[str, Tensor] = {}
    boxes = [box for held in ranks for box in held]
    for box in sorted(boxes, key=lambda box: box.copy):
        if box.name not in tensors:
            missing = torch.nan if box.dtype.is_floating_point else -1
            tensors[box.name] = torch.full(box.whole_shape, missing, dtype=box.dtype)
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
    """Largest difference relative to the largest element of `a`; infinite for different shapes and for nan."""
    if a.shape != b.shape:
        return float("inf")
    a = a.double()
    b = b.double()
    largest = a.abs().max().clamp_min(1e-300)
    far = ((a - b).abs().max() / largest).item()
    return math.inf if math.isnan(far) else far

"""Runs the program of one rank of a world that does not exist: its own model chunks, schedule, gradients and optimizer,
one training step, on tensors without memory. What it would do on the target's device and ask of the others is noted.

It is the program of a real rank, not a description of it: only memory, numbers and other ranks are missing.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from megascratch.config.layout import Layout
from megascratch.config.settings import DataConfig
from megascratch.data.samples.batch import Batch, collate
from megascratch.dry_run.memory import MemoryReport, MemoryTracker
from megascratch.dry_run.operations import KernelUse, OperationCounter
from megascratch.dry_run.parameters import ParameterCount, count_parameters
from megascratch.dry_run.settings import ImaginedRun
from megascratch.dry_run.shortening import shortened
from megascratch.dry_run.steps import START, ActionNames, PhaseNames
from megascratch.dry_run.traffic import TrafficRow, traffic_table
from megascratch.model.flops import flops_per_token
from megascratch.model.own_parts import require_own_parts
from megascratch.parallel.imagined import imagined_mesh
from megascratch.parallel.traffic import TrafficLog
from megascratch.training.trainer import Trainer

EOD = 0  # the token that ends a document; the samples have none


@dataclass(frozen=True)
class ImaginedRank:
    """What one rank of a layout holds, and what it does in a training step."""

    rank: int
    place: dict[str, int]  # its number on each axis of the dense view
    layers: list[list[int]]  # of each of its model chunks
    microbatches: int  # of the step
    microbatches_run: (
        int  # of the shorter step that tells the same; those of the timeline of the memory
    )
    parameters: ParameterCount
    memory: MemoryReport
    traffic: list[TrafficRow]
    flops: dict[str, int]  # by operation of the schedule
    kernels: dict[str, KernelUse]  # those chosen for the device, by name
    model_flops: float  # of the whole step on all ranks, without recomputation
    seconds: float  # that this took


def run_rank(run: ImaginedRun, rank: int, whole: bool = False) -> ImaginedRank:
    """The report of one rank of a run.

    Args:
        whole: run every micro-batch, also where a shorter step tells the same.

    Raises: ValueError if the layout has no such rank.
    """
    start = perf_counter()
    config = run.config
    require_own_parts(config.model, config.optim, config.data.seq_length)
    layout = Layout.of(config.parallel)
    log = TrafficLog()
    operations = OperationCounter()
    tracker = MemoryTracker(run.kind)
    gloo = config.parallel.distributed_backend == "gloo"
    tracker.launched = operations.launched
    mesh = imagined_mesh(layout, rank, gloo, log, tracker.tag_messages)
    listeners = (log.at, operations.at, tracker.at)
    with tracker:
        trainer = Trainer(config, mesh, run.schedule)
        tracker.tag_state(trainer.chunks, trainer.data_parallel)
        training = config.training
        microbatches = training.global_batch_size // (training.micro_batch_size * mesh.dp.size)
        # gloo does not report that a message was sent, so messages are held to the end of the step
        every = whole or (gloo and layout.pp > 1)
        step = shortened(lambda m: trainer.orders(m)[mesh.pp.rank], microbatches, every)
        # the device has those of the whole step
        batches = _batches(config.data, training.micro_batch_size, microbatches)
        for at in listeners:
            at(START)
        with operations, tracker.watching(trainer.chunks):
            trainer.train_step(
                batches[: step.microbatches],
                config.optim.lr,
                recorder=ActionNames(listeners),
                phases=PhaseNames(listeners),
            )
    return ImaginedRank(
        rank=rank,
        place=mesh.position.coords("dense"),
        layers=[[int(layer) for layer in chunk.layers] for chunk in trainer.chunks],
        microbatches=microbatches,
        microbatches_run=step.microbatches,
        parameters=count_parameters(config.model, trainer.chunks, trainer.shards, mesh.position),
        memory=tracker.report(),
        traffic=traffic_table(log.communications, step.times),
        flops=operations.flops_by_operation(step.times),
        kernels=operations.kernels(step.times),
        model_flops=flops_per_token(config.model, config.data.seq_length)
        * config.data.seq_length
        * config.training.global_batch_size,
        seconds=perf_counter() - start,
    )


def _batches(data: DataConfig, size: int, count: int) -> list[Batch]:
    """Micro-batches of `size` samples without content, on the meta device."""
    sample = np.full(data.seq_length + 1, EOD + 1)
    batch = collate(
        [sample] * size,
        range(size),
        data.seq_length,
        EOD,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod_mask_loss=data.eod_mask_loss,
    )
    return [batch.to("meta") for _ in range(count)]

"""Runs the program of one rank of a world that does not exist: its own model chunks, schedule, gradients and optimizer,
one training step, on tensors without memory. What it would do on the target's device and ask of the others is noted.

It is the program of a real rank, not a description of it: only memory, numbers and other ranks are missing.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import DataConfig
from megascratch.data.samples.batch import Batch, collate
from megascratch.dry_run.memory import MemoryReport, MemoryTracker
from megascratch.dry_run.operations import KernelUse, OperationCounter
from megascratch.dry_run.parameters import ParameterCount, count_parameters
from megascratch.dry_run.settings import ImaginedRun
from megascratch.dry_run.steps import START, ActionNames, PhaseNames, by_operation
from megascratch.dry_run.traffic import TrafficRow, traffic_table
from megascratch.model.flops import flops_per_token
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
    actions: list[str]  # of the pipeline, in their order
    parameters: ParameterCount
    memory: MemoryReport
    traffic: list[TrafficRow]
    flops: dict[str, int]  # by operation of the schedule
    kernels: dict[str, KernelUse]  # those of matrix products and attention, by name
    model_flops: float  # of the whole step on all ranks, without recomputation
    seconds: float  # that this took


def run_rank(run: ImaginedRun, rank: int) -> ImaginedRank:
    """The report of one rank of a run. Raises: ValueError if the layout has no such rank."""
    start = perf_counter()
    config = run.config
    layout = Layout.of(config.parallel)
    log = TrafficLog()
    operations = OperationCounter()
    tracker = MemoryTracker(run.kind)
    gloo = config.parallel.distributed_backend == "gloo"
    mesh = imagined_mesh(layout, rank, gloo, log, tracker.tag_messages)
    listeners = (log.at, operations.at, tracker.at)
    with tracker:
        trainer = Trainer(config, mesh, run.schedule)
        tracker.tag_state(trainer.chunks, trainer.data_parallel)
        batches = _batches(config.data, config.training, mesh.dp.size)
        log.at(START)
        with operations, tracker.watching(trainer.chunks):
            trainer.train_step(
                batches,
                config.optim.lr,
                recorder=ActionNames(listeners),
                phases=PhaseNames(listeners),
            )
        orders = trainer.orders(len(batches))
    return ImaginedRank(
        rank=rank,
        place=mesh.position.coords("dense"),
        layers=[[int(layer) for layer in chunk.layers] for chunk in trainer.chunks],
        actions=[str(action) for action in orders[mesh.pp.rank]],
        parameters=count_parameters(config.model, trainer.chunks, trainer.shards, mesh.position),
        memory=tracker.report(),
        traffic=traffic_table(log.communications),
        flops=by_operation(operations.flops),
        kernels=dict(operations.kernels),
        model_flops=flops_per_token(config.model, config.data.seq_length)
        * config.data.seq_length
        * config.training.global_batch_size,
        seconds=perf_counter() - start,
    )


def _batches(data: DataConfig, training: ResolvedTraining, data_ranks: int) -> list[Batch]:
    """The micro-batches of a step, of samples without content, on the meta device."""
    size = training.micro_batch_size
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
    count = training.global_batch_size // (size * data_ranks)
    return [batch.to("meta") for _ in range(count)]

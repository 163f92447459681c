"""The simulator beside real runs: each schedule on real ranks, and played with the mean times of its own actions.

    python benchmarks/bench_schedules.py                     # stages that sleep: any number of ranks on any machine
    python benchmarks/bench_schedules.py --model --ranks 2   # the 25 M Llama: needs a core per rank

A stage that sleeps takes its time on no core, so four ranks really run at once on two cores: what is left between the
run and the played schedule is what the runtime, the transfers and the operating system add. Times are in milliseconds,
medians over the steps; `run / played` is that median of the ratio step by step.
"""

import argparse
import statistics
import time
from typing import Any, NamedTuple

import llama_25m as llama
import torch
from torch import Tensor, nn

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.parallel.collectives import all_gather_objects
from megascratch.pipeline.passes import compile_order, placement_of
from megascratch.pipeline.recorder import Recorder
from megascratch.pipeline.runtime import TensorSpec, connect, run
from megascratch.pipeline.stage import Stage
from megascratch.pipeline.trace import Trace
from megascratch.training import schedule_trace
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import Pool, mesh_of

CHUNKS = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved": 2,
    "zb_h1": 1,
    "zb_h2": 1,
    "zb_v": 2,
    "dualpipe_v": 2,
}
# seconds of a rank's share of one micro-batch
FORWARD = 0.024
INPUT = 0.026
WEIGHT = 0.020
SPEC = TensorSpec((256, 1, 384), torch.float32, torch.device("cpu"))


class Work(NamedTuple):
    schedule: str
    ranks: int
    microbatches: int


class _Asleep(torch.autograd.Function):
    """A layer that does nothing but takes its time, its weight gradient when it is asked for."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: nn.Parameter, share: float) -> Tensor:
        ctx.weight = weight
        ctx.share = share
        time.sleep(FORWARD * share)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        time.sleep(INPUT * ctx.share)
        ctx.weight.grad_sink.linear(ctx.weight, grad, grad)
        return grad, None, None


class _SleepySink:
    """Where the weight gradient goes: it takes its time, too."""

    def __init__(self, share: float):
        self.share = share

    def linear(self, weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
        time.sleep(WEIGHT * self.share)

    rows = dense = linear


class Sleeper(nn.Module):
    def __init__(self, share: float, last: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.share = share
        self.last = last
        sink: Any = _SleepySink(share)
        self.weight.grad_sink = sink

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_() if x is None else x
        y = _Asleep.apply(x, self.weight, self.share)
        return y.sum() if self.last else y


def asleep(work: Work, steps: int) -> list[Trace]:
    """On a rank: steps of a pipeline whose stages sleep."""
    chunks = CHUNKS[work.schedule]
    mesh = mesh_of(pp=work.ranks)
    placement = placement_of(work.schedule, work.ranks, chunks)
    orders = compile_order(work.schedule, work.ranks, work.microbatches, chunks)
    mine = [placement.virtual_stage(mesh.pp.rank, chunk) for chunk in range(chunks)]
    stages = [
        Stage(Sleeper(1 / chunks, v == placement.stages - 1), v, placement.stages) for v in mine
    ]
    batches = [torch.ones(SPEC.shape)] * work.microbatches
    connect(mesh.links, mesh.device)
    traces = []
    for _ in range(steps):
        recorder = Recorder(mesh.pp, mesh.device)
        run(
            orders[mesh.pp.rank],
            stages,
            mesh.links,
            batches,
            SPEC,
            placement=placement,
            recorder=recorder,
        )
        traces.append(Trace.of(orders, placement, all_gather_objects(recorder.notes(), mesh.pp)))
    return traces[1:]


def at_work(work: Work, steps: int) -> list[Trace]:
    """On a rank: training steps of the Llama."""
    settings = llama.SETTINGS | {
        "pipeline_model_parallel_size": work.ranks,
        "pipeline_schedule": work.schedule,
        "num_virtual_stages_per_pipeline_rank": CHUNKS[work.schedule],
        "micro_batch_size": 1,
        "global_batch_size": work.microbatches,
    }
    mesh = mesh_of(pp=work.ranks)
    trainer = Trainer(resolve(with_fields(Config(), settings), work.ranks), mesh)
    batches = llama.batches(*llama.samples(work.microbatches), 1)
    traces = []
    for step in range(steps):
        recorder = Recorder(mesh.pp, mesh.device)
        trainer.train_step(batches, llama.LR, step, recorder)
        traces.append(schedule_trace.gather(trainer, recorder, work.microbatches))
    return traces[1:]


def told(work: Work, traces: list[Trace]) -> str:
    disorder = next((trace.disorder for trace in traces if trace.disorder), "as compiled")
    ran, played = ([getattr(trace, name) for trace in traces] for name in ("happened", "typical"))
    numbers = [
        statistics.median(timeline.total for timeline in side) * 1e3 for side in (ran, played)
    ]
    bubbles = [
        statistics.median(timeline.bubble_rate for timeline in side) for side in (ran, played)
    ]
    ratio = statistics.median(a.total / b.total for a, b in zip(ran, played, strict=True))
    times = zip(*(row for trace in traces for row in trace.times), strict=True)
    medians = [statistics.median(column) * 1e3 for column in times]
    return (
        f"{work.schedule:<12}{work.ranks:>3} ranks {disorder:<12} run {numbers[0]:8.1f}  played {numbers[1]:8.1f}  "
        f"run / played {ratio:.3f}  bubble {bubbles[0]:5.1%} played {bubbles[1]:5.1%}  "
        "F {:.1f} I or B {:.1f} W {:.1f} transfer {:.2f}".format(*medians)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", nargs="+", choices=CHUNKS, default=list(CHUNKS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="the first of them is not counted")
    parser.add_argument(
        "--model", action="store_true", help="the 25 M Llama in place of stages that sleep"
    )
    args = parser.parse_args()
    for ranks in args.ranks:
        pool = Pool(timeout=120)
        for schedule in args.schedules:
            work = Work(schedule, ranks, args.microbatches)
            print(
                told(work, pool.run(ranks, at_work if args.model else asleep, work, args.steps)[0]),
                flush=True,
            )
        pool.close()


if __name__ == "__main__":
    main()

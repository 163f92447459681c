"""Pipelines of 2 ranks beside torch.distributed.pipelining: whole training steps of the same 25 M Llama.

    python benchmarks/bench_pipeline.py --schedules 1f1b interleaved zb_h1 zb_v

Both sides have the same layers on the same ranks, the same micro-batches, one thread per rank, gloo, fp32, and step in
turn in the same processes: forward, backward, clipping by the global norm, AdamW. They begin with the same weights, and
it ends with code 1 where the losses of the first steps are not the same. Memory is what a rank's resident set
grew to above its start, measured in processes of their own. `of the played` is the pipeline part of our step beside the
same schedule as the simulator plays it with the mean times of its actions.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import llama_25m as llama
import torch
import torch.distributed as dist
from alternate import Pair, alternate
from ranks import RANKS, fresh, memory, mib
from same_work import Losses, first_losses, require_same_work
from torch import nn
from torch.distributed import pipelining

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.pipeline.recorder import Recorder
from megascratch.pipeline.schedule import Placement
from megascratch.training import schedule_trace
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_of

Step = Callable[[], object]


class Contest(NamedTuple):
    """The same schedule on both sides; `layers` of each virtual stage, the head counted as one and a half."""

    theirs: type
    layers: list[int]
    folded: bool = False


CONTESTS = {
    "gpipe": Contest(pipelining.ScheduleGPipe, [5, 3]),
    "1f1b": Contest(pipelining.Schedule1F1B, [5, 3]),
    "interleaved": Contest(pipelining.ScheduleInterleaved1F1B, [3, 2, 2, 1]),
    "zb_h1": Contest(pipelining.ScheduleInterleavedZeroBubble, [5, 3]),
    "zb_v": Contest(pipelining.ScheduleZBVZeroBubble, [2, 3, 2, 1], folded=True),
    "dualpipe_v": Contest(pipelining.schedules.ScheduleDualPipeV, [2, 3, 2, 1], folded=True),
}


class Work(NamedTuple):
    """Of one step."""

    schedule: str
    microbatches: int
    size: int  # samples in a micro-batch


class Ours:
    def __init__(self, work: Work):
        layers = CONTESTS[work.schedule].layers
        settings = llama.SETTINGS | {
            "pipeline_model_parallel_size": RANKS,
            "pipeline_schedule": work.schedule,
            "pipeline_model_parallel_layout": layers,
            "num_virtual_stages_per_pipeline_rank": len(layers) // RANKS,
            "micro_batch_size": work.size,
            "global_batch_size": work.microbatches * work.size,
        }
        self.mesh = mesh_of(pp=RANKS)
        self.trainer = Trainer(resolve(with_fields(Config(), settings), RANKS), self.mesh)
        self.batches = llama.batches(*llama.samples(work.microbatches * work.size), work.size)

    def step(self) -> None:
        self.result = self.trainer.train_step(self.batches, llama.LR)
        dist.barrier()

    def step_and_loss(self) -> float:
        self.step()
        return self.result.global_loss

    def of_the_played(self) -> float:
        """Time that the schedule allows / time that the pipeline took, in one step."""
        recorder = Recorder(self.mesh.pp, self.mesh.device)
        self.trainer.train_step(self.batches, llama.LR, recorder=recorder)
        trace = schedule_trace.gather(self.trainer, recorder, len(self.batches))
        return trace.typical.total / trace.happened.total

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [weight for chunk in self.trainer.chunks for weight in chunk.parameters()]


class Theirs:
    def __init__(self, work: Work):
        make, layers, folded = CONTESTS[work.schedule]
        rank = dist.get_rank()
        count = len(layers)
        ends = [0, *accumulate(layers)]
        placement = Placement(RANKS, count // RANKS, folded)
        mine = [placement.virtual_stage(rank, chunk) for chunk in range(placement.chunks)]
        parts = [llama.Llama(range(*ends[v : v + 2]), v == 0, v == count - 1) for v in mine]
        stages = [
            pipelining.PipelineStage(part, v, count, torch.device("cpu"))
            for v, part in zip(mine, parts, strict=True)
        ]
        single = issubclass(make, pipelining.schedules.PipelineScheduleSingle)
        self.schedule = make(
            stages[0] if single else stages, work.microbatches, loss_fn=llama.loss_of
        )
        self.model = nn.ModuleList(parts)
        self.first = 0 in mine
        self.last = count - 1 in mine
        self.optimizer = llama.adamw(self.model)
        self.ids, self.labels = llama.samples(work.microbatches * work.size)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.losses: list[torch.Tensor] = []
        ends = {"target": self.labels, "losses": self.losses} if self.last else {}
        self.schedule.step(*[self.ids] * self.first, **ends)
        grads = [weight.grad for weight in self.parameters]
        square = nn.utils.get_total_norm(grads, foreach=True).square()
        dist.all_reduce(square)
        nn.utils.clip_grads_with_norm_(self.parameters, llama.CLIP, square.sqrt(), foreach=True)
        self.optimizer.step()
        dist.barrier()

    def step_and_loss(self) -> float:
        self.step()
        total = torch.stack(self.losses).mean().detach() if self.last else torch.zeros(())
        dist.all_reduce(total)
        return total.item()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


def speed(work: Work, rounds: int) -> tuple[Losses, Pair, float, list[int]]:
    """On a rank: the first losses of both sides, the contest, our part of what the played schedule allows, and the
    number of weights of both sides."""
    ours = Ours(work)
    theirs = Theirs(work)
    losses = first_losses(ours.step_and_loss, theirs.step_and_loss)
    pair = alternate(ours.step, theirs.step, rounds, warmup=0)
    allowed = statistics.median(ours.of_the_played() for _ in range(3))
    return (
        losses,
        pair,
        allowed,
        [sum(weight.numel() for weight in side.parameters) for side in (ours, theirs)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--schedules", nargs="+", choices=CONTESTS, default=["1f1b", "interleaved", "zb_h1", "zb_v"]
    )
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["speed", "memory"], help="one of the two measurements")
    args = parser.parse_args()
    for schedule in args.schedules:
        work = Work(schedule, args.microbatches, args.micro_batch_size)
        if args.only != "memory":
            print(f"{schedule:<12}{told_speed(work, args.rounds)}", flush=True)
        if args.only != "speed":
            ours, theirs = (fresh(partial(memory, side), work) for side in (Ours, Theirs))
            print(
                f"{schedule:<12}memory of each rank, MiB: ours {mib(ours)}, theirs {mib(theirs)}",
                flush=True,
            )


def told_speed(work: Work, rounds: int) -> str:
    answers = fresh(speed, work, rounds)
    losses, pair, allowed, _ = answers[0]
    require_same_work(f"{work.schedule:<12}", losses)
    weights = [sum(counts) for counts in zip(*(answer[3] for answer in answers), strict=True)]
    assert weights[0] == weights[1], weights
    tokens = work.microbatches * work.size * llama.SEQUENCE
    return f"{tokens / pair.ours:5.0f} tokens/s   {pair}   {allowed:.1%} of the played"


if __name__ == "__main__":
    main()

"""DP 2 and ZeRO-1 beside torch's DistributedDataParallel, ZeroRedundancyOptimizer and FSDP2: whole training steps of
the same 25 M Llama, without and with gradient accumulation.

    python benchmarks/bench_data_parallel.py

Both sides run on the same two ranks, one thread each, gloo, fp32, and step in turn in the same processes: forward,
backward, clipping by the global norm, AdamW. They begin with the same weights, and it ends with code 1 where the losses
of the first steps are not the same. The peers are set up for speed and memory: gradients as views of DDP's
buckets, no_sync for all micro-batches but the last, fused AdamW. Memory is what a rank's resident set grew to above its
start, measured in processes of their own.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import llama_25m as llama
import torch
import torch.distributed as dist
from alternate import Pair, alternate
from ranks import RANKS, Side, fresh, memory, mib
from same_work import Losses, first_losses, require_same_work
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_of


class Work(NamedTuple):
    """Of one rank in one step."""

    microbatches: int
    size: int  # samples in a micro-batch

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Other ones on each rank."""
        return llama.samples(self.microbatches * self.size, seed=dist.get_rank())


class Ours:
    def __init__(self, work: Work, zero1: bool = False, bucket: int | None = None):
        settings = llama.SETTINGS | {
            "use_distributed_optimizer": zero1,
            "micro_batch_size": work.size,
            "global_batch_size": RANKS * work.microbatches * work.size,
            "ddp_bucket_size": bucket,
        }
        self.trainer = Trainer(resolve(with_fields(Config(), settings), RANKS), mesh_of(dp=RANKS))
        self.batches = llama.batches(*work.samples(), work.size)

    def step(self) -> float:
        loss = self.trainer.train_step(self.batches, llama.LR).loss
        return self.trainer.global_loss(loss)


class Replicated:
    """DDP, and the steps that all peers share."""

    def __init__(self, work: Work):
        self.work = work
        self.ids, self.labels = (x.split(work.size) for x in work.samples())
        self.model = self.distributed()
        self.optimizer = self.optimizer_of(self.model)

    def distributed(self) -> nn.Module:
        return DistributedDataParallel(llama.Llama(), gradient_as_bucket_view=True)

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        return llama.adamw(model)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self.model.no_sync():
                yield

    def step(self) -> float:
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for m, (ids, labels) in enumerate(zip(self.ids, self.labels, strict=True)):
            with self.accumulating(m == self.work.microbatches - 1):
                loss = llama.loss_of(self.model(ids), labels) / self.work.microbatches
                loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), llama.CLIP, foreach=True)
        self.optimizer.step()
        dist.all_reduce(total)
        return total.item() / RANKS


class ShardedOptimizer(Replicated):
    """ZeRO-1 of torch, beside DDP."""

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        first, *others = llama.adamw(model).param_groups
        settings = {"lr": llama.LR, "betas": llama.BETAS, "fused": True}
        optimizer = ZeroRedundancyOptimizer(
            first["params"], torch.optim.AdamW, weight_decay=first["weight_decay"], **settings
        )
        for group in others:
            optimizer.add_param_group(
                {"params": group["params"], "weight_decay": group["weight_decay"]}
            )
        return optimizer


class FullySharded(Replicated):
    """FSDP2 that keeps the weights between forward and backward, as ZeRO-1 and ZeRO-2 do."""

    def distributed(self) -> nn.Module:
        model = llama.Llama()
        for block in model.layers.values():
            fully_shard(block, reshard_after_forward=False)
        return fully_shard(model, reshard_after_forward=False)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield


class Contest(NamedTuple):
    ours: Callable[[Work], Side]
    theirs: Callable[[Work], Side]


def contests(bucket: int | None) -> dict[str, Contest]:
    ddp = partial(Ours, bucket=bucket)
    zero1 = partial(Ours, zero1=True, bucket=bucket)
    return {
        "DP 2 / DDP": Contest(ddp, Replicated),
        "ZeRO-1 / ZeroRedundancyOptimizer": Contest(zero1, ShardedOptimizer),
        "ZeRO-1 / FSDP2": Contest(zero1, FullySharded),
        "ZeRO-1 / our DP 2": Contest(zero1, ddp),
    }


def speed(contest: Contest, work: Work, rounds: int) -> tuple[Losses, Pair]:
    """On a rank: the first losses of both sides, and the contest."""
    ours = contest.ours(work)
    theirs = contest.theirs(work)
    losses = first_losses(ours.step, theirs.step)
    return losses, alternate(ours.step, theirs.step, rounds, warmup=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4, help="of 256 tokens in a step of a rank")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--ddp-bucket-size", type=int, help="elements in a bucket of ours; default: as in training"
    )
    parser.add_argument("--only", choices=contests(None), nargs="+", default=list(contests(None)))
    args = parser.parse_args()
    for name, contest in contests(args.ddp_bucket_size).items():
        for microbatches in args.microbatches if name in args.only else []:
            work = Work(microbatches, args.samples // microbatches)
            losses, pair = fresh(speed, contest, work, args.rounds)[0]
            tokens = RANKS * work.microbatches * work.size * llama.SEQUENCE
            require_same_work(f"{name:<33}{microbatches} x {work.size} ", losses)
            print(
                f"{name:<33}{microbatches} x {work.size}{tokens / pair.ours:7.0f} tokens/s   {pair}",
                flush=True,
            )
            ours, theirs = (fresh(memory, side, work) for side in contest)
            print(f"{'':<33}MiB of each rank: ours {mib(ours)}, theirs {mib(theirs)}", flush=True)


if __name__ == "__main__":
    main()

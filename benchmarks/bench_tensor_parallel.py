"""TP 2, without and with sequence parallelism, beside torch's DTensor: whole training steps of the same 25 M Llama.

    python benchmarks/bench_tensor_parallel.py

Both sides run on the same two ranks, one thread each, gloo, fp32, and step in turn in the same processes: forward,
backward, clipping by the global norm, AdamW. The peer is `parallelize_module` with the plan that torchtitan uses; its
norm is summed by hand from the local shards, which costs it less than clip_grad_norm_ on DTensors does. They begin with
the same weights, and it ends with code 1 where the losses of the first steps are not the same. Memory is what
a rank's resident set grew to above its start, measured in processes of their own.
"""

import argparse
from contextlib import nullcontext

import llama_25m as llama
import torch
import torch.distributed as dist
from alternate import Pair, alternate
from ranks import RANKS, fresh, memory, mib
from same_work import Losses, first_losses, require_same_work
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_of


class Ours:
    def __init__(self, samples: int, sequence_parallel: bool):
        settings = llama.SETTINGS | {
            "tensor_model_parallel_size": RANKS,
            "sequence_parallel": sequence_parallel,
            "micro_batch_size": samples,
            "global_batch_size": samples,
        }
        self.trainer = Trainer(resolve(with_fields(Config(), settings), RANKS), mesh_of(tp=RANKS))
        self.batches = llama.batches(*llama.samples(samples), samples)

    def step(self) -> float:
        return self.trainer.global_loss(self.trainer.train_step(self.batches, llama.LR).loss)


class Theirs:
    def __init__(self, samples: int, sequence_parallel: bool, split_loss: bool = False):
        mesh = init_device_mesh("cpu", (RANKS,))
        self.model = llama.Llama()
        parallelize_module(self.model, mesh, _ends(sequence_parallel, split_loss))
        for block in self.model.layers.values():
            parallelize_module(block, mesh, _block(sequence_parallel))
        self.loss_context = loss_parallel if split_loss else nullcontext
        self.optimizer = llama.adamw(self.model)
        self.ids, self.labels = llama.samples(samples)

    def step(self) -> float:
        self.optimizer.zero_grad()
        with self.loss_context():
            loss = llama.loss_of(self.model(self.ids), self.labels)
            loss.backward()
        self._clip()
        self.optimizer.step()
        return (loss.full_tensor() if isinstance(loss, DTensor) else loss).item()

    def _clip(self) -> None:
        split = []
        whole = []
        for weight in self.model.parameters():
            grad = weight.grad
            if isinstance(grad, DTensor) and grad.placements[0].is_partial():  # of a norm under SP
                grad = weight.grad = grad.redistribute(placements=[Replicate()])
            if isinstance(grad, DTensor):
                (split if grad.placements[0].is_shard() else whole).append(grad.to_local())
            else:
                whole.append(grad)
        square = nn.utils.get_total_norm(split, foreach=True).square()
        dist.all_reduce(square)
        norm = (square + nn.utils.get_total_norm(whole, foreach=True).square()).sqrt()
        torch._foreach_mul_([*split, *whole], (llama.CLIP / (norm + 1e-6)).clamp(max=1.0))


def _ends(sequence_parallel: bool, split_loss: bool) -> dict:
    between = Shard(1) if sequence_parallel else Replicate()
    logits = Shard(-1) if split_loss else Replicate()
    return {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        **({"norm": SequenceParallel()} if sequence_parallel else {}),
        "output": ColwiseParallel(
            input_layouts=between, output_layouts=logits, use_local_output=not split_loss
        ),
    }


def _block(sequence_parallel: bool) -> dict:
    plan: dict = {f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")}
    plan |= {f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")}
    between = Shard(1) if sequence_parallel else Replicate()
    plan |= {
        name: RowwiseParallel(output_layouts=between)
        for name in ("attention.wo", "feed_forward.w2")
    }
    if sequence_parallel:
        plan |= {name: SequenceParallel() for name in ("attention_norm", "ffn_norm")}
        plan["attention"] = PrepareModuleInput(
            input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
        )
        plan["feed_forward"] = PrepareModuleInput(
            input_layouts=Shard(1), desired_input_layouts=Replicate()
        )
    return plan


def speed(
    samples: int, sequence_parallel: bool, split_loss: bool, rounds: int
) -> tuple[Losses, Pair]:
    """On a rank: the first losses of both sides, and the contest."""
    ours = Ours(samples, sequence_parallel)
    theirs = Theirs(samples, sequence_parallel, split_loss)
    losses = first_losses(ours.step, theirs.step)
    return losses, alternate(ours.step, theirs.step, rounds, warmup=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4, help="of 256 tokens in a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--loss-parallel",
        action="store_true",
        help="the peer's loss over split logits, slower here",
    )
    args = parser.parse_args()
    for name, sequence_parallel in (("TP 2", False), ("TP 2 + SP", True)):
        losses, pair = fresh(
            speed, args.samples, sequence_parallel, args.loss_parallel, args.rounds
        )[0]
        require_same_work(f"{name:<10}", losses)
        print(
            f"{name:<10}{args.samples * llama.SEQUENCE / pair.ours:7.0f} tokens/s   {pair}",
            flush=True,
        )
        ours, theirs = (
            fresh(memory, *side)
            for side in (
                (Ours, args.samples, sequence_parallel),
                (Theirs, args.samples, sequence_parallel, args.loss_parallel),
            )
        )
        print(f"{'':<10}MiB of each rank: ours {mib(ours)}, theirs {mib(theirs)}", flush=True)


if __name__ == "__main__":
    main()

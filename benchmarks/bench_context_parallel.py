"""Context parallelism on two ranks beside an all-gather of keys and values in plain torch: whole training steps of the
same 25 M Llama on one long sample.

    python benchmarks/bench_context_parallel.py
    python benchmarks/bench_context_parallel.py --long      one step of 131,072 tokens on four ranks

Both sides run on the same two ranks, one thread each, gloo, fp32, and step in turn in the same processes. The peer
divides the sample in the same zig-zag way; in each layer it gathers keys and values with autograd, and calls torch's
attention once for each of its two chunks with the keys up to the chunk's end. Both begin with the same weights, and it
ends with code 1 where the losses are not the same. Memory is what a rank's resident set grew to above its start, and
for one rank with the whole sample.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import llama_25m as llama
import torch
import torch.distributed as dist
import torch.nn.functional as F
from alternate import Pair, alternate
from ranks import RANKS, _resident, mib
from same_work import Losses, first_losses, require_same_work
from torch import Tensor, nn

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import Batch, collate
from megascratch.parallel.sample_cut import positions_of_ranks
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import Pool, mesh_of

KINDS = ("p2p", "all_gather", "a2a")


def sample(length: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (length + 1,), generator=torch.Generator().manual_seed(0))


def batch_of(tokens: Tensor) -> Batch:
    return collate([tokens.numpy()], range(1), len(tokens) - 1, None)


class Ours:
    def __init__(self, length: int, kind: str, ranks: int = RANKS):
        settings = llama.SETTINGS | {
            "seq_length": length,
            "context_parallel_size": ranks,
            "cp_comm_type": kind,
            "micro_batch_size": 1,
            "global_batch_size": 1,
        }
        config = resolve(with_fields(Config(), settings), ranks)
        self.trainer = Trainer(config, mesh_of(cp=ranks))
        self.batch = batch_of(sample(length, llama.VOCAB))

    def step(self) -> float:
        return self.trainer.global_loss(self.trainer.train_step([self.batch], llama.LR).loss)


class _Gather(torch.autograd.Function):
    """[..., s, d] of each rank -> [..., ranks * s, d] along dim 2; backward sums what belongs to this rank."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(RANKS)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(RANKS, 2)[dist.get_rank()]


class GatheredAttention(llama.Attention):
    """Of this rank's two chunks; keys and values of all ranks are put in the order of their positions."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (-1, llama.WIDTH // llama.HEADS)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        q, k = llama.rotate(q, cos, sin), llama.rotate(k, cos, sin)
        k, v = _Gather.apply(k)[:, :, self.order], _Gather.apply(v)[:, :, self.order]
        half = q.shape[2] // 2
        rows = []
        for chunk, end in zip(q.split(half, 2), self.ends, strict=True):
            mask = torch.ones(half, end, dtype=torch.bool).tril(end - half)
            rows.append(F.scaled_dot_product_attention(chunk, k[:, :, :end], v[:, :, :end], mask))
        return self.wo(torch.cat(rows, 2).transpose(1, 2).flatten(2))


class Theirs:
    def __init__(self, length: int):
        positions = torch.from_numpy(positions_of_ranks("zigzag", length, RANKS))
        mine = positions[dist.get_rank()]
        llama.SEQUENCE = length
        self.model = llama.Llama()
        for block in self.model.layers.values():
            attention = block.attention
            attention.__class__ = GatheredAttention
            attention.order = positions.flatten().argsort()
            attention.ends = (int(mine[len(mine) // 2 - 1]) + 1, int(mine[-1]) + 1)
        self.model.cos = self.model.cos[mine]
        self.model.sin = self.model.sin[mine]
        self.optimizer = llama.adamw(self.model)
        tokens = sample(length, llama.VOCAB)
        self.ids = tokens[:-1][mine][None]
        self.labels = tokens[1:][mine][None]

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = llama.loss_of(self.model(self.ids), self.labels) / RANKS
        loss.backward()
        flat = torch.cat([weight.grad.flatten() for weight in self.model.parameters()])
        dist.all_reduce(flat)
        for weight, grad in zip(
            self.model.parameters(),
            flat.split([weight.numel() for weight in self.model.parameters()]),
            strict=True,
        ):
            weight.grad = grad.view_as(weight)
        nn.utils.clip_grad_norm_(self.model.parameters(), llama.CLIP)
        self.optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item()


def speed(length: int, kind: str, rounds: int) -> tuple[Losses, Pair]:
    """On a rank: the first losses of both sides, and the contest."""
    ours = Ours(length, kind)
    theirs = Theirs(length)
    losses = first_losses(ours.step, theirs.step, 3)
    return losses, alternate(ours.step, theirs.step, rounds, warmup=1)


def activations(length: int, kind: str, ranks: int) -> int:
    """On a rank: bytes by which the second step grew the resident set at most above what the first has left."""
    side = Ours(length, kind, ranks)
    side.step()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    side.step()
    return _resident("VmHWM") - before


def long_step(length: int) -> tuple[float, float]:
    """On a rank: the loss and the seconds of one step of a small model on one long sample."""
    settings = llama.SETTINGS | {
        "num_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "ffn_hidden_size": 512,
        "vocab_size": 8192,
        "seq_length": length,
        "context_parallel_size": 4,
        "loss_chunk_rows": 4096,
        "micro_batch_size": 1,
        "global_batch_size": 1,
    }
    trainer = Trainer(resolve(with_fields(Config(), settings), 4), mesh_of(cp=4))
    start = time.perf_counter()
    result = trainer.train_step([batch_of(sample(length, 8192))], llama.LR)
    return trainer.global_loss(result.loss), time.perf_counter() - start


def ranks_run(ranks: int, function: Callable, *args: object) -> list:
    """function(*args) on new processes; results in rank order."""
    pool = Pool(timeout=3600)
    try:
        return pool.run(ranks, function, *args)
    finally:
        pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="one step of 131,072 tokens")
    args = parser.parse_args()
    if args.long:
        loss, seconds = ranks_run(4, long_step, 131072)[0]
        print(f"131,072 tokens on 4 ranks: loss {loss:.4f}, {seconds:.0f} s for one step")
        return
    for kind in KINDS:
        losses, pair = ranks_run(RANKS, speed, args.length, kind, args.rounds)[0]
        require_same_work(f"{kind:<11}", losses)
        print(f"{kind:<11}{args.length / pair.ours:7.0f} tokens/s   {pair}", flush=True)
    whole = ranks_run(1, activations, args.length, "p2p", 1)
    print(f"MiB of activations, one rank with the whole sample: {mib(whole)}", flush=True)
    for kind in KINDS:
        found = ranks_run(RANKS, activations, args.length, kind, RANKS)
        print(
            f"{kind:<11}MiB of each rank: {mib(found)}, {max(found) / whole[0]:.2f} of one rank's",
            flush=True,
        )


if __name__ == "__main__":
    main()

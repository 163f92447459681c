"""A toolkit must cost nothing: tokens/s of a whole training step in one process, beside plain_gpt.py of the same shape.

Both train (forward, backward, clip, AdamW) on the same batches from the same weights, in turn in one process; it ends
with code 1 where the first losses are not the same (on a CPU, in fp64). On a CPU they have the same threads, and memory
is kept as `pretrain` keeps it (that helps both); with `--device cuda` ours trains with `--bf16`, theirs under autocast.
`--compile` compiles both: ours per block, theirs as a whole.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import torch
from alternate import alternate
from plain_gpt import NAMES, PlainTrainer
from same_work import copy_weights, first_losses, initial_weights, require_same_work
from torch import Tensor

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.model.flops import flops_per_token
from megascratch.parallel.mesh import Mesh
from megascratch.training.hardware import keep_freed_memory
from megascratch.training.trainer import Trainer

Shape = tuple[int, int, int, int, int, int]  # layers, width, heads, positions, vocabulary, batch
SHAPES: dict[str, dict[str, Shape]] = {
    "cpu": {
        "nanoGPT's CPU shape": (4, 128, 4, 64, 65, 12),
        "GPT-2 small, 256 tokens": (12, 768, 12, 256, 50304, 2),
    },
    "cuda": {"GPT-2 small, 1,024 tokens": (12, 768, 12, 1024, 50304, 32)},
}
PEAK = 989e12  # FLOP/s of an H100 or H200 in dense bf16, by its data sheet
LR = 1e-3
EXACT_STEPS = 3  # in fp64, before the clock runs
Step = Callable[[], float]


def config_of(shape: Shape, **more: object) -> Config:
    layers, width, heads, positions, vocab, batch = shape
    settings = {
        "num_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "seq_length": positions,
        "vocab_size": vocab,
        "make_vocab_size_divisible_by": 1,
        "micro_batch_size": batch,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "lr": 1e-3,
        "adam_beta2": 0.99,
        "weight_decay": 0.1,
        **more,
    }
    return resolve(with_fields(Config(), settings), 1)


def tokens_of(shape: Shape) -> tuple[Tensor, Tensor]:
    """Ids and labels, on the CPU as a loader has them."""
    positions, vocab, size = shape[3:]
    tokens = torch.randint(
        0, vocab, (size, positions + 1), generator=torch.Generator().manual_seed(0)
    )
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def ours(shape: Shape, device: str, compiled: bool, fp64: bool = False) -> Step:
    config = config_of(shape, bf16=device == "cuda", fp64=fp64, compile=compiled)
    trainer = Trainer(config, Mesh.alone(device))
    (ids, labels), size = tokens_of(shape), shape[-1]
    samples = torch.cat((ids, labels[:, -1:]), 1).numpy()
    batch = collate(list(samples), range(size), ids.shape[1], None)
    return lambda: trainer.train_step([batch], LR).global_loss


def theirs(shape: Shape, device: str, compiled: bool, fp64: bool = False) -> Step:
    dtype = torch.float64 if fp64 else torch.float32
    trainer = PlainTrainer(*shape[:5], device, compiled, dtype)
    copy_weights(initial_weights(config_of(shape, fp64=fp64)), trainer.model, NAMES)
    ids, labels = tokens_of(shape)
    return lambda: trainer.step(ids.to(device), labels.to(device))


def finished(step: Step, device: str) -> Step:
    """The step and all that it left to the device."""
    if device == "cpu":
        return step

    def whole() -> float:
        loss = step()
        torch.cuda.synchronize()
        return loss

    return whole


def with_peak(make: Callable[[], Step], device: str) -> tuple[Step, float]:
    """The step, and on CUDA the GiB that its model and two steps take at the most."""
    if device == "cpu":
        return make(), 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make()
    for _ in range(2):
        step()
    return step, (torch.cuda.max_memory_allocated() - before) / 2**30


def measure(name: str, shape: Shape, args: argparse.Namespace) -> str:
    if args.device == "cpu":
        exact = [make(shape, args.device, compiled=False, fp64=True) for make in (ours, theirs)]
        require_same_work(f"{name:<26} fp64 ", first_losses(*exact, EXACT_STEPS), torch.float64)
        del exact
    sides = [
        with_peak(partial(make, shape, args.device, args.compile), args.device)
        for make in (ours, theirs)
    ]
    (mine, my_peak), (plain, plain_peak) = sides
    mine = finished(mine, args.device)
    plain = finished(plain, args.device)
    losses = first_losses(mine, plain)
    if args.device == "cuda":
        require_same_work(f"{name:<26} ", losses, torch.bfloat16)
    else:
        print(f"{name:<26} fp32 {losses}", flush=True)
    rounds = args.rounds if shape[4] < 1000 else max(5, args.rounds // 3)
    pair = alternate(mine, plain, rounds, warmup=0)
    if args.device == "cpu":
        return f"{name:<26} {args.threads} threads   {pair}"
    tokens = shape[3] * shape[5]
    flops = flops_per_token(config_of(shape).model, shape[3])
    told = [
        f"{side} {tokens / seconds:,.0f} tokens/s, MFU {flops * tokens / seconds / PEAK:.1%}, {peak:.1f} GiB"
        for side, seconds, peak in (
            ("ours", pair.ours, my_peak),
            ("theirs", pair.theirs, plain_peak),
        )
    ]
    how = "compiled" if args.compile else "eager"
    return "\n  ".join(
        [f"{name}, batch {shape[5]}, bf16, {how}, {torch.cuda.get_device_name()}", str(pair), *told]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, help="in place of the shape's own")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for name, shape in SHAPES[args.device].items():
        print(measure(name, (*shape[:5], args.batch_size or shape[5]), args), flush=True)


if __name__ == "__main__":
    main()

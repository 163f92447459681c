"""Attention on one GPU: tokens/s of causal, packed and windowed samples of 4,096, 8,192 and 32,768 tokens.

    python benchmarks/gpu_attention.py

Forward and backward of one attention core with the heads of Llama 3 8B (32 query and 8 key/value heads of 128), bf16,
by the kernels that this project chooses and by torch's attention with a dense mask, where that fits into the memory.
Takes less than four minutes. Ends with code 1 without a CUDA device.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megascratch.layers.attention_pieces import Positions
from megascratch.layers.kernels import flash_attention
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.layers.visible import Visible

HEADS, GROUPS, WIDTH = 32, 8, 128
LENGTHS = (4096, 8192, 32768)
DOCUMENT, WINDOW = 1024, 1024
SECONDS = 4.0  # for each row
LARGEST_MASK = 8192  # tokens


def visible_of(kind: str, length: int) -> Visible:
    places = np.arange(length)
    starts = None
    if kind == "packed":
        starts = (places // DOCUMENT * DOCUMENT)[None]
    on_device = torch.from_numpy(places).cuda()
    visible = Visible(
        on_device,
        on_device,
        None if starts is None else torch.from_numpy(starts).cuda(),
        in_order=True,
        on_host=Positions(places, places, starts),
    )
    return visible.windowed(WINDOW if kind == "windowed" else None)


def step_of(attention: Callable[[Tensor, Tensor, Tensor], Tensor], length: int) -> Callable:
    q = torch.randn(
        1, HEADS, length, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    k, v = (
        torch.randn(
            1, GROUPS, length, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        for _ in range(2)
    )
    grad = torch.randn_like(q)

    def step() -> None:
        attention(q, k, v).backward(grad)
        q.grad = k.grad = v.grad = None

    return step


def tokens_per_second(step: Callable, length: int) -> float:
    """The median of the steps in `SECONDS`, after three to warm up."""
    for _ in range(3):
        step()
    times = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return length / statistics.median(times)


def main() -> int:
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 1
    scores = Scores(WIDTH**-0.5)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for kind in ("causal", "packed", "windowed"):
        for length in LENGTHS:
            visible = visible_of(kind, length)
            ours = step_of(lambda q, k, v, seen=visible: attend(q, k, v, seen, scores), length)
            line = f"{kind:<9}{length:6} tokens: {tokens_per_second(ours, length):12,.0f} tokens/s"
            if length <= LARGEST_MASK and kind != "causal":
                mask = visible.dense
                theirs = step_of(
                    lambda q, k, v, mask=mask: F.scaled_dot_product_attention(
                        q, k, v, attn_mask=mask, enable_gqa=True
                    ),
                    length,
                )
                line += f", with a dense mask {tokens_per_second(theirs, length):12,.0f}"
            print(line, flush=True)
    q = torch.empty(1, 1, 8, WIDTH, device="cuda", dtype=torch.bfloat16)
    kernel = "torch's flash kernel" if flash_attention.supports(q, q, q, scores) else "plain steps"
    print(f"pieces by {kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Breaks of the memory of a dry run: what a kernel keeps, who owns it, when it is freed; each with the law that must
notice."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megascratch.dry_run import memory
from megascratch.dry_run.memory import MemoryTracker
from megascratch.layers.kernels import attention, cpu
from megascratch.parallel import imagined
from tests.support import peaks

Law = Callable[[Path, Callable], None]


@cache
def needs(case: str) -> Law:
    return lambda folder, run: peaks.the_dry_run_needs_what_a_rank_needs(case, run)


def owners(folder: Path, run: Callable) -> None:
    peaks.the_optimizer_is_divided_among_data_ranks()


def whole_scale(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    out, scale = plain_norm(x, weight, epsilon)
    return out, torch.empty_like(x) if x.is_meta else scale


def weights_and_gradients_swapped(self: MemoryTracker, chunks: Any, data_parallel: Any) -> None:
    swapped = {"weights": "gradients", "gradients": "weights"}

    def tag(tensors: Any, part: str) -> None:
        plain_tag(self, tensors, swapped.get(part, part))

    with patch.object(self, "tag", tag):
        plain_state(self, chunks, data_parallel)


plain_norm = cpu.rms_norm
plain_done = imagined._Done
plain_tag = MemoryTracker.tag
plain_state = MemoryTracker.tag_state

BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "a norm keeps its input twice on meta only": (
        [(cpu, "rms_norm", whole_scale)],
        needs("llama, tp and sp"),
    ),
    "attention on meta keeps its scores": (
        [(attention, "is_imitated", lambda *tensors: False)],
        needs("llama fp64, long, full"),
    ),
    "what a dry run frees stays": (
        [(memory, "ref", lambda storage, free: None)],
        needs("llama, tp and sp"),
    ),
    "weights are tagged as gradients": (
        [(MemoryTracker, "tag_state", weights_and_gradients_swapped)],
        owners,
    ),
    "gloo says when a send has ended": (
        [(imagined, "_Done", lambda told=True: plain_done())],
        needs("interleaved"),
    ),
}

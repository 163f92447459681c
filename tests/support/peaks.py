"""The peak memory of a rank in a real step, as torch's allocator on the CPU counts it, and in the dry run."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig
from megascratch.dry_run.memory import MemoryReport
from megascratch.dry_run.run import run_rank
from megascratch.dry_run.settings import ImaginedRun
from megascratch.parallel.device_kind import DeviceKind
from megascratch.parallel.imagined import imagined_mesh
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.traffic import TrafficLog
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_for
from tests.support.layout_runs import config_of, synthetic_batch, world_of
from tests.support.pairwise_cover import DOCUMENTS, LLAMA, MEGATRON

LARGE = {
    "num_layers": 2,
    "hidden_size": 64,
    "vocab_size": 509,
    "seq_length": 128,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "fp64": False,
    "ddp_bucket_size": 10**9,
}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}
DP = {"data_parallel_size": 2, "global_batch_size": 8, "overlap_grad_reduce": False}
PP = {"pipeline_model_parallel_size": 2, "num_layers": 4}
TP = {"tensor_model_parallel_size": 2}
CASES: dict[str, dict[str, Any]] = {
    "gpt, dropout, selective": {**DROPOUT, "recompute_granularity": "selective"},
    "llama, all parts recomputed": {
        **LLAMA,
        **DROPOUT,
        "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "layernorm", "mlp"],
    },
    "llama bf16, documents": {**LLAMA, **DOCUMENTS, "bf16": True},
    "llama fp64, long, full": {
        **LLAMA,
        "fp64": True,
        "seq_length": 320,
        "recompute_granularity": "full",
    },
    "llama, tp and sp": {**LLAMA, **TP, "sequence_parallel": True},
    "megatron bf16, norms in fp32": {**MEGATRON, "bf16": True},
    "interleaved": {**PP, "num_virtual_stages_per_pipeline_rank": 2, "global_batch_size": 8},
    "zb_h1": {**LLAMA, **PP, "pipeline_schedule": "zb_h1", "global_batch_size": 8},
    "bf16, zero1": {**LLAMA, **DP, "bf16": True, "use_distributed_optimizer": True},
}
HELD_BY_GLOO = ("llama, tp and sp",)  # cases that need the most in the middle of messages
CLOSE = 0.003  # scalars and the like that a real step makes on the CPU anyway


def large_config(case: str, **more: Any) -> ResolvedConfig:
    return config_of(**{**LARGE, **CASES[case], **more})


def needed(config: ResolvedConfig, mesh: Mesh) -> int:
    """The most bytes that torch had allocated at once, from before the trainer is made through one step; with those of
    the batches, which numpy has allocated."""
    size = config.training.micro_batch_size
    per_rank = config.training.global_batch_size // mesh.dp.size
    batches = []
    for start in range(0, per_rank, size):
        batches.append(synthetic_batch(config, range(start, start + size)))
    gc.collect()  # what earlier trainers hold would be freed in the middle of this one's step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        Trainer(config, mesh).train_step(batches, 1e-3, judge=lambda loss, norm: "")
    live = 0
    most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    for batch in batches:
        most += sum(getattr(value, "nbytes", 0) for value in vars(batch).values())
    return most


def needed_on_rank(config: ResolvedConfig) -> int:
    return needed(config, mesh_for(Layout.of(config.parallel)))


def _answer_ones(out: Tensor, *sent: Tensor) -> None:
    """Said instead of the others: unwritten memory may say anything, such as that all weights are frozen."""
    if sent:
        out.fill_(1)


def needed_without_the_others(config: ResolvedConfig) -> list[int]:
    """What each rank needs where nothing is carried: gloo's threads let go of a message some time after it was
    awaited."""
    found = []
    layout = Layout.of(config.parallel)
    for rank in range(layout.world):
        mesh = imagined_mesh(layout, rank, True, TrafficLog(), _answer_ones)
        found.append(needed(config, replace(mesh, device=torch.device("cpu"))))
    return found


def the_dry_run_needs_what_a_rank_needs(case: str, run: Callable) -> None:
    """On every rank, within CLOSE; `run` as `on_ranks`."""
    config = large_config(case)
    alone = case in HELD_BY_GLOO
    ranks = (
        needed_without_the_others(config)
        if alone
        else run(world_of(config), needed_on_rank, config)
    )
    for rank, most in enumerate(ranks):
        memory = dry_run(config, rank)
        assert abs(memory.peak - most) <= CLOSE * most, (
            f"rank {rank} needs {most} bytes, the dry run says {memory.peak} at {memory.peak_action}: {memory.at_peak}"
        )


def the_optimizer_is_divided_among_data_ranks() -> None:
    """bf16 weights, fp32 gradients, and three fp32 numbers per weight for the optimizer, which ZeRO-1 divides
    (Rajbhandari et al. 2020, section 3)."""
    found = dry_run(large_config("bf16, zero1")).timeline[-1].at_end
    weights = found["weights"] // 2
    assert found["gradients"] == 4 * weights
    assert found["optimizer"] == 12 * weights // 2


def dry_run(config: ResolvedConfig, rank: int = 0, kind: DeviceKind = "cpu") -> MemoryReport:
    return run_rank(ImaginedRun(config, None, kind, []), rank).memory

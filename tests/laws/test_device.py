"""A device never changes the model: a run on CUDA is the run on the CPU, for every kind of model, and ranks that share
a GPU obey the layout law there."""

from typing import Any

import pytest
import torch

from megascratch.config.settings import Config
from megascratch.verification import run_layout
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool
from megascratch.verification.shrink import EPSILON
from megascratch.verification.verify import differences, yardstick_of
from tests.support.layout_runs import (
    STEPS,
    RunRecord,
    assert_identical,
    assert_same,
    config_of,
    gather,
    train_on_rank,
)
from tests.support.pairwise_cover import DOCUMENTS, GPT, LLAMA, MEGATRON, PARTLY_ROTARY

pytestmark = pytest.mark.gpu

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}
FULL = {"recompute_granularity": "full"}
KINDS: dict[str, dict[str, Any]] = {
    "LayerNorm, GELU, learned positions, tied": GPT,
    "untied, a padded vocabulary": {"untie_embeddings_and_output_weights": True, "vocab_size": 33},
    "RMSNorm, SwiGLU, rotary, grouped queries": LLAMA,
    "squared ReLU, partly rotary, one kv head": PARTLY_ROTARY,
    "interleaved rotary, norms stored minus one": MEGATRON,
    "openai's GELU, no positions": {"openai_gelu": True, "position_embedding_type": "none"},
    "dropout": DROPOUT,
    "dropout, Llama": {**LLAMA, **DROPOUT},
    "documents": DOCUMENTS,
    "documents, dropout, Llama": {**LLAMA, **DOCUMENTS, **DROPOUT},
    "selective recomputation": {**LLAMA, **DROPOUT, "recompute_granularity": "selective"},
    "full recomputation": {**DROPOUT, **FULL},
    "recomputation in units": {**FULL, "recompute_num_layers": 3},
    "recomputation of a block": {
        **DOCUMENTS,
        **FULL,
        "recompute_method": "block",
        "recompute_num_layers": 1,
    },
    "micro-batches of 2": {**LLAMA, "micro_batch_size": 2},
    "one micro-batch": {**DROPOUT, "micro_batch_size": 8},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2.sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True, **DROPOUT},
    "tp4 of 2 kv heads": {"tensor_model_parallel_size": 4, **LLAMA},
    "dp2": {"data_parallel_size": 2},
    "dp2.zero1": {"data_parallel_size": 2, "use_distributed_optimizer": True, **LLAMA},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2 zb_h1": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_h1", **DROPOUT},
    "pp2 zb_v": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_v"},
    "pp2 interleaved": {
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
        **LLAMA,
    },
    "tp2.pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, **DOCUMENTS},
    "tp2.pp2.dp2": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "sequence_parallel": True,
        "use_distributed_optimizer": True,
        **LLAMA,
        **DROPOUT,
    },
}


def alone(config: Config) -> RunRecord:
    """In this process, micro-batch by micro-batch."""
    return gather([train_on_rank(config)])


def on_both(**settings: Any) -> list[RunRecord]:
    return [alone(config_of(**settings, device=device)) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp64_cuda_trains_the_cpus_model(kind):
    assert_same(*on_both(**KINDS[kind]), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp32_cuda_trains_the_cpus_model(kind):
    """With an epsilon above the rounding of the gradients, see test_layout.py."""
    assert_same(*on_both(**KINDS[kind], fp64=False, adam_eps=1e-3), 1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_low_precision_cuda_differs_from_the_cpu_by_no_more_than_rounding(kind, precision):
    """Beside what rounding costs the CPU, see verification/tolerance.py."""
    settings = {**KINDS[kind], "fp64": False, precision: True, "adam_eps": EPSILON[precision]}
    if precision == "fp16":
        settings["initial_loss_scale"] = 2.0**12
    yardstick = yardstick_of(Case("cpu", config_of(**settings, device="cpu")), STEPS, precision)
    for found in differences(*on_both(**settings), yardstick):
        assert found.value <= yardstick.limit, f"{found}: {yardstick.describe(found.value)}"


@pytest.mark.parametrize("kind", ["dropout", "documents, dropout, Llama", "full recomputation"])
def test_on_cuda_a_compiled_run_is_the_run_as_written(kind):
    torch._dynamo.reset()
    settings = {"num_layers": 2, "global_batch_size": 4, **KINDS[kind], "device": "cuda"}
    assert_same(alone(config_of(**settings)), alone(config_of(**settings, compile=True)), 1e-9)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "kind", ["dropout", "documents", "RMSNorm, SwiGLU, rotary, grouped queries"]
)
def test_on_cuda_the_same_run_has_the_same_bits(kind, precision):
    settings = {**KINDS[kind], "fp64": False, **precision, "device": "cuda", "micro_batch_size": 4}
    assert_identical(alone(config_of(**settings)), alone(config_of(**settings)))


@pytest.fixture(scope="module")
def pool():
    """Ranks that share the GPUs there are."""
    pool = Pool(timeout=600.0, device="cuda", backend="gloo")
    yield pool
    pool.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_on_a_shared_gpu_never_changes_the_model(layout, pool):
    one = alone(config_of(**{**LAYOUTS[layout], **ALONE}, device="cuda"))
    config = config_of(**LAYOUTS[layout], device="cuda", distributed_backend="gloo")
    assert_same(one, run_layout.run_on_layout(pool, Case("layout", config), STEPS), 1e-9)


ALONE: dict[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "data_parallel_size": 1,
    "pipeline_schedule": "1f1b",
    "num_virtual_stages_per_pipeline_rank": 1,
    "sequence_parallel": False,
}


def test_nccl_of_one_rank_trains_the_same_bits():
    pool = Pool(timeout=600.0, device="cuda")
    try:
        config = config_of(**LLAMA, **DROPOUT, device="cuda")
        assert_identical(
            alone(config), run_layout.run_on_layout(pool, Case("layout", config), STEPS)
        )
    finally:
        pool.close()

"""The FLOPs of a step are those of its matrix products and of attention, counted by hand."""

import pytest
import torch

from megascratch.dry_run.run import run_rank
from megascratch.dry_run.settings import ImaginedRun
from megascratch.layers.kernels import cpu
from tests.support.layout_runs import config_of
from tests.support.pairwise_cover import LLAMA

H, F, LAYERS, VOCAB, S, SAMPLES = 64, 256, 2, 128, 32, 8


@pytest.mark.parametrize("recompute", [None, "full"])
def test_all_ranks_together_compute_what_the_model_asks_for(recompute):
    """2 for each weight and token forward, 4 backward; attention: two products of s x s forward, five backward, as
    a fused kernel computes the scores again. Full recomputation adds a forward of the blocks."""
    config = config_of(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        data_parallel_size=2,
        num_layers=LAYERS,
        hidden_size=H,
        ffn_hidden_size=F,
        vocab_size=VOCAB,
        make_vocab_size_divisible_by=64,
        seq_length=S,
        global_batch_size=SAMPLES,
        fp64=False,
        bf16=True,
        recompute_granularity=recompute,
    )
    run = ImaginedRun(config, None, "cuda", [])
    of_stages = [sum(run_rank(run, rank).flops.values()) for rank in (0, 4)]
    matrices = LAYERS * (4 * H * H + 2 * H * F)
    scores = LAYERS * S * H  # multiplications of one product of attention, for each token
    forward = 2 * matrices + 4 * scores
    expected = 3 * forward + 2 * scores + 6 * H * VOCAB
    if recompute:
        expected += forward
    assert 4 * sum(of_stages) == SAMPLES * S * expected


LLAMA_ON_CUDA = {
    "rms_norm": 2 * 5,  # two of each block, and the last one
    "rms_norm_backward": 2 * 5,
    "row_statistics": 2,
    "to_gradient": 2,
    "_scaled_dot_product_flash_attention": 2 * 2,
}
LLAMA_ON_CPU = {"rms_norm": 2 * 5, "swiglu": 2 * 2, "swiglu_backward": 2 * 2}


@pytest.mark.parametrize(("kind", "expected"), [("cuda", LLAMA_ON_CUDA), ("cpu", LLAMA_ON_CPU)])
def test_kernels_are_those_of_the_device(kind, expected):
    """Two micro-batches through two blocks: each kernel is called as often as the model has the layer."""
    if kind == "cpu" and not cpu.supports(torch.empty(1)):
        pytest.skip("needs the compiled kernels")
    precision = {"fp64": False, "bf16": kind == "cuda"}
    config = config_of(**{**LLAMA, **precision}, num_layers=2, global_batch_size=2)
    used = run_rank(ImaginedRun(config, None, kind, []), 0).kernels
    assert {name: used[name].calls for name in expected} == expected
    assert sum(use.calls for name, use in used.items() if "adamw" in name) >= 1

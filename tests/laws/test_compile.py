"""`--compile` decides how fast a block computes, never what: a compiled run is the run as it is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch._dynamo

from megascratch.config.settings import Config
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool
from megascratch.verification.run_layout import RankTrace, run_on_layout
from tests.support.layout_runs import STEPS, assert_same, config_of, serial, train_on_rank
from tests.support.other_layers import with_other_layers
from tests.support.pairwise_cover import DOCUMENTS, LLAMA, MEGATRON

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}
WAYS: dict[str, dict[str, Any]] = {
    "gpt": DROPOUT,
    "llama": LLAMA,
    "recomputed, documents": {**LLAMA, **DOCUMENTS, "recompute_granularity": "full"},
    "interleaved rotary, norms stored minus one": MEGATRON,
    "parts recomputed": {
        **LLAMA,
        **DROPOUT,
        "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "layernorm", "mlp"],
    },
    "tp2 with sequence parallelism, dp2": {
        **LLAMA,
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
    "zb_h1 of two stages": {
        **DROPOUT,
        "pipeline_model_parallel_size": 2,
        "pipeline_schedule": "zb_h1",
    },
}


def counted(config: Config, steps: int, train: Callable = train_on_rank) -> RankTrace:
    """On a rank: the run, in which the compiler had work to do."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = train(config, steps)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    return run


@pytest.fixture(scope="module")
def pool():
    """Whose ranks may take their time to compile."""
    pool = Pool(timeout=300.0)
    yield pool
    pool.close()


def graphs(layers: int, run: Callable) -> int:
    """How many a run has compiled, with dropout, whose sites are different numbers in each layer."""
    settings = {**LLAMA, **DROPOUT, "global_batch_size": 1, "compile": True}
    counted(config_of(num_layers=layers, **settings), 1, run)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("run", "layers"), [(train_on_rank, 2), (with_other_layers, 12)], ids=["one kind", "pattern"]
)
def test_layers_of_the_same_kind_share_their_graphs(run, layers):
    """Twice as many layers have no more kinds."""
    assert graphs(2 * layers, run) == graphs(layers, run)


@pytest.mark.deep
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_run_is_the_run_as_written(way, pool):
    settings = {"num_layers": 2, "global_batch_size": 4, **WAYS[way]}
    compiled = run_on_layout(
        pool, Case("compiled", config_of(**settings, compile=True)), STEPS, counted
    )
    assert_same(serial(config_of(**settings)), compiled, 1e-9)

"""What goes through host memory arrives as it would have gone straight. A GPU is not needed: the ranks are told that
their tensors lie on one."""

from contextlib import ExitStack
from itertools import cycle
from typing import Any
from unittest import mock

import pytest
import torch

from megascratch.config.settings import Config
from megascratch.parallel import collectives
from megascratch.parallel.host_staging import needs_host_staging
from megascratch.pipeline import runtime
from tests.support.layout_runs import RankTrace, assert_identical, config_of, trace, train_on_rank
from tests.support.rank_pool import mesh_of, on_ranks

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2.sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2 zb_h1": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_h1"},
    "pp2 interleaved": {
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "dp2": {"data_parallel_size": 2},
    "dp2.zero1": {"data_parallel_size": 2, "use_distributed_optimizer": True},
}


def through_host(config: Config, steps: int) -> RankTrace:
    """On a rank. A collective asks once for the tensor, and once more for its copy in host memory; that copy is one
    here, too, or what comes back need not be brought up."""
    turns = cycle([True, False])
    with ExitStack() as told:
        told.enter_context(
            mock.patch.object(collectives, "needs_host_staging", lambda x, group: next(turns))
        )
        told.enter_context(mock.patch.object(torch.Tensor, "cpu", torch.Tensor.clone))
        told.enter_context(mock.patch.object(runtime, "needs_host_staging", lambda x, group: True))
        return train_on_rank(config, steps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_whose_messages_go_through_host_memory_has_the_same_bits(layout):
    config = config_of(**LAYOUTS[layout])
    assert_identical(trace(config, 2), trace(config, 2, through_host))


def places() -> list[tuple[str, bool]]:
    """On a rank: where gloo's messages of both devices lie, and whether those of a CPU are staged."""
    transport, cpu = mesh_of(dp=2).dp.transport, torch.zeros(1)
    return [
        (transport.carried_by(torch.device(device)).type, needs_host_staging(cpu, transport))
        for device in ("cpu", "cuda")
    ]


def test_gloo_takes_messages_from_host_memory():
    assert on_ranks(2, places) == [[("cpu", False), ("cpu", False)]] * 2

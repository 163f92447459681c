"""The norm of the weights and the zeros in the gradient count every element once, on any layout."""

import math
from typing import Any

import pytest

from megascratch.commands import main
from tests.support.layout_runs import config_of, synthetic_batch, trace, world_of
from tests.support.pretrain_runs import losses, mock
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer

UNTIED = {"untie_embeddings_and_output_weights": True, "log_num_zeros_in_grad": True}
ZERO1 = {"data_parallel_size": 2, "use_distributed_optimizer": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2.sp.dp2.zero1": {"tensor_model_parallel_size": 2, "sequence_parallel": True, **ZERO1},
    "tied over pp2": {
        "pipeline_model_parallel_size": 2,
        "untie_embeddings_and_output_weights": False,
    },
    "dp2 in bf16, half offloaded": {
        "data_parallel_size": 2,
        "ddp_bucket_size": 700,
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": 0.5,
        "fp64": False,
        "bf16": True,
    },
}


def measured(config) -> tuple[int | None, float]:
    """On a rank: the zeros and the norm of the first step."""
    trainer = build_trainer(config)
    size = config.training.micro_batch_size
    ranks = trainer.mesh.dp
    batches = []
    for number in range(config.training.global_batch_size // (size * ranks.size)):
        first = (number * ranks.size + ranks.rank) * size
        batches.append(synthetic_batch(config, range(first, first + size)))
    result = trainer.train_step(batches, config.optim.lr)
    return result.num_zeros, trainer.params_norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_counts_once(layout):
    config = config_of(**UNTIED | LAYOUTS[layout])
    whole = trace(config, 1)
    zeros = sum(int((grad == 0).sum()) for grad in whole.grads[0].values())
    squares = sum(float(weight.double().square().sum()) for weight in whole.params.values())
    assert zeros > 0 or layout == "tied over pp2"
    for num_zeros, norm in on_ranks(world_of(config), measured, config):
        assert num_zeros == zeros
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_nothing_is_counted_unless_asked():
    assert measured(config_of())[0] is None


def test_a_run_logs_both_and_all_its_rates(tmp_path):
    settings = {
        "log_params_norm": True,
        "log_num_zeros_in_grad": True,
        "decoupled_lr": 0.5,
        "weight_decay_incr_style": "linear",
        "start_weight_decay": 0.0,
        "end_weight_decay": 0.1,
        "log_interval": 1,
    }
    assert main(mock(tmp_path, **settings)) == 0
    lines = [row for row in losses(tmp_path) if "grad_norm" in row]
    assert len(lines) > 2
    assert all(row["params_norm"] > 0 and row["num_zeros"] >= 0 for row in lines)
    assert all(row["decoupled_learning_rate"] > row["learning_rate"] for row in lines[1:])
    assert [row["weight_decay"] for row in lines] == sorted({row["weight_decay"] for row in lines})

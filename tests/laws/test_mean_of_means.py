"""Without calculate_per_token_loss gradients are those of the mean of micro-batch means, on every layout alike."""

from typing import Any

import pytest
import torch

from megascratch.config.notices import notices
from megascratch.model.build import build_chunks
from megascratch.parallel.mesh import Mesh
from megascratch.verification.run_layout import difference, one_process, train_on_rank
from tests.support.layout_runs import assert_same, config_of, gather, synthetic_batch, trace
from tests.support.pairwise_cover import DOCUMENTS

MEANS: dict[str, Any] = {"calculate_per_token_loss": False, "micro_batch_size": 2, **DOCUMENTS}
PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2.zero1": {"data_parallel_size": 2, "use_distributed_optimizer": True},
    "tp2.sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": PP2,
    "pp2.dp2 interleaved": {
        **PP2,
        "data_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
        "global_batch_size": 8,
    },
    "zb_h1": {**PP2, "pipeline_schedule": "zb_h1"},
    "zb_v": {**PP2, "pipeline_schedule": "zb_v"},
}


def by_plain_autograd(config) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss per token of the first step, and the gradients of the mean of means."""
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    size = config.training.micro_batch_size
    firsts = range(0, config.training.global_batch_size, size)
    total = 0.0
    tokens = 0.0
    for first in firsts:
        batch = synthetic_batch(config, range(first, first + size))
        loss = chunk(None, batch)
        (loss / batch.loss_mask.sum() / len(firsts)).backward()
        total += loss.item()
        tokens += batch.loss_mask.sum().item()
    return total / tokens, {name: p.grad for name, p in chunk.named_parameters()}


def test_gradients_are_those_of_the_mean_of_means_and_the_loss_is_per_token():
    config = config_of(**MEANS)
    ours = gather([train_on_rank(config, 1)])
    loss, grads = by_plain_autograd(config)
    per_token = gather([train_on_rank(config_of(**MEANS | {"calculate_per_token_loss": True}), 1)])
    assert ours.losses[0] == pytest.approx(loss, rel=1e-12)
    assert ours.losses[0] == pytest.approx(per_token.losses[0], rel=1e-12)
    for name, grad in ours.grads[0].items():
        whole = grads[name.removeprefix("grad.")][: len(grad)]  # without the vocabulary's padding
        assert difference(whole, grad) < 1e-9, name
    assert max(difference(a, per_token.grads[0][n]) for n, a in ours.grads[0].items()) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_the_mean_of_means(layout):
    config = config_of(**MEANS | LAYOUTS[layout])
    alone = gather([train_on_rank(one_process(config), 2)])
    assert_same(alone, trace(config, 2), 1e-9)


def test_it_is_announced():
    said = [notice for notice in notices(config_of(**MEANS)) if "micro-batch means" in notice]
    assert len(said) == 1
    assert not any("micro-batch means" in notice for notice in notices(config_of()))

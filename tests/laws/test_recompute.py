"""Recomputation keeps less and changes no bit, dropout included; every weight gradient is delivered once."""

from typing import Any
from unittest.mock import patch

import pytest
import torch

from megascratch.layers import offload
from megascratch.layers.offload import HostMemory
from megascratch.layers.recompute import RecomputeUnit, units
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import assert_identical, config_of, synthetic_batch, trace, traced
from tests.support.pairwise_cover import LLAMA
from tests.support.rank_pool import mesh_of

SELECTIVE = {"recompute_granularity": "selective"}
FULL = {"recompute_granularity": "full"}
PARTS = {**SELECTIVE, "recompute_modules": ["core_attn", "layernorm", "mlp"]}
WAYS: dict[str, dict[str, Any]] = {
    "selective": SELECTIVE,
    "norms": {**SELECTIVE, "recompute_modules": ["layernorm"]},
    "all parts": PARTS,
    "activations": {**SELECTIVE, "recompute_modules": ["activation"]},
    "away": {"offload_modules": ["core_attn", "layernorm", "mlp"]},
    "some away": {"offload_modules": ["mlp"], **SELECTIVE},
    "each layer": FULL,
    "units of 3": {**FULL, "recompute_num_layers": 3},
    "first of each chunk": {**FULL, "recompute_method": "block", "recompute_num_layers": 1},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2.sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2.dp2.zero1": {
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
    "pp2 zb_h1": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_h1"},
    "tp2.pp2 interleaved": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputation_changes_no_bit(layout, way):
    settings = {"fp64": False, **LLAMA, **DROPOUT, **LAYOUTS[layout]}
    assert_identical(traced(config_of(**settings), 2), trace(config_of(**settings, **WAYS[way]), 2))


@pytest.mark.parametrize("way", WAYS)
def test_without_dropout_and_with_documents_it_changes_no_bit_either(way):
    settings = {"fp64": False, "reset_attention_mask": True, "reset_position_ids": True}
    assert_identical(traced(config_of(**settings), 2), trace(config_of(**settings, **WAYS[way]), 2))


def kept_bytes(**settings) -> int:
    """Of all distinct tensors that one forward keeps for backward, the inputs of recomputed parts left out."""
    config = config_of(**DROPOUT, seq_length=32, **settings)
    chunk = Trainer(config, mesh_of()).chunks[0]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = chunk(None, synthetic_batch(config, range(2)))
    assert loss.requires_grad
    return sum(kept.values())


def test_the_more_is_recomputed_the_less_is_kept():
    half = {**FULL, "recompute_method": "block", "recompute_num_layers": 2}
    none, selective, block, full = (kept_bytes(**way) for way in ({}, SELECTIVE, half, FULL))
    assert none > selective > full and none > block > full
    assert full < none / 4 and block == pytest.approx((none + full) / 2, rel=0.1)
    scores = 4 * 2 * 4 * 32 * 32 * 8  # layers, samples, heads, queries, keys, bytes
    assert none - selective > scores


def test_norms_and_feed_forwards_are_kept_no_more():
    """Two norms of each of four layers return 2 x 32 x 2h; of a feed-forward both products' results stay away."""

    def kept(*parts: str) -> int:
        return kept_bytes(recompute_granularity="selective", recompute_modules=list(parts))

    config = config_of()
    tokens = 2 * 32 * 8  # samples, positions, bytes
    core = kept("core_attn")
    norms = 2 * config.model.num_layers * config.model.hidden_size * tokens
    assert core - kept("core_attn", "layernorm") == norms
    inner = 2 * config.model.num_layers * config.model.ffn_hidden_size * tokens
    assert core - kept("core_attn", "mlp") == inner


def test_evaluation_recomputes_nothing():
    chunk = Trainer(config_of(**FULL), mesh_of()).chunks[0].eval()
    batch, calls = synthetic_batch(config_of(), range(1)), []
    chunk.layers["0"].register_forward_pre_hook(lambda *args: calls.append(1))
    chunk(None, batch).backward()
    assert calls == [1]
    chunk.train()
    chunk(None, batch).backward()
    assert calls == [1, 1, 1], "in training the layer runs again"


@pytest.mark.parametrize(
    ("layers", "block", "number", "expected"),
    [
        (4, False, 1, [(0, 1, True), (1, 2, True), (2, 3, True), (3, 4, True)]),
        (5, False, 2, [(0, 2, True), (2, 4, True), (4, 5, True)]),
        (4, True, 2, [(0, 1, True), (1, 2, True), (2, 4, False)]),
        (2, True, 3, [(0, 1, True), (1, 2, True)]),
        (0, False, 2, []),
        (0, True, 2, []),
    ],
)
def test_units_cover_every_layer_once(layers, block, number, expected):
    assert units(layers, block, number) == [RecomputeUnit(*unit) for unit in expected]


def test_what_waits_in_host_memory_is_kept_no_more_and_comes_back_in_time():
    """Each tensor is fetched while the one that was saved after it is used."""
    host = HostMemory()
    weight = torch.nn.Parameter(torch.ones(4, 4))
    fetched: list[int] = []
    plain = offload._Saved.fetch

    def noted(self: offload._Saved) -> None:
        fetched.append(int(self.host.flatten()[0]))
        plain(self)

    with patch.object(offload, "SMALLEST", 0), patch.object(offload._Saved, "fetch", noted):
        x = torch.full((4, 4), 2.0, requires_grad=True)
        host.begin()
        for _ in range(4):
            x = host.keeping(lambda x: (x @ weight).relu(), x)
        assert host.last is not None
        x.sum().backward()
    assert weight.grad is not None
    assert fetched[0] > fetched[-1] and len(fetched) > 8, "those before it are fetched ahead"

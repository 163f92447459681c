"""The table of all weights, which each rank makes alone, against the parameters that the ranks really have."""

import pytest

from megascratch.config.layout import Layout
from megascratch.model.table import weight_table
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import config_of
from tests.support.pairwise_cover import LLAMA
from tests.support.rank_pool import mesh_for, on_ranks

PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS = {
    "one": {},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": PP2,
    "pp2 untied": {**PP2, "untie_embeddings_and_output_weights": True},
    "pp2 interleaved llama": {**PP2, "num_virtual_stages_per_pipeline_rank": 2, **LLAMA},
    "pp2 zb_v": {**PP2, "pipeline_schedule": "zb_v"},
    "pp2 without layers on the second": {**PP2, "pipeline_model_parallel_layout": [4, 0]},
    "tp2 pp2 kv1": {**PP2, "tensor_model_parallel_size": 2, "num_query_groups": 1},
}


def held(config) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], set[str]]:
    """On a rank: the shapes of its parameters, and those that the table has for it; the names of tied copies."""
    mesh = mesh_for(Layout.of(config.parallel))
    parameters = {}
    for chunk in Trainer(config, mesh).chunks:
        for name, parameter in chunk.named_parameters():
            parameters[name] = tuple(parameter.shape)
    table = weight_table(config.model, config.parallel, mesh.layout)
    shapes = {name: shard.local_shape(mesh.layout) for name, shard in table.items()}
    return parameters, shapes, {name for name, shard in table.items() if shard.tied}


def no_messages(config) -> None:
    """On one of the ranks, while the others do nothing."""
    mesh = mesh_for(Layout.of(config.parallel))
    if mesh.is_first:
        assert weight_table(config.model, config.parallel, mesh.layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_table_has_the_weights_of_all_stages(layout):
    config = config_of(**LAYOUTS[layout])
    found = on_ranks(Layout.of(config.parallel).world, held, config)
    everything: dict[str, tuple[int, ...]] = {}
    for parameters, shapes, tied in found:
        everything |= parameters
        assert (shapes, tied) == found[0][1:]
    assert everything == found[0][1]
    two_copies = layout not in ("one", "tp2 sp", "pp2 untied")
    assert found[0][2] == ({"embedding.word.weight", "head.weight"} if two_copies else set())


def test_a_rank_makes_the_table_alone():
    on_ranks(4, no_messages, config_of(**LAYOUTS["tp2 pp2 kv1"]))

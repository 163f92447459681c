"""The parameters of every rank of a layout, without the ranks."""

from typing import Any

from megascratch.config.layout import Layout
from megascratch.dry_run.parameters import count_parameters
from megascratch.model import table
from megascratch.model.build import build_chunks
from megascratch.parallel.imagined import imagined_mesh
from megascratch.parallel.traffic import TrafficLog
from megascratch.pipeline.passes import placement_of
from megascratch.training.hardware import parameter_dtype
from tests.support.layout_runs import config_of


def all_ranks_count_the_model_once(settings: dict[str, Any]) -> None:
    """The first copies that all ranks hold together are the parameters of the model."""
    config = config_of(**settings)
    layout, parallel = Layout.of(config.parallel), config.parallel
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    placement = placement_of(parallel.pipeline_schedule, layout.pp, chunks)
    shards = table.weight_table(config.model, parallel, layout)
    total = 0
    for rank in range(layout.world):
        mesh = imagined_mesh(layout, rank, False, TrafficLog())
        dtype = parameter_dtype(config.optim)
        built = build_chunks(config.model, parallel, mesh, dtype, 1, placement)
        found = count_parameters(config.model, built, shards, mesh.position)
        assert found.counted <= found.held <= found.model
        total += found.counted
    assert total == found.model

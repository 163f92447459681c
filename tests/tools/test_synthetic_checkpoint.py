"""A checkpoint of a run that never was is the one that the run would write."""

from functools import partial

import pytest

from megascratch import checkpoint
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint, problems
from megascratch.config.settings import Config
from tests.support.layout_runs import config_of, world_of
from tests.support.random_shards import world
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer
from tools.synthetic_checkpoint import held_by_rank, write_checkpoint

MODEL = {"vocab_size": 61, "num_query_groups": 1, "bf16": True, "fp64": False}
LAYOUTS = {
    "ddp": {"tensor_model_parallel_size": 2, "data_parallel_size": 2},
    "zero1": {
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
}


def config_for(layout: str) -> Config:
    return config_of(**MODEL | LAYOUTS[layout])


def described(held) -> set:
    """What the records of a rank say, apart from their content."""
    return {
        (item.name, item.whole_shape, item.box, item.dtype, item.copy, item.copied_over)
        for item in held
        if item.tensor.numel()
    }


def trained(config: Config) -> set:
    return described(build_trainer(config).held())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_that_never_was_holds_what_a_real_one_holds(layout):
    config = config_for(layout)
    real = on_ranks(world_of(config), trained, config)
    for rank, boxes in enumerate(real):
        assert described(held_by_rank(config, rank)) == boxes


def test_its_checkpoint_is_valid_and_is_loaded_on_another_layout(tmp_path):
    config = config_for("zero1")
    ranks = map(partial(held_by_rank, config), range(world_of(config)))
    step = write_checkpoint(tmp_path, 5, ranks, {"any": 1})
    assert list(problems(step)) == []
    alone = config_of(**MODEL)
    held = held_by_rank(alone, 0, device="cpu")
    for item in held:
        item.tensor.fill_(7)
    assert checkpoint.load(step, held, world()) == {"any": 1}
    assert all((item.tensor == 0).all() for item in held)
    with OpenCheckpoint(step) as contents:
        assert contents.manifest.number_of_files == world_of(config)


def test_a_rank_that_is_missing_is_noticed(tmp_path):
    config = config_for("zero1")
    ranks = [held_by_rank(config, rank) for rank in range(world_of(config) - 1)]
    with pytest.raises(ValueError, match="elements"):
        write_checkpoint(tmp_path, 5, ranks, {})

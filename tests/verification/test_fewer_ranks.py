"""The nearest layout of the ranks that are there: an axis in use stays in use, and a stage keeps its layers."""

import pytest

from megascratch.config.errors import SettingError
from megascratch.config.fields import flat, with_fields
from megascratch.config.layout import Layout
from megascratch.config.settings import Config
from megascratch.verification.fewer_ranks import at_most, nearest_layout, on_ranks

PP8 = {"pipeline_model_parallel_size": 8, "num_layers": 16}
PP4 = {"pipeline_model_parallel_size": 4, "num_layers": 16}
FIRST = "decoder_first_pipeline_num_layers"
LAST = "decoder_last_pipeline_num_layers"
CUT = "pipeline_model_parallel_layout"


@pytest.mark.parametrize(
    ("own", "world", "nearest"),
    [
        ((8, 16), 1, (1, 1, 1)),
        ((8, 16), 2, (2, 1, 1)),
        ((8, 16), 4, (2, 2, 1)),
        ((8, 16), 8, (2, 2, 2)),  # copies are in use, too: nothing says that there was one
        ((8, 1), 8, (8, 1, 1)),
        ((2, 2), 8, (2, 2, 2)),
        ((1, 4), 2, (1, 2, 1)),
        ((1, 1), 3, (1, 1, 3)),
        ((6, 1), 4, (2, 1, 2)),  # 4 tensor ranks might not divide what 6 can
        ((3, 1), 4, (1, 1, 4)),
        ((1, 6), 5, (1, 5, 1)),
    ],
)
def test_the_nearest_layout_is_this(own, world, nearest):
    assert nearest_layout(Layout(*own), world, True) == Layout(*nearest)


@pytest.mark.parametrize(
    ("own", "world", "nearest"),
    [
        (Layout(tp=2, cp=4), 8, Layout(tp=2, cp=4)),
        (Layout(tp=2, cp=4), 4, Layout(tp=2, cp=2)),
        (Layout(tp=2, cp=4), 2, Layout(tp=2)),
        (Layout(cp=8), 4, Layout(cp=4)),
        (Layout(cp=6), 4, Layout(cp=2, dp=2)),
        (Layout(cp=3), 2, Layout(dp=2)),
        (Layout(pp=2, cp=4), 4, Layout(pp=2, cp=2)),
    ],
)
def test_context_ranks_stay_in_use_and_divide_those_that_were(own, world, nearest):
    assert nearest_layout(own, world, False) == nearest


def test_a_model_without_copies_gets_none_if_there_are_other_axes():
    assert nearest_layout(Layout(8, 16), 8, False) == Layout(4, 2, 1)


def moved(world: int, **settings) -> dict:
    return on_ranks(flat(with_fields(Config(), settings)), world)


def test_fewer_context_ranks_exchange_heads_by_as_many_as_divide_them():
    kind = {"context_parallel_size": 8, "cp_comm_type": "a2a+p2p"}
    sizes = {"hierarchical_context_parallel_sizes": [4, 2]}
    assert moved(2, **kind, **sizes) == {
        "context_parallel_size": 2,
        "hierarchical_context_parallel_sizes": [2, 1],
    }
    assert moved(1, **kind, **sizes) == {
        "context_parallel_size": 1,
        "cp_comm_type": "p2p",
        "hierarchical_context_parallel_sizes": None,
    }


@pytest.mark.parametrize(
    ("settings", "world", "changes"),
    [
        (PP8, 2, {"num_layers": 4}),
        ({**PP8, FIRST: 1, LAST: 3}, 4, {"num_layers": 8}),
        ({**PP8, FIRST: 1, LAST: 3}, 2, {"num_layers": 4}),
        ({**PP8, "num_layers": 15, FIRST: 1}, 2, {"num_layers": 3}),
        ({**PP4, CUT: [1, 5, 7, 3]}, 2, {CUT: [1, 3], "num_layers": 4}),
        ({**PP4, CUT: "E|t*8|t*8|L"}, 2, {CUT: "E|t*8L", "num_layers": 8}),
        ({**PP4, CUT: "E|t*8|t*8|L"}, 3, {CUT: "E|t*8|L", "num_layers": 8}),
        (
            {**PP4, "num_layers": 30, "account_for_loss_in_pipeline_split": True}
            | {"account_for_embedding_in_pipeline_split": True},
            2,
            {"num_layers": 14},
        ),
        (
            {**PP4, "num_virtual_stages_per_pipeline_rank": 2},
            2,
            {"num_layers": 8},
        ),
    ],
)
def test_fewer_stages_keep_their_layers(settings, world, changes):
    found = moved(world, **settings, data_parallel_size=1)
    assert found.pop("pipeline_model_parallel_size") == world
    found.pop("num_virtual_stages_per_pipeline_rank", None)
    assert found == changes


def test_one_stage_is_not_cut():
    found = moved(1, **PP4, **{FIRST: 1, LAST: 1}, pipeline_schedule="zb_h1")
    assert found == {
        "pipeline_model_parallel_size": 1,
        "pipeline_schedule": None,
        FIRST: None,
        LAST: None,
    }


def test_each_copy_keeps_its_micro_batches():
    settings = {"data_parallel_size": 16, "micro_batch_size": 2, "global_batch_size": 96}
    assert moved(4, **settings) == {"data_parallel_size": 4, "global_batch_size": 24}


def test_at_most_some_ranks_leaves_fewer_alone_and_refuses_what_is_wrong():
    legal = flat(Config()) | {"mock_data": True, "vocab_size": 64, "train_iters": 1}
    assert at_most(legal, 8) == legal
    with pytest.raises(SettingError, match="num-attention-heads"):
        at_most({**legal, "tensor_model_parallel_size": 16}, 8)

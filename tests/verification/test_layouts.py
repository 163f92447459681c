"""Which layouts are proved: all that the user's own numbers allow, and nothing that the user has fixed is changed."""

from pathlib import Path

import pytest

from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import flat
from megascratch.config.registry import BUILT_IN
from megascratch.config.settings import Config
from megascratch.verification import small_layout
from megascratch.verification.layouts import every_layout, own_layout, random_layouts
from megascratch.verification.run_layout import world_of
from megascratch.verification.shrink import for_proof
from tests.support.other_layers import pattern

PP4 = {"pipeline_model_parallel_size": 4}


def config_of(**settings) -> dict:
    return for_proof(flat(Config()) | {"vocab_size": 50257, **settings}, 5, "fp64")


def own(**settings) -> dict:
    return flat(own_layout(config_of(**settings), False).config)


@pytest.mark.parametrize(
    ("settings", "small"),
    [
        ({**PP4, "num_layers": 48}, {"num_layers": 4}),
        ({"num_layers": 48}, {"num_layers": 2}),
        ({"num_layers": 1}, {"num_layers": 1}),
        (
            {**PP4, "num_layers": 46, "decoder_first_pipeline_num_layers": 10},
            {"num_layers": 7, "decoder_first_pipeline_num_layers": 1},
        ),
        (
            {**PP4, "num_layers": 40, "pipeline_model_parallel_layout": [8, 12, 12, 8]},
            {"num_layers": 6, "pipeline_model_parallel_layout": [1, 2, 2, 1]},
        ),
        (
            {**PP4, "num_layers": 10, "pipeline_model_parallel_layout": [0, 5, 5, 0]},
            {"num_layers": 2, "pipeline_model_parallel_layout": [0, 1, 1, 0]},
        ),
        (
            {
                **PP4,
                "num_layers": 48,
                "num_virtual_stages_per_pipeline_rank": 3,
                "global_batch_size": 64,
            },
            {"num_layers": 12, "num_virtual_stages_per_pipeline_rank": 3, "global_batch_size": 8},
        ),
        (
            {
                **PP4,
                "num_layers": 8,
                "num_virtual_stages_per_pipeline_rank": 2,
                "global_batch_size": 39,
                "microbatch_group_size_per_virtual_pipeline_stage": 7,
            },
            {
                "num_layers": 8,
                "microbatch_group_size_per_virtual_pipeline_stage": 5,
                "global_batch_size": 14,
            },
        ),
        (
            {"micro_batch_size": 4, "global_batch_size": 64},
            {"micro_batch_size": 2, "global_batch_size": 4},
        ),
    ],
    ids=[
        "even",
        "one stage",
        "one layer",
        "uneven",
        "explicit",
        "empty stages",
        "chunks",
        "groups",
        "batch",
    ],
)
def test_the_cut_and_the_batch_shrink_in_kind(settings, small):
    values = own(**settings)
    assert {name: values[name] for name in small} == small


def test_two_ends_of_their_own_keep_their_order_of_size():
    values = own(
        **PP4,
        num_layers=26,
        decoder_first_pipeline_num_layers=6,
        decoder_last_pipeline_num_layers=4,
    )
    ends = (values["decoder_first_pipeline_num_layers"], values["decoder_last_pipeline_num_layers"])
    assert (*ends, values["num_layers"]) == (2, 1, 2 + 3 + 3 + 1)


def test_an_illegal_layout_is_refused_for_the_users_own_numbers():
    law = r"num-attention-heads \(12\) must be divisible by tensor-model-parallel-size \(8\)"
    with pytest.raises(SettingError, match=law):
        own(tensor_model_parallel_size=8)


def test_full_size_keeps_every_number():
    config = config_of(num_layers=6, pipeline_model_parallel_size=2, global_batch_size=6)
    values, whole = flat(own_layout(config, True).config), config
    assert {name: values[name] for name, value in whole.items() if value is not None} == {
        name: value for name, value in whole.items() if value is not None
    }


def test_every_layout_is_every_legal_one_and_each_once():
    cases = every_layout(
        config_of(num_layers=4, hidden_size=64, num_attention_heads=4), 4, (), False
    )
    names = [case.name for case in cases]
    sizes = {name.split(",")[0] for name in names}
    assert sizes == {
        f"tp{t}.pp{p}.dp{d}" + (f".cp{c}" if c > 1 else "")
        for t in (1, 2, 4)
        for p in (1, 2, 4)
        for d in (1, 2, 3, 4)
        for c in (1, 2, 4)
        if t * p * d * c <= 4
    }
    assert len(names) == len(set(names))
    assert all(world_of(case.config.parallel) <= 4 for case in cases)
    by_schedule = {word for word in BUILT_IN["schedule"] for name in names if word in name}
    assert by_schedule >= {"gpipe", "1f1b", "interleaved"}
    assert "tp2.pp1.dp2, SP, ZeRO-1, dropout, 2 x 1" in names


def test_what_a_flag_fixes_stays_and_the_rest_is_drawn():
    config = config_of(tensor_model_parallel_size=2, use_distributed_optimizer=True)
    fixed = {"tensor_model_parallel_size", "use_distributed_optimizer"}
    for cases in (
        every_layout(config, 8, fixed, False),
        random_layouts(config, 8, 20, 1, fixed, fixed, False),
    ):
        values = [flat(case.config) for case in cases]
        assert all(
            v["tensor_model_parallel_size"] == 2 and v["use_distributed_optimizer"] for v in values
        )
        assert len({v["pipeline_model_parallel_size"] for v in values}) > 2


def test_random_layouts_follow_the_seed_and_cover_what_can_differ():
    draw = [random_layouts(config_of(), 8, 60, seed, (), (), False) for seed in (5, 5, 6)]
    files = [[case.config.parallel.pipeline_schedule_csv for case in cases] for cases in draw]
    names = [[case.name for case in cases] for cases in draw]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == 60
    orders = [[Path(file).read_text() for file in some if file] for some in files]
    assert orders[0] == orders[1] != orders[2]
    words = " ".join(names[0])
    seen = (
        "SP",
        "ZeRO-1",
        "no overlap",
        "gather at once",
        "documents",
        "dropout",
        "GQA",
        "rope",
        "untied",
        "cut",
        "selective recompute",
        "full recompute",
        "offload",
        *BUILT_IN["schedule"],
    )
    assert [word for word in seen if word not in words] == []


def test_a_model_that_was_given_is_not_exchanged():
    config = config_of(normalization="RMSNorm", hidden_dropout=0.3)
    for case in random_layouts(config, 8, 20, 1, (), {"normalization", "hidden_dropout"}, False):
        model = case.config.model
        assert (model.normalization, model.hidden_dropout, model.swiglu) == ("RMSNorm", 0.3, False)


def test_no_legal_layout_is_an_error_that_names_what_was_fixed():
    config = config_of(tensor_model_parallel_size=5)
    complaint = "up to 5 ranks is legal for this config with --tensor-model-parallel-size 5"
    for cases in (
        every_layout,
        lambda *args: random_layouts(*args[:2], 1, 1, args[2], (), args[3]),
    ):
        with pytest.raises(UserError, match=complaint):
            cases(config, 5, {"tensor_model_parallel_size"}, False)


@pytest.mark.parametrize(
    ("settings", "small"),
    [
        ({"num_layers": 48}, 11),
        ({"num_layers": 7}, 7),
        ({**PP4, "num_layers": 48}, 12),
        ({"pipeline_model_parallel_size": 8, "num_layers": 48}, 16),
    ],
)
def test_a_small_model_has_layers_of_every_kind(settings, small, monkeypatch):
    """The pattern has nine kinds; the last of them comes first in layer 10."""
    monkeypatch.setattr(small_layout, "layers_of", pattern)
    assert own(**settings)["num_layers"] == small


def test_a_pattern_keeps_the_shape_of_the_cut(monkeypatch):
    monkeypatch.setattr(small_layout, "layers_of", pattern)
    cut = {"num_layers": 40, "pipeline_model_parallel_layout": [8, 12, 12, 8]}
    found = own(**PP4, **cut)
    assert found["pipeline_model_parallel_layout"] == [2, 4, 4, 2]
    assert found["num_layers"] == 12


def test_a_pattern_of_layers_is_cut_to_the_layers_of_each_layout():
    """Also where the number of layers is drawn with the layout."""
    windows = [1, 1, 0, 1, 1, 0, 1, 1]
    given = {"num_layers": 8, "sliding_window": 100, "window_attn_skip_freq": windows}
    cases = random_layouts(config_of(**given), 4, 30, 1, (), given, False)
    numbers = {case.config.model.num_layers for case in cases}
    assert len(numbers) > 2
    for case in cases:
        model = case.config.model
        assert model.window_attn_skip_freq == (windows * 2)[: model.num_layers]

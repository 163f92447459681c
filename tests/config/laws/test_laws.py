"""Each law of the settings refuses its own broken config, alone, with the numbers and the nearest legal values."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.fields import RANGES, SETTINGS, flat
from megascratch.config.laws import LAWS, validate
from megascratch.config.layout import Layout
from megascratch.config.notices import notices
from megascratch.config.pipeline_split import layer_cut
from megascratch.config.resolve import derive, resolve
from megascratch.config.settings import Config
from tests.support.broken_data_laws import FILES
from tests.support.broken_laws import BROKEN, SAMPLES, config, layout


def complaints(world: int = 1, **values) -> list[str]:
    try:
        validate(flat(config(**values)), world)
    except UserError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("law", "world", "values", "fragment"),
    BROKEN,
    ids=[f"{row[0]}-{i}" for i, row in enumerate(BROKEN)],
)
def test_a_broken_law_is_the_one_complaint(law, world, values, fragment):
    (found,) = complaints(world, **values)
    assert fragment in found


def test_every_law_is_broken_once_above():
    assert {law.__name__ for law in LAWS} == {row[0] for row in BROKEN}


def outside(name: str) -> list[float]:
    """Values just outside a setting's range."""
    low, high, text = RANGES[name].low, RANGES[name].high, RANGES[name].text
    whole = SETTINGS[name].hint in (int, int | None)
    below = low if text.startswith("(") else low - (1 if whole else 1e-9)
    above = [] if math.isinf(high) else [high if text.endswith(")") else high + 1e-9]
    return [below, *above, *([] if whole else [math.nan, math.inf])]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in RANGES for value in outside(name)]
)
def test_a_number_outside_its_range_is_named(name, value):
    head = f"{name.replace('_', '-')} ({value}) must be "
    assert any(line.startswith(head) for line in complaints(**{name: value}))


def test_every_number_has_a_range():
    numbers = {
        name
        for name, setting in SETTINGS.items()
        if setting.hint in (int, float, int | None, float | None)
    }
    # `layer_cut` checks them
    ends_of_the_cut = {
        "decoder_first_pipeline_num_layers",
        "decoder_last_pipeline_num_layers",
    }
    assert numbers - ends_of_the_cut == set(RANGES)


def test_all_broken_laws_are_listed_at_once():
    found = complaints(
        6, **layout(tp=4, pp=4, num_layers=10, num_attention_heads=6, bf16=True, fp16=True, lr=-1.0)
    )
    heads = [
        "lr (",
        "num-attention-heads (",
        "world size (",
        "num-layers (",
        "at most one of bf16, fp16",
    ]
    assert len(found) == len(heads)
    assert all(line.startswith(head) for line, head in zip(found, heads, strict=True))


@pytest.mark.parametrize(
    ("world", "values"),
    [
        (1, {}),
        (8, layout(tp=2, pp=2, sequence_parallel=True, global_batch_size=16)),
        (8, layout(tp=8, num_attention_heads=8, num_query_groups=2)),
        (2, layout(tp=2, num_attention_heads=8, num_query_groups=1)),
        (
            4,
            layout(
                pp=4,
                num_layers=10,
                decoder_first_pipeline_num_layers=1,
                decoder_last_pipeline_num_layers=3,
            ),
        ),
        (
            2,
            layout(
                pp=2, num_layers=5, pipeline_model_parallel_layout=[2, 0, 1, 2], global_batch_size=4
            ),
        ),
        (
            2,
            layout(
                pp=2,
                chunks=2,
                microbatch_group_size_per_virtual_pipeline_stage=3,
                global_batch_size=5,
            ),
        ),
        (1, SAMPLES | {"lr_decay_samples": 90, "lr_warmup_fraction": 0.1}),
        (1, {"lr_decay_style": "constant", "lr_warmup_iters": 50}),
        (1, {"fp16": True, "initial_loss_scale": 1024.0}),
        (2, {"global_batch_size": 8, "rampup_batch_size": [2, 2, 0]}),
        (1, {"vocab_size": None, "tokenizer_type": "ByteTokenizer"}),
        (1, {"vocab_size": None, "tokenizer_model": "t.model"}),
        (1, FILES | {"split": "1"}),
        (1, {"mock_data": False, "train_data_path": ["a"], "valid_data_path": ["b"]}),
        (1, {"position_embedding_type": "rope", "rotary_percent": 0.5}),
    ],
)
def test_a_legal_config_is_accepted(world, values):
    assert complaints(world, **values) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"sequence_parallel": True},
            "sequence-parallel has no effect with tensor-model-parallel-size 1",
        ),
        (
            {"use_distributed_optimizer": True},
            "use-distributed-optimizer has no effect with one data-parallel rank",
        ),
        (
            {"overlap_param_gather": False},
            "overlap-param-gather has no effect without use-distributed-optimizer",
        ),
        ({"rotary_base": 5e5}, "rotary-base has no effect without position-embedding-type rope"),
        (
            {"rotary_percent": 0.5},
            "rotary-percent has no effect without position-embedding-type rope",
        ),
        (
            {"optimizer_cpu_offload": True, "device": "cpu"},
            "optimizer-cpu-offload saves no memory with device cpu",
        ),
        (
            {"optimizer_offload_fraction": 0.5},
            "optimizer-offload-fraction has no effect without optimizer-cpu-of",
        ),
        (
            {"position_embedding_type": "rope", "max_position_embeddings": 9},
            "max-position-embeddings has no effect",
        ),
        ({"add_qkv_bias": True}, "add-qkv-bias has no effect"),
        (
            {"normalization": "RMSNorm", "norm_bias": False},
            "norm-bias has no effect with normalization RMSNorm",
        ),
        ({"add_bias_linear": False, "norm_bias": True}, None),
        ({"normalization": "RMSNorm", "apply_layernorm_1p": True}, None),
        (
            {"rotary_interleaved": True, "rotary_seq_len_interpolation_factor": 2.0},
            "rotary-interleaved and rotary-seq-len-interpolation-factor have no effect without",
        ),
        (
            {"lr_decay_style": "constant", "min_lr": 1e-5},
            "min-lr has no effect with lr-decay-style constant",
        ),
        (
            {"lr_wsd_decay_style": "cosine"},
            "lr-wsd-decay-style has no effect without lr-decay-style WSD",
        ),
        (
            FILES | {"data_stages": ["9 a", "10 b"]},
            "the last of data-stages begins after the last sample",
        ),
        ({"keep_last_n_checkpoints": 1}, "keep-last-n-checkpoints 1 leaves no other checkpoint"),
        ({"async_save": False}, "async-save has no effect with save-interval 0"),
        ({"force_resume": ["seed"]}, "force-resume has no effect without load"),
        ({"force_resume": []}, None),
        (
            {"spiky_loss_factor": 9.0},
            "spiky-loss-factor has no effect without check-for-spiky-loss",
        ),
        (
            {"log_straggler": False, "straggler_factor": 2.0, "straggler_intervals": 5},
            "straggler-factor and straggler-intervals have no effect without log-straggler",
        ),
        ({"straggler_factor": 2.0}, None),
        ({"fim_spm_rate": 0.1}, "fim-spm-rate has no effect with fim-rate 0"),
        ({"max_bad_steps": 3}, "max-bad-steps has no effect with on-bad-step stop"),
        ({"data_cache_path": "x"}, "data-cache-path has no effect with mock-data"),
        ({}, None),
        ({"position_embedding_type": "rope", "rotary_base": 5e5, "rotary_percent": 0.5}, None),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2, "lr_wsd_decay_style": "cosine"}, None),
    ],
)
def test_a_setting_without_effect_is_noticed_not_refused(values, sentence):
    assert complaints(**values) == []
    found = notices(resolve(config(**values), 1))
    assert found == [] if sentence is None else len(found) == 1 and found[0].startswith(sentence)


@st.composite
def legal(draw) -> tuple[Config, int]:
    """A legal config and its world size, built forwards from the sizes of the layout."""
    tp, pp, dp = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 3)) if pp > 1 else 1
    groups = draw(st.sampled_from([1, 2, 4, 8]))
    heads = groups * draw(st.integers(1, 3)) * (tp // min(tp, groups))
    micro = draw(st.integers(1, 3))
    step = micro * dp
    values = layout(
        tp=tp,
        pp=pp,
        chunks=chunks,
        num_layers=pp * chunks * draw(st.integers(1, 3)),
        num_query_groups=groups,
        num_attention_heads=heads,
        hidden_size=heads * 2 * draw(st.integers(1, 40)),
        seq_length=4 * draw(st.integers(1, 50)),
        swiglu=draw(st.booleans()),
        sequence_parallel=draw(st.booleans()),
        position_embedding_type=draw(st.sampled_from(["rope", "learned_absolute", "none"])),
        micro_batch_size=micro,
        global_batch_size=step * pp * draw(st.integers(1, 5)),
        pipeline_schedule=None if chunks > 1 else draw(st.sampled_from([None, "gpipe", "1f1b"])),
        lr_decay_style=draw(
            st.sampled_from(["constant", "linear", "cosine", "inverse-square-root"])
        ),
        lr_warmup_iters=draw(st.integers(0, 10)),
        rampup_batch_size=draw(st.none() | st.just([step * pp, step * pp, 1000])),
    )
    return config(**values), tp * pp * dp


@given(legal())
@settings(max_examples=150, deadline=None)
def test_what_is_built_legally_is_accepted_and_fully_derived(case):
    built, world = case
    derived = derive(flat(built), world)
    validate(derived, world)
    assert derive(derived, world) == derived
    whole = resolve(built, world)
    parallel = whole.parallel
    assert Layout.of(parallel).world == world
    cut = layer_cut(
        whole.model.num_layers,
        parallel.pipeline_model_parallel_size,
        parallel.num_virtual_stages_per_pipeline_rank,
    )
    assert sum(cut) == whole.model.num_layers


COUNTS = sorted(name for name in RANGES if SETTINGS[name].hint in (int, int | None))


@given(st.dictionaries(st.sampled_from(COUNTS), st.integers(-2, 20)), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_no_numbers_make_the_laws_themselves_fail(values, world):
    assert isinstance(complaints(world, **values), list)


DERIVED = {
    "num_query_groups": 8,
    "kv_channels": 16,
    "ffn_hidden_size": 512,
    "max_position_embeddings": 1024,
    "data_parallel_size": 2,
    "pipeline_schedule": "1f1b",
    "num_virtual_stages_per_pipeline_rank": 1,
    "microbatch_group_size_per_virtual_pipeline_stage": 2,
    "distributed_backend": None,
    "global_batch_size": 6,
    "lr_decay_iters": 10,
    "lr_decay_samples": None,
    "split": "969,30,1",
    "save": "o/checkpoints",
    "tensorboard_dir": "o/tensorboard",
    "device": None,
}


def test_every_gap_that_needs_no_file_is_filled():
    sizes = layout(
        tp=2, pp=2, hidden_size=128, num_attention_heads=8, micro_batch_size=3, output_dir="o"
    )
    found = derive(flat(config(**sizes, **FILES)), 8)
    assert {name: found[name] for name in DERIVED} == DERIVED


@pytest.mark.parametrize(
    ("values", "world", "name", "value"),
    [
        ({"hidden_size": 100, "num_attention_heads": 4, "swiglu": True}, 1, "ffn_hidden_size", 320),
        ({"hidden_size": 96, "num_attention_heads": 4, "swiglu": True}, 1, "ffn_hidden_size", 256),
        ({"device": "cuda"}, 1, "distributed_backend", "nccl"),
        ({"device": "cpu"}, 1, "distributed_backend", "gloo"),
        (
            layout(pp=2, pipeline_model_parallel_layout=[3, 3, 3, 3]),
            2,
            "num_virtual_stages_per_pipeline_rank",
            2,
        ),
        (
            layout(pp=2, pipeline_model_parallel_layout=[3, 3, 3, 3]),
            2,
            "pipeline_schedule",
            "interleaved",
        ),
        (SAMPLES, 1, "lr_decay_samples", 100),
        (layout(tp=2), 3, "data_parallel_size", None),
        ({"kv_channels": 5}, 1, "kv_channels", 5),
    ],
)
def test_this_gap_is_filled_with_this_value(values, world, name, value):
    assert derive(flat(config(**values)), world)[name] == value

"""What is derived has no None any more, is said by types, and is what a user would work out by hand."""

from dataclasses import asdict, fields
from typing import get_type_hints

import pytest

from megascratch.config.errors import SettingError
from megascratch.config.fields import SETTINGS, flat, with_fields
from megascratch.config.resolve import Found, derive, resolve, resolve_derived
from megascratch.config.settings import Config

GIVEN = {"hidden_size": 96, "num_attention_heads": 6, "vocab_size": 50, "output_dir": "out"}
BY_HAND = {
    "num_query_groups": 6,
    "kv_channels": 16,
    "ffn_hidden_size": 384,
    "max_position_embeddings": 1024,
    "norm_bias": True,
    "attention_output_bias": True,
    "vocab_size": 50,
    "data_parallel_size": 4,
    "pipeline_schedule": "1f1b",
    "context_parallel_order": "zigzag",
    "num_virtual_stages_per_pipeline_rank": 1,
    "microbatch_group_size_per_virtual_pipeline_stage": 1,
    "distributed_backend": "gloo",
    "global_batch_size": 12,
    "tensorboard_dir": "out/tensorboard",
    "save": "out/checkpoints",
    "stop_file": "out/stop",
    "device": "cpu",
}


def given(**values) -> Config:
    return with_fields(Config(), GIVEN | values)


def test_every_value_that_is_derived_is_the_one_worked_out_by_hand():
    found = flat(resolve(given(micro_batch_size=3), 4))
    assert {name: found[name] for name in BY_HAND} == BY_HAND


def test_the_values_worked_out_by_hand_are_all_that_the_types_say_to_be_known():
    known = set()
    for section in vars(resolve(given(), 1)).values():
        before, now = get_type_hints(type(section).__mro__[1]), get_type_hints(type(section))
        known |= {name for name in now if name in before and now[name] != before[name]}
    assert known == set(BY_HAND)


def test_what_was_given_stays_and_is_saved_in_the_same_order():
    """A checkpoint holds the settings: by section, in their order."""
    config = given(lr=0.5, kv_channels=7, global_batch_size=40, device="cuda", save="elsewhere")
    whole = resolve(config, 2)
    changed = {
        name for name, value in flat(config).items() if value not in (None, flat(whole)[name])
    }
    assert changed == set()
    assert [list(section) for section in asdict(whole).values()] == [
        list(section) for section in asdict(config).values()
    ]
    assert [field.name for field in fields(whole)] == [field.name for field in fields(config)]
    assert with_fields(whole, {"lr": 0.25}).training == whole.training


@pytest.mark.parametrize(
    ("found", "name", "value"),
    [
        (Found(vocab_size=257), "vocab_size", 257),
        (Found(load="run/checkpoints"), "load", "run/checkpoints"),
        (Found(global_batch_size=48), "global_batch_size", 48),
        (Found(device="cuda"), "device", "cuda"),
        (Found(device="cuda"), "distributed_backend", "nccl"),
    ],
)
def test_what_files_and_the_machine_say_is_added_once(found, name, value):
    derived = derive(flat(given()), 1)
    assert flat(resolve_derived(derived, found))[name] == value
    others = {"vocab_size", "load", "global_batch_size", "device", "distributed_backend"}
    for setting in derived.keys() - others:
        assert flat(resolve_derived(derived, found))[setting] == derived[setting]


@pytest.mark.parametrize(
    ("values", "world", "unknown"),
    [
        ({"vocab_size": None}, 1, "^vocab-size: unknown"),
        ({"num_attention_heads": 7}, 1, "^kv-channels: unknown"),
        ({"tensor_model_parallel_size": 2}, 3, "^data-parallel-size, global-batch-size: unknown"),
    ],
)
def test_what_stays_unknown_is_named(values, world, unknown):
    with pytest.raises(SettingError, match=unknown):
        resolve(given(**values), world)


def test_a_derived_setting_keeps_its_section():
    whole = resolve(given(), 1)
    for name, setting in SETTINGS.items():
        assert hasattr(getattr(whole, setting.section), name)

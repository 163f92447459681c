"""A remedy that a refusal names helps: whoever follows it to the letter has one complaint less, and no new one.

The texts are read as a user reads them (`tests/support/remedies.py`).
"""

import random

import pytest

from megascratch.config.fields import SETTINGS, flat, with_fields
from megascratch.config.laws import broken_laws
from megascratch.config.load import read_config
from megascratch.config.remedies import divisors
from megascratch.config.resolve import derive
from megascratch.config.settings import Config
from tests.support.bad_flags import DATA, GOOD, POOL
from tests.support.broken_laws import BROKEN, SAMPLES, config, layout
from tests.support.remedies import proposals


def told_by_the_laws(given: Config, world: int) -> list[str]:
    """The complaints about settings."""
    return broken_laws(flat(given), derive(flat(given), world), world)


def followed(given: Config, world: int, setting: str, value: str) -> list[str]:
    """The complaints once the user has done what was proposed."""
    if setting == "world_size":
        return told_by_the_laws(given, int(value))
    new: object = float(value) if "float" in str(SETTINGS[setting].hint) else None
    if new is None:
        numbers = [int(part) for part in value.split()]
        new = numbers if "list" in str(SETTINGS[setting].hint) else numbers[0]
    return told_by_the_laws(with_fields(given, {setting: new}), world)


# what is nearest for one law alone breaks another one
ENTANGLED = [
    (1, {"lr_decay_style": "WSD", "lr_warmup_iters": 9, "lr_wsd_decay_iters": 50}),
    (1, {"lr_decay_style": "WSD", "lr_warmup_iters": 12}),
    (1, {"lr_decay_style": "WSD", "lr_warmup_iters": 12, "lr_wsd_decay_iters": 12}),
    (1, SAMPLES | {"lr_decay_style": "WSD", "lr_warmup_samples": 90, "lr_wsd_decay_samples": 20}),
    (8, layout(tp=8)),
    (8, {"global_batch_size": 60, "micro_batch_size": 4, "rampup_batch_size": [32, 32, 9]}),
    (8, {"global_batch_size": 64, "micro_batch_size": 4, "rampup_batch_size": [48, 32, 9]}),
    (2, {"global_batch_size": 8, "rampup_batch_size": [3, 3, 9]}),
    (4, {"global_batch_size": 10, "micro_batch_size": 2, "rampup_batch_size": [8, 8, 9]}),
    (
        1,
        {
            "keep_best_n_checkpoints": 1,
            "save_interval": 30,
            "eval_interval": 20,
            "save_retain_interval": 60,
        },
    ),
    (4, layout(pp=4, num_layers=10)),
    (
        4,
        layout(
            pp=4,
            num_layers=10,
            tensor_model_parallel_size=1,
            recompute_granularity="full",
            recompute_num_layers=9,
        ),
    ),
    (6, layout(tp=3, num_attention_heads=8, hidden_size=64, num_query_groups=4)),
    (1, {"hidden_size": 101, "position_embedding_type": "rope"}),
    (1, {"position_embedding_type": "rope", "kv_channels": 7, "rotary_percent": 0.5}),
]
CASES = [(world, values) for _, world, values, _ in BROKEN] + ENTANGLED


@pytest.mark.parametrize(("world", "values"), CASES, ids=str)
def test_every_remedy_of_a_refusal_helps_when_it_is_followed_to_the_letter(world, values):
    given = config(**values)
    before = told_by_the_laws(given, world)
    for text in before:
        for setting, value in proposals(text):
            left = followed(given, world, setting, value)
            assert len(left) < len(before), (text, setting, value, left)


def test_the_remedies_above_are_many():
    told = [text for world, values in CASES for text in told_by_the_laws(config(**values), world)]
    assert sum(len(proposals(text)) for text in told) > 100
    assert proposals(told_by_the_laws(config(lr_decay_style="WSD"), 1)[0]) == [
        ("lr_wsd_decay_iters", "1")
    ]


@pytest.mark.parametrize("bad", POOL, ids=lambda bad: " ".join(bad.words))
def test_every_remedy_of_the_bad_flags_helps(bad):
    words = [*GOOD, *DATA, *bad.words]
    for text in told_by_the_laws(read_config(words).config, 1):
        for setting, value in proposals(text):
            flag = f"--{setting.replace('_', '-')}"
            without = list(words)
            if flag in without:
                start = without.index(flag)
                stop = next(
                    (at for at in range(start + 1, len(without)) if without[at].startswith("--")),
                    len(without),
                )
                del without[start:stop]
            loaded = read_config([*without, flag, *value.split()])
            assert loaded.problems == [] and told_by_the_laws(loaded.config, 1) == [], (
                text,
                setting,
                value,
            )


def test_the_remedies_of_random_settings_help():
    dice = random.Random(11)
    for _ in range(25):
        values = {
            "num_layers": dice.randint(1, 12),
            "hidden_size": dice.choice([48, 60, 64, 100]),
            "num_attention_heads": dice.randint(1, 12),
            "global_batch_size": dice.randint(1, 24),
            "micro_batch_size": dice.randint(1, 3),
            "tensor_model_parallel_size": dice.randint(1, 4),
            "pipeline_model_parallel_size": dice.randint(1, 4),
            "save_interval": dice.randint(0, 6),
            "eval_interval": dice.randint(0, 4),
            "keep_best_n_checkpoints": dice.choice([None, 1]),
            "lr_warmup_iters": dice.randint(0, 12),
            "rampup_batch_size": dice.choice([None, [dice.randint(1, 5)] * 3]),
            "sequence_parallel": dice.random() < 0.5,
            "seq_length": dice.randint(7, 16),
        }
        world, given = dice.randint(1, 8), config(**values)
        before = told_by_the_laws(given, world)
        for text in before:
            for setting, value in proposals(text):
                left = followed(given, world, setting, value)
                assert len(left) < len(before), (values, world, text, setting, value, left)


def test_a_value_must_pass_the_other_broken_laws_that_read_it():
    told = told_by_the_laws(
        config(num_attention_heads=4, hidden_size=64, tensor_model_parallel_size=8), 1
    )
    heads = next(text for text in told if text.startswith("num-attention-heads"))
    assert ("tensor_model_parallel_size", "1") in proposals(heads)
    assert ("tensor_model_parallel_size", "2") not in proposals(heads)


def test_numbers_of_any_size_are_refused_at_once():
    given = config(
        num_layers=(1 << 61) - 1, pipeline_model_parallel_size=2, hidden_size=(1 << 61) - 1
    )
    told = told_by_the_laws(given, 2)
    assert any("num-layers (" in text for text in told) and all(len(text) < 1000 for text in told)
    assert (
        divisors(12) == [1, 2, 3, 4, 6, 12]
        and divisors(1) == [1]
        and divisors(0) == [] == divisors(-3)
    )


def test_what_no_single_setting_mends_says_so():
    given = config(
        num_attention_heads=7,
        hidden_size=49,
        data_parallel_size=1,
        tensor_model_parallel_size=4,
        ffn_hidden_size=48,
    )
    told = told_by_the_laws(given, 4)
    assert told and all(
        proposals(text) or "change several" in text or ": use " in text for text in told
    )

"""A command line of Megatron-LM is read with its meaning, and what is not there is named."""

import pytest

from megascratch.config.fields import SETTINGS
from megascratch.config.load import load_config, read_config
from megascratch.config.megatron.options import CLASSES, by_spelling, options
from megascratch.config.megatron.reading import verdict

BASE = "--num-layers 2 --hidden-size 48 --num-attention-heads 4 --use-mcore-models"


def test_every_row_has_a_class_and_every_setting_that_it_names_exists():
    assert len(by_spelling()) >= 838
    for option in options():
        assert option.kind in CLASSES
        for setting in option.becomes:
            assert setting in SETTINGS, option.name
        if option.kind == "same":
            assert option.name.replace("-", "_") in SETTINGS


@pytest.mark.parametrize(
    "flags, setting, value",
    [
        ("", "model.openai_gelu", True),
        ("--no-bias-gelu-fusion", "model.openai_gelu", False),
        ("--swiglu", "model.openai_gelu", False),
        ("--disable-bias-linear", "model.openai_gelu", False),
        ("--disable-bias-linear", "model.add_bias_linear", False),
        ("--disable-bias-linear", "model.norm_bias", True),
        ("--disable-bias-linear --normalization RMSNorm", "model.norm_bias", None),
        ("--swiglu", "model.ffn_hidden_size", 128),
        ("--swiglu --ffn-hidden-size 96", "model.ffn_hidden_size", 96),
        ("--num-query-groups 2", "model.num_query_groups", None),
        ("--num-query-groups 2 --group-query-attention", "model.num_query_groups", 2),
        ("--group-query-attention", "model.num_query_groups", 1),
        ("--split '99,1,0'", "data.split", "99,1,0"),
        ("", "training.calculate_per_token_loss", False),
        ("--calculate-per-token-loss", "training.calculate_per_token_loss", True),
        ("--lr 1e-3 --lr=2e-3", "optim.lr", 2e-3),
        ("--seed -1", None, "seed (-1)"),
    ],
)
def test_a_flag_means_what_it_means_there(flags, setting, value):
    config, _, problems, _ = read_config([*BASE.split(), *flags.split()])
    if setting is None:
        return
    assert problems == []
    section, name = setting.split(".")
    assert getattr(getattr(config, section), name) == value


def test_an_ordinary_command_line_keeps_the_defaults_of_this_toolkit():
    """Also with a flag that only Megatron-LM knows, when there is a config file or --flags-of megascratch."""
    assert not load_config(["--hidden-size", "48"])[0].model.openai_gelu
    for words in (["--config", "llama-10m"], ["--flags-of", "megascratch"]):
        problems = read_config([*words, "--disable-bias-linear"]).problems
        assert problems == [
            "unknown flag --disable-bias-linear - did you mean --no-add-bias-linear?"
        ]


def test_a_missing_feature_is_named_with_the_flags_that_need_it():
    words = [*BASE.split(), *"--num-experts 8 --moe-router-topk 2 --swiglo".split()]
    said = verdict(words)
    assert not said.whole
    assert said.missing == {"mixture of experts": ["--num-experts 8", "--moe-router-topk 2"]}
    assert said.unknown == ["unknown flag --swiglo - did you mean --swiglu?"]
    assert (
        "mixture of experts: not there yet (needed by --num-experts 8, --moe-router-topk 2)"
        in read_config(words).problems
    )

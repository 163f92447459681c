"""The table of Megatron-LM's options is whole: each option has one row, and each row says what it must say."""

import inspect
from pathlib import Path
from typing import get_args

import pytest

from megascratch.config.fields import SETTINGS
from megascratch.config.load import read_config
from megascratch.config.megatron import blend_files, reading, rules
from megascratch.config.megatron.options import (
    CLASSES,
    VALUES_NOT_HERE,
    Values,
    option_of,
    options,
)
from megascratch.config.megatron.reading import verdict
from megascratch.config.megatron.rules import OF_OTHER_OPTIMIZERS, PARTS

NAMES = (Path(__file__).parents[2] / "support" / "megatron_options.txt").read_text().split()
"""The options of Megatron-LM's parser but `--help`, taken from the parser itself: the first spelling of each."""
READERS = (rules, reading, blend_files)
BY_RULE = "".join(inspect.getsource(module) for module in READERS)


def test_each_option_of_megatrons_parser_is_exactly_one_row():
    assert sorted(option.name for option in options()) == sorted({*NAMES, "help"})
    spelled = [name for option in options() for name in option.names]
    assert len(spelled) == len(set(spelled))


def test_a_row_says_what_its_class_needs():
    """`same` and `alias` name settings, or a rule reads them; every other class has words."""
    for option in options():
        assert option.kind in CLASSES, option
        assert option.values in get_args(Values), option
        assert set(option.becomes) <= set(SETTINGS), option
        if option.kind == "same":
            assert option.name.replace("-", "_") in SETTINGS, option
        elif option.kind == "alias":
            assert option.becomes or f'"{option.name}"' in BY_RULE, option
        else:
            assert option.words and not option.becomes, option


def test_a_neutral_value_is_one_that_the_option_can_have():
    """Only classes that are refused or told about have one; that of a switch is `off`."""
    for option in options():
        if option.neutral:
            assert option.kind in ("feature", "notice", "out"), option
            assert ("off" in option.neutral) == (option.values == "0"), option


@pytest.mark.parametrize(
    "name",
    [
        # changes the order of samples
        *("mid-level-dataset-surplus", "dataloader-type", "no-bias-gelu-fusion"),
        # changes which tokens count in the loss
        *("allow-ambiguous-pad-tokens", "fim-fragment-rate"),
        # changes the first weights
        *("data-parallel-random-init", "init-method-xavier-uniform", "embedding-init-method-std"),
        # changes the model
        *("apply-residual-connection-post-layernorm", "softmax-type", "no-rope-freq"),
        *("use-te-activation-func", "use-transformer-engine-op-fuser"),
        # changes the update, or which batches make one
        *("use-precision-aware-optimizer", "iterations-to-skip", "decrease-batch-size-if-needed"),
        # changes what a checkpoint has, or what is done with one
        *("ckpt-format", "no-save-optim", "load-main-params-from-ckpt"),
        *("use-mp-args-from-checkpoint-args", "override-ckpt-iteration"),
        # changes when and how a run ends
        *("exit-signal", "exit-interval"),
    ],
)
def test_what_changes_the_model_the_samples_the_update_or_a_checkpoint_is_never_without_effect(
    name,
):
    assert next(option for option in options() if option.name == name).kind != "none"


def test_one_feature_has_one_name_in_the_table_and_among_values():
    """Features that values alone need have names of their own."""
    of_options = {option.words for option in options() if option.kind == "feature"}
    of_values = {feature for values in VALUES_NOT_HERE.values() for feature in values.values()}
    assert of_values - of_options <= {
        "multimodal models",
        "relative positions",
        "tokenizers of BERT",
    }


def test_each_beginning_of_names_is_that_of_an_option_of_a_feature():
    parts = [(switch, beginning) for switch, some in PARTS.items() for beginning in some]
    for switch, beginning in (*parts, *[("optimizer", name) for name in OF_OTHER_OPTIMIZERS]):
        assert option_of(f"--{switch}") is not None
        found = [option for option in options() if option.name.startswith(beginning)]
        assert found, beginning
        assert {option.kind for option in found} <= {"feature", "notice", "out"}, beginning


@pytest.mark.parametrize(
    "flags, missing",
    [
        ("--moe-grouped-gemm --moe-router-topk 2 --expert-tensor-parallel-size 2", set()),
        ("--num-experts 8 --moe-grouped-gemm", {"mixture of experts"}),
        ("--moe-layer-freq 2 --mtp-loss-scaling-factor 0.2 --mtp-num-layers 0", set()),
        ("--mtp-num-layers 1", {"multi-token prediction"}),
        ("--muon-momentum 0.9 --sgd-momentum 0.9 --optimizer adam", set()),
        ("--muon-momentum 0.9 --optimizer muon", {"other optimizers than Adam"}),
        ("--mscale 1.0 --q-lora-rank 8 --vocab-extra-ids 0", set()),
        ("--multi-latent-attention --q-lora-rank 8", {"multi-head latent attention"}),
        ("--exp-avg-dtype fp32 --cpu-offloading-num-layers 0", set()),
        ("--exp-avg-dtype bf16", {"other optimizers than Adam"}),
        ("--data-parallel-sharding-strategy optim --fsdp-double-buffer", set()),
    ],
)
def test_an_option_of_a_feature_that_is_not_asked_for_has_no_effect(flags, missing):
    found = verdict(flags.split())
    assert set(found.missing) == missing
    assert found.whole == (not missing)


def test_a_tokenizer_without_files_ignores_the_file_that_a_script_names():
    words = "--tokenizer-model a --tokenizer-type NullTokenizer --vocab-size 9".split()
    loaded = read_config([*words, "--flags-of", "megatron"])
    assert loaded.problems == []
    assert loaded.config.data.tokenizer_model is None
    assert "--tokenizer-model a: no effect with NullTokenizer" in loaded.origins.notices

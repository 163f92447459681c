"""The flags of Megatron-LM's example scripts are understood, or named as missing, and mean what they mean there."""

import os
import shlex
from pathlib import Path

import pytest

from megascratch.config.load import read_config
from megascratch.config.megatron.command_line import divided
from megascratch.config.megatron.reading import verdict
from megascratch.config.megatron.scripts import flags_of_script
from megascratch.training.start.settings import legal_settings
from tests.support.megatron_scripts import GPT3, LLAMA3, LLAMA3_MOCK, MIXTRAL, SCRIPTS

REPOSITORY = os.environ.get("MEGATRON_LM", "")
"""A copy of Megatron-LM, whose files are read in place."""


@pytest.mark.parametrize(
    "line, ranks, values",
    [
        (
            GPT3,
            128,
            {
                "model.openai_gelu": True,
                "model.add_bias_linear": True,
                "model.untie_embeddings_and_output_weights": False,
                "model.position_embedding_type": "learned_absolute",
                "model.ffn_hidden_size": 49152,
                "model.kv_channels": 128,
                "data.data_order": "megatron",
                "data.split": "949,50,1",
                "data.vocab_file": "vocab.json",
                "data.merge_file": "merges.txt",
                "optim.fp16": True,
                "optim.lr_schedule_unit": "samples",
                "optim.lr_schedule_waits_for_overflows": True,
                "optim.lr_warmup_fraction": 0.001,
                "training.calculate_per_token_loss": False,
                "training.step_batch_size_schedule": "0:16 2.4B:320 4.8B:624 7.2B:928 9.6B:1232 12B:1536",
                "training.exit_on_missing_checkpoint": False,
                "parallel.pipeline_model_parallel_size": 16,
            },
        ),
        (
            LLAMA3,
            8,
            {
                "model.normalization": "RMSNorm",
                "model.apply_layernorm_1p": True,
                "model.add_bias_linear": False,
                "model.swiglu": True,
                "model.num_query_groups": 8,
                "model.rotary_base": 1000000.0,
                "data.split": "99,1,0",
                "optim.bf16": True,
                "optim.decoupled_lr": 5e-4,
                "optim.decoupled_min_lr": 4.5e-5,
                "training.calculate_per_token_loss": True,
                "training.train_samples": 1953125000,
                "parallel.sequence_parallel": True,
            },
        ),
        (LLAMA3_MOCK, 8, {"data.mock_data": True, "data.tokenizer_type": "NullTokenizer"}),
    ],
    ids=["gpt3", "llama3", "llama3-mock"],
)
def test_every_flag_of_a_dense_script_is_understood_and_its_settings_are_legal(line, ranks, values):
    words = shlex.split(line)
    assert verdict(words).whole
    config = legal_settings(read_config(words), ranks).config
    for name, value in values.items():
        section, setting = name.split(".")
        assert getattr(getattr(config, section), setting) == value, name


def test_the_script_of_a_mixture_of_experts_lacks_that_feature_alone():
    found = verdict(shlex.split(MIXTRAL))
    assert (found.refused, found.unknown) == ([], [])
    assert found.missing == {
        "mixture of experts": [
            *(
                "--num-experts 8",
                "--moe-router-topk 2",
                "--moe-router-load-balancing-type aux_loss",
            ),
            *("--moe-aux-loss-coeff 1e-2", "--moe-grouped-gemm"),
            *("--moe-token-dispatcher-type alltoall", "--expert-model-parallel-size 8"),
        ]
    }


def test_fp8_is_one_notice_where_the_device_has_none():
    notices = read_config(shlex.split(LLAMA3)).origins.notices
    assert len([notice for notice in notices if "FP8" in notice]) == 1


@pytest.mark.skipif(
    not REPOSITORY, reason="the environment variable MEGATRON_LM names no copy of Megatron-LM"
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_flags_written_down_here_are_those_of_the_script_itself(script):
    """But for the folder of the cache, which the script puts into its working folder."""
    line, arguments = SCRIPTS[script]
    there = divided(flags_of_script(Path(REPOSITORY, script), arguments.split())).given
    here = divided(shlex.split(line)).given
    unlike = {name for name in there | here if there.get(name) != here.get(name)}
    assert unlike <= {"data-cache-path"}

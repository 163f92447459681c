"""The parameters of a rank: of known models as published, and of all ranks together the model's."""

import pytest

from megascratch.config.load import read_config
from megascratch.config.presets import preset_names, preset_summary
from megascratch.dry_run.settings import imagined_run
from megascratch.model.flops import parameters
from tests.support.imagined_models import all_ranks_count_the_model_once
from tests.support.pairwise_cover import LLAMA

# as their publishers count them, in the files that were released; llama-10m and nanogpt-char: V, S, h, L, ... by hand
PUBLISHED = {
    "nanogpt-char": (1, 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128),
    "llama-10m": (1, 2 * 8192 * 256 + 8 * (256 * (256 + 2 * 128 + 256 + 3 * 768) + 2 * 256) + 256),
    "gpt2-124m": (1, 124_439_808),
    "gpt2-355m": (1, 354_823_168),
    "gpt2-774m": (1, 774_030_080),
    "gpt2-1.5b": (1, 1_557_611_200),
    "gpt3-175b": (1024, 174_604_259_328),
    "llama3-8b": (64, 8_030_261_248),
    "llama3-70b": (256, 70_553_706_496),
    "llama3-405b": (16_384, 405_853_388_800),
    "mistral-7b": (64, 7_241_732_096),
    "llama3.1-8b": (64, 8_030_261_248),
    "qwen3-8b": (64, 8_190_735_360),
    "gemma3-4b": (64, 3_880_263_168),
    "olmo3-7b": (64, 7_298_011_136),
}


def config_of_preset(name: str, world: int):
    vocabulary = ["--vocab-size", "65"] if name == "nanogpt-char" else []
    return imagined_run(read_config(["--config", name, *vocabulary]), world, "cuda").config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_its_published_parameters_and_says_so(name):
    world, published = PUBLISHED[name]
    assert parameters(config_of_preset(name, world).model) == published
    assert f"{published:,} parameters" in preset_summary(name)


def test_every_preset_is_counted():
    assert sorted(PUBLISHED) == preset_names()


def test_gpt_3_has_its_published_parameters():
    """175 B; exactly those of Narayanan et al. 2021 (arXiv 2104.04473, equation 2) and 2h of the last norm."""
    layers, h, vocab, s = 96, 12288, 50257, 2048
    formula = 12 * layers * h * h + 13 * layers * h + (vocab + s) * h
    found = parameters(config_of_preset("gpt3-175b", 1024).model)
    assert found == formula + 2 * h
    assert round(found / 1e9) == 175


LAYOUTS = {
    "one": {},
    "tied over stages, padding": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
    },
    "a V": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_v"},
    "more tensor ranks than key/value heads": {**LLAMA, "tensor_model_parallel_size": 4},
    "sequence parallelism, untied": {
        "tensor_model_parallel_size": 4,
        "pipeline_model_parallel_size": 4,
        "sequence_parallel": True,
        "untie_embeddings_and_output_weights": True,
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ranks_together_count_the_model_once(name):
    all_ranks_count_the_model_once(LAYOUTS[name])

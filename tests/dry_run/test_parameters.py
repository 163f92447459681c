"""The parameters of a rank: of known models as published, and of all ranks together the model's."""

import pytest

from megascratch.config.load import read_config
from megascratch.dry_run.settings import imagined_run
from megascratch.model.flops import parameters
from tests.support.doc_blocks import ROOT
from tests.support.imagined_models import all_ranks_count_the_model_once
from tests.support.pairwise_cover import LLAMA

# as their publishers count them: for Llama 3 the numbers of the files that were released
PUBLISHED = {
    "llama3-8b": (64, 8_030_261_248),
    "llama3-70b": (256, 70_553_706_496),
    "llama3-405b": (16_384, 405_853_388_800),
}


def config_of_preset(name: str, world: int):
    loaded = read_config(["--config", str(ROOT / "examples" / "models" / f"{name}.yaml")])
    return imagined_run(loaded, world, "cuda").config


@pytest.mark.parametrize("name", PUBLISHED)
def test_llama_3_has_its_published_parameters(name):
    world, published = PUBLISHED[name]
    assert parameters(config_of_preset(name, world).model) == published


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

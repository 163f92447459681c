"""Parameters and floating-point operations, which are counted from the modules, against the closed formulas of a page,
published counts, and the tensors of a whole model."""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from megascratch.config.fields import with_fields
from megascratch.config.layers import layers_of
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config, ModelConfig
from megascratch.model import block, flops
from megascratch.model.build import build_chunks
from megascratch.model.flops import flops_per_token, parameters
from megascratch.parallel.mesh import Mesh
from tests.support.layout_runs import config_of
from tests.support.pairwise_cover import LLAMA, MEGATRON, PARTLY_ROTARY

SMALL = {
    "gpt": {},
    "llama": LLAMA,
    "sqrelu": PARTLY_ROTARY,
    "megatron": MEGATRON,
    "untied": {"untie_embeddings_and_output_weights": True},
    "wide heads": {"kv_channels": 24, "vocab_size": 61, "swiglu": True},
    "more positions": {"max_position_embeddings": 40, "openai_gelu": True},
}
LLAMA_3 = {
    "num_query_groups": 8,
    "swiglu": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "vocab_size": 128256,
}
PUBLISHED = {
    "GPT-2": (
        124_439_808,  # of the published checkpoint
        {"vocab_size": 50257, "seq_length": 1024},
    ),
    "GPT-3 175B": (
        174_604_259_328,  # table 2.1 of Brown et al. 2020 says 175.0 billion
        {
            "num_layers": 96,
            "hidden_size": 12288,
            "num_attention_heads": 96,
            "vocab_size": 50257,
            "seq_length": 2048,
        },
    ),
    "Llama-3 8B": (
        8_030_261_248,
        {
            **LLAMA_3,
            "num_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "ffn_hidden_size": 14336,
        },
    ),
    "Llama-3 70B": (
        70_553_706_496,
        {
            **LLAMA_3,
            "num_layers": 80,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "ffn_hidden_size": 28672,
        },
    ),
    "Llama-3 405B": (
        405_853_388_800,
        {
            **LLAMA_3,
            "num_layers": 126,
            "hidden_size": 16384,
            "num_attention_heads": 128,
            "ffn_hidden_size": 53248,
        },
    ),
}


def model_of(settings: dict) -> ModelConfig:
    return resolve(with_fields(Config(), settings), 1).model


def flops_by_formula(model: ModelConfig, seq_length: int) -> int:
    """6 per weight of each product and token; attention adds 12 x layers x width x sequence (PaLM, appendix B)."""
    h = model.hidden_size
    q_and_output = 2 * h * model.num_attention_heads * model.kv_channels
    k_and_v = 2 * h * model.num_query_groups * model.kv_channels
    mlp = (3 if model.swiglu else 2) * h * model.ffn_hidden_size
    weights = model.num_layers * (q_and_output + k_and_v + mlp) + model.vocab_size * h
    width = model.num_attention_heads * model.kv_channels
    return 6 * weights + 12 * model.num_layers * width * seq_length


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_and_flops_those_of_the_formula(name):
    published, settings = PUBLISHED[name]
    model = model_of(settings)
    assert parameters(model) == published
    for seq_length in (1, 1024, 8192):
        assert flops_per_token(model, seq_length) == flops_by_formula(model, seq_length)


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_the_elements_of_the_real_tensors(name):
    config = config_of(num_layers=3, **SMALL[name])
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    padding = sum(
        weight.numel() - config.model.vocab_size * config.model.hidden_size
        for name, weight in chunk.named_parameters()
        if name in ("embedding.word.weight", "head.weight")
    )
    elements = sum(weight.numel() for weight in chunk.parameters()) - padding
    assert parameters(config.model) == elements
    assert flops_per_token(config.model, 16) == flops_by_formula(config.model, 16)


def test_layers_of_several_kinds_are_counted_by_kind_and_each_kind_is_built_once():
    """Two narrow layers among six."""
    model = model_of({"num_layers": 6, "vocab_size": 100})
    wide = layers_of(model)[0]
    narrow = replace(wide, feed_forward=replace(wide.feed_forward, width=10))
    pattern = (wide, narrow, wide, wide, narrow, wide)
    built: Counter = Counter()
    plain = block.Block.__init__

    def noted(self, spec, *args):
        built[spec] += 1
        plain(self, spec, *args)

    with (
        patch.object(flops, "layers_of", lambda model: pattern),
        patch.object(block.Block, "__init__", noted),
    ):
        mixed = parameters(model), flops_per_token(model, 64)
    assert built == {wide: 2, narrow: 2}  # once for each of the two counts
    fewer = wide.feed_forward.width - 10
    weights = 2 * model.hidden_size * fewer
    assert parameters(model) - mixed[0] == 2 * (
        weights + fewer
    )  # with the biases of the first product
    assert flops_per_token(model, 64) - mixed[1] == 2 * 6 * weights


def test_a_window_costs_the_scores_of_its_keys():
    """Two of six layers see all; no window is wider than the sample."""
    shape = {"num_layers": 6, "vocab_size": 100, "window_attn_skip_freq": [3]}
    model = model_of({**shape, "sliding_window": 40})
    whole = model_of(shape)
    fewer = 12 * 4 * model.hidden_size * (64 - 40)
    assert flops_per_token(whole, 64) - flops_per_token(model, 64) == fewer
    assert flops_per_token(whole, 40) == flops_per_token(model, 40)


def test_no_memory_is_taken_for_what_is_counted():
    (block_of_a_kind, layers) = flops._blocks(model_of(PUBLISHED["Llama-3 405B"][1]))[0]
    assert layers == 126
    assert {weight.device.type for weight in block_of_a_kind.parameters()} == {"meta"}

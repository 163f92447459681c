"""A layer of another kind is a class, a row of a table and a record in the list of layers: a model in which attention
alternates with a second kind of mixer, with a second kind of norm at every place, is the same on every layout."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from megascratch.config.fields import flat
from megascratch.config.layers import LayerSpec, NormSpec
from megascratch.config.settings import Config
from megascratch.inference.generate import generate
from megascratch.inference.sampling import Sampling
from megascratch.layers.context import ForwardContext
from megascratch.layers.recompute import with_recompute
from megascratch.layers.sublayer import Mixer
from megascratch.model import chunk
from megascratch.model.block import Block
from megascratch.model.chunk import ModelChunk
from megascratch.model.flops import flops_per_token, parameters
from megascratch.model.table import shard_table
from megascratch.parallel.axis import Axis
from megascratch.verification.layouts import random_layouts
from megascratch.verification.run_layout import RunRecord, gather, one_process
from tests.support import other_layers as module
from tests.support.breaks.state import RUN, resumed
from tests.support.contexts import plain_context
from tests.support.layout_runs import assert_same, config_of, synthetic_batch, trace
from tests.support.other_layers import (
    DECAY,
    QuarticNorm,
    RunningMeanSpec,
    other_layers,
    pattern,
    with_other_layers,
)
from tests.support.pairwise_cover import LLAMA
from tests.support.small_models import config_of as small_config
from tests.support.small_models import full_logits, model_of

STEPS = 2
MODEL = {
    **LLAMA,
    "num_layers": 8,
    "global_batch_size": 4,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.2,
}
TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
ZERO1 = {"data_parallel_size": 2, "use_distributed_optimizer": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": TP2,
    "tp4, sequence parallel": {"tensor_model_parallel_size": 4, "sequence_parallel": True},
    "pp2 of uneven stages": {**PP2, "decoder_first_pipeline_num_layers": 3},
    "pp4 gpipe": {"pipeline_model_parallel_size": 4, "pipeline_schedule": "gpipe"},
    "pp2 interleaved": {**PP2, "num_virtual_stages_per_pipeline_rank": 4},
    "pp2 zb_h1, full recomputation": {
        **PP2,
        "pipeline_schedule": "zb_h1",
        "recompute_granularity": "full",
        "recompute_num_layers": 3,
    },
    "pp4 zb_h2": {"pipeline_model_parallel_size": 4, "pipeline_schedule": "zb_h2"},
    "pp2 zb_v, selective recomputation": {
        **PP2,
        "pipeline_schedule": "zb_v",
        "recompute_granularity": "selective",
    },
    "pp2 dualpipe_v": {**PP2, "pipeline_schedule": "dualpipe_v"},
    "dp4": {"data_parallel_size": 4},
    "pp2.dp2 zero1": {**PP2, **ZERO1},
    "tp2.pp2.dp2 zero1, sequence parallel, interleaved": {
        **TP2,
        **PP2,
        **ZERO1,
        "sequence_parallel": True,
        "num_virtual_stages_per_pipeline_rank": 2,
        "recompute_granularity": "selective",
    },
}


@lru_cache(maxsize=8)
def alone(config: Config, run: Callable) -> RunRecord:
    """The reference, in one process."""
    return gather([run(one_process(config), STEPS)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_never_changes_a_model_with_other_layers(layout):
    config = config_of(**MODEL, **LAYOUTS[layout])
    assert_same(alone(config, with_other_layers), trace(config, STEPS, with_other_layers), 1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nor_in_the_precision_of_real_runs(precision):
    settings = {**MODEL, "fp64": False, "bf16": precision == "bf16"}
    config = config_of(**settings, **PP2, **TP2, sequence_parallel=True)
    one = alone(config, with_other_layers)
    many = trace(config, STEPS, with_other_layers)
    assert many.losses == pytest.approx(one.losses, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("layout", ["pp2.dp2 zero1", "tp4, sequence parallel"])
def test_a_run_that_is_resumed_on_another_layout_is_the_undisturbed_one(layout):
    config = config_of(**{**MODEL, **RUN, "num_layers": 4}, **LAYOUTS[layout])
    run = partial(with_other_layers, run=resumed)
    assert_same(gather([run(one_process(config), 4)]), trace(config, 4, run), 1e-9)


KEPT = ("context_parallel_size",)  # a running mean goes from token to token


def test_layouts_that_verify_would_draw_are_the_one_process_model():
    config = config_of(**{**MODEL, "num_layers": 4})
    given = {*vars(config.model)}
    settings = flat(config)
    for case in random_layouts(
        settings, 4, number=4, seed=1, fixed=KEPT, given=given, full_size=True
    ):
        one = alone(case.config, with_other_layers)
        assert_same(one, trace(case.config, STEPS, with_other_layers), 1e-9)


# ---- one process against plain formulas ------------------------------------------------------------------------


def quartic(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / ((x**4).mean(-1, keepdim=True) + 1e-5) ** 0.25 * weight


def mean_by_matrix(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """The running mean as a product with decay^(t - u), lower triangular."""
    s = x.shape[0]
    distance = (torch.arange(s)[:, None] - torch.arange(s)).double()
    decays = (DECAY**distance).tril()
    values = x @ w["running_mean.value.weight"].T + w["running_mean.value.bias"]
    means = torch.einsum("tu,ubw->tbw", decays, values)
    return means @ w["running_mean.out.weight"].T + w["running_mean.out.bias"]


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_a_block_is_the_sum_of_x_and_its_two_branches(placement):
    spec = LayerSpec(
        hidden_size=6,
        mixer=RunningMeanSpec(width=4, decay=DECAY),
        feed_forward=pattern(config_of(num_layers=1, squared_relu=True).model)[0].feed_forward,
        norm=NormSpec("QuarticNorm", 1e-5, bias=False),
        placement=placement,
        dropout=0.0,
        std=0.1,
        output_std=0.1,
    )
    with other_layers():
        block = Block(spec, 3, 1, Axis.alone("tp"), False).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    w = {name: weight.detach() for name, weight in block.named_parameters()}
    norms = {"pre": ("norm{}",), "post": ("post_norm{}",), "both": ("norm{}", "post_norm{}")}
    names = {f"{name.format(i)}.weight" for name in norms[placement] for i in (1, 2)}
    assert {name for name in w if "norm" in name} == names

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        return quartic(y, w[f"{name}.weight"]) if f"{name}.weight" in w else y

    x = torch.randn(5, 2, 6, dtype=torch.float64)
    expected = x + normed(mean_by_matrix(normed(x, "norm1"), w), "post_norm1")
    inner = F.relu(normed(expected, "norm2") @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) ** 2
    out = inner @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    expected = expected + normed(out, "post_norm2")
    assert torch.allclose(block(x, plain_context(5, torch.arange(2))), expected)


def whole(config: Config) -> ModelChunk:
    with other_layers():
        return model_of(config)


def test_names_follow_the_kinds_of_layers_and_each_weight_has_its_shard():
    model = whole(small_config(num_layers=4))
    table = shard_table(model)
    assert table.keys() == dict(model.named_parameters()).keys()
    assert {name.split(".")[2] for name in table if name.startswith("layers.0.")} == {
        *("norm1", "norm2", "attention", "mlp")
    }
    assert {name.split(".")[2] for name in table if name.startswith("layers.1.")} == {
        *("post_norm1", "post_norm2", "running_mean", "mlp")
    }
    assert isinstance(model.layers["1"].post_norm1, QuarticNorm)


def test_parameters_and_flops_count_the_other_layers():
    config = small_config(num_layers=4)
    model = whole(config)
    weights = dict(model.named_parameters())
    padding = len(weights["embedding.word.weight"]) - config.model.vocab_size
    elements = sum(weight.numel() for weight in weights.values())
    products = [
        weight.numel()
        for name, weight in weights.items()
        if name.startswith("layers") and weight.dim() == 2
    ]
    h = config.model.hidden_size
    with other_layers():
        assert parameters(config.model) == elements - padding * h
        found = flops_per_token(config.model, 10)
    # attention in two of the four layers
    assert found == 6 * (sum(products) + config.model.vocab_size * h) + 12 * 2 * h * 10


def test_generation_keeps_what_each_mixer_asks_for():
    config = small_config(num_layers=4, position_embedding_type="rope")
    model = whole(config)
    prompt = [3, 1, 4, 1, 5]
    (found,) = generate(model, config.data, [prompt], 6, Sampling(temperature=0), eod=None)
    ids = list(prompt)
    for token in found.tokens:
        assert token == full_logits(config, model, ids)[-1].argmax()
        ids.append(token)
    assert len(found.tokens) == 6


def test_angles_are_computed_once_for_each_kind_of_rope():
    """Four layers of attention, of two kinds."""
    config = config_of(**{**LLAMA, "num_layers": 8})
    calls = []
    plain = chunk.rotary_angles

    def noted(positions, rope, *rest):
        calls.append((rope.dims, rope.base))
        return plain(positions, rope, *rest)

    model = whole(config)
    with patch.object(chunk, "rotary_angles", noted):
        model(None, synthetic_batch(config, range(2)))
    assert sorted(calls) == [(4, 50.0), (8, 10000.0)]


def test_selective_recomputation_asks_every_mixer():
    config = config_of(num_layers=2, recompute_granularity="selective")
    model = whole(config).requires_grad_(True).train()
    model.set_recompute(config.parallel)
    calls = []

    def noted(function, *args):
        calls.append(function.__name__)
        return with_recompute(function, *args)

    with patch.object(module, "with_recompute", noted):
        model(None, synthetic_batch(config, range(1)))
    assert calls == ["_means"]


def test_a_mixer_that_keeps_nothing_and_recomputes_nothing_need_not_say_so():
    """The defaults of `Mixer`."""

    class Silent(Mixer):
        def forward(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
            return x

    silent = Silent()
    silent.set_recompute(core=True)
    assert (silent.new_cache(), silent.ropes, silent.flops(100)) == (None, (), 0)

"""What the settings say about each layer."""

import pytest

from megascratch.config.fields import with_fields
from megascratch.config.layers import (
    AttentionSpec,
    LayerSpec,
    MLPSpec,
    NormSpec,
    RopeSpec,
    layers_of,
)
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config


def layers(**settings) -> tuple[LayerSpec, ...]:
    given = {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    return layers_of(resolve(with_fields(Config(), given | settings), 1).model)


def test_every_layer_of_a_gpt_is_this():
    gpt = LayerSpec(
        hidden_size=64,
        mixer=AttentionSpec(
            heads=4,
            groups=4,
            head_width=16,
            qkv_bias=True,
            output_bias=True,
            dropout=0.1,
            rope=None,
        ),
        feed_forward=MLPSpec(width=256, activation="gelu", bias=True),
        norm=NormSpec("LayerNorm", 1e-5, bias=True),
        placement="pre",
        dropout=0.1,
        std=0.02,
        output_std=0.02 / 4,  # sqrt(2 x 8)
    )
    assert layers() == (gpt,) * 8


@pytest.mark.parametrize("activation", ["swiglu", "squared_relu", "openai_gelu"])
def test_an_activation_is_the_setting_of_its_name(activation):
    assert layers(**{activation: True})[0].feed_forward.activation == activation


@pytest.mark.parametrize(
    ("percent", "dims"),
    [(1.0, 16), (0.5, 8), (0.25, 4)],
)
def test_rotary_positions_turn_a_part_of_each_head(percent, dims):
    (layer, *_) = layers(
        position_embedding_type="rope", rotary_percent=percent, rotary_base=500000.0
    )
    assert layer.mixer.rope == RopeSpec(dims, 500000.0)


def test_the_rope_is_interleaved_and_interpolated_where_the_settings_say_so():
    (layer, *_) = layers(
        position_embedding_type="rope",
        rotary_interleaved=True,
        rotary_seq_len_interpolation_factor=4.0,
    )
    assert layer.mixer.rope == RopeSpec(16, 10000.0, interleaved=True, interpolation=4.0)


@pytest.mark.parametrize("norm_bias", [None, False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_a_norm_has_a_bias_as_linear_layers_have_unless_it_is_said(norm_bias, linear):
    (layer, *_) = layers(add_bias_linear=linear, norm_bias=norm_bias, apply_layernorm_1p=True)
    bias = linear if norm_bias is None else norm_bias
    assert layer.norm == NormSpec("LayerNorm", 1e-5, bias, minus_one=True)
    assert layer.feed_forward.bias == layer.mixer.output_bias == linear


def test_biases_of_queries_keys_and_values_may_stand_alone():
    (layer, *_) = layers(add_bias_linear=False, add_qkv_bias=True, normalization="RMSNorm")
    assert layer.mixer.qkv_bias and not layer.mixer.output_bias
    assert not layer.feed_forward.bias
    assert layer.norm == NormSpec("RMSNorm", 1e-5, bias=False)

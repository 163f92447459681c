"""Which layer has a window and which rotates, and by which rope."""

import pytest

from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.layer_patterns import fitted
from megascratch.config.layers import AttentionSpec, RopeScaling, RopeSpec, layers_of
from megascratch.config.notices import notices
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from tests.support.broken_pattern_laws import LEGAL, LONGROPE, NO_EFFECT, YARN

ROPE = {"position_embedding_type": "rope"}
GIVEN = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "mock_data": True,
    "train_iters": 1,
}


def config(**settings) -> Config:
    return with_fields(Config(), GIVEN | settings)


def mixers(**settings) -> list[AttentionSpec]:
    return [layer.mixer for layer in layers_of(resolve(config(**settings), 1).model)]


@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [
        (None, "11111111"),
        ([6], "11111011"),  # Gemma 3: five, then one that sees all
        ([4], "11101110"),  # OLMo 3
        ([2], "10101010"),  # Gemma 2
        ([1], "00000000"),
        ([9], "11111111"),
        ([0, 0, 1, 1, 1, 0, 1, 0], "00111010"),
    ],
)
def test_a_window_is_where_the_pattern_says(pattern, windowed):
    found = mixers(sliding_window=5, window_attn_skip_freq=pattern)
    assert [mixer.window for mixer in found] == [5 if one == "1" else None for one in windowed]


@pytest.mark.parametrize(
    ("pattern", "rotates"),
    [
        (None, "11111111"),
        ([4], "11101110"),  # SmolLM3
        ([1], "00000000"),
        ([0, 0, 1, 1, 1, 0, 1, 0], "11000101"),
    ],
)
def test_a_layer_rotates_unless_the_pattern_says_so(pattern, rotates):
    found = mixers(**ROPE, no_rope_freq=pattern)
    assert ["01"[mixer.rope is not None] for mixer in found] == list(rotates)
    assert all(mixer.rope is None for mixer in mixers(no_rope_freq=pattern))


def test_windowed_layers_may_have_a_base_of_their_own_and_are_then_not_scaled():
    """Gemma 3: five layers with a window and base 10,000, then one with base 1,000,000, linearly stretched."""
    found = mixers(
        **ROPE,
        rotary_base=1e6,
        rotary_base_windowed=1e4,
        rope_scaling_type="linear",
        rope_scaling_factor=8.0,
        sliding_window=4,
        window_attn_skip_freq=[6],
        rotary_interleaved=True,
        rotary_percent=0.5,
    )
    local = RopeSpec(8, 1e4, True)
    assert [mixer.rope for mixer in found] == [
        *[local] * 5,
        RopeSpec(8, 1e6, True, 8.0),
        local,
        local,
    ]


def test_windowed_layers_have_the_rope_of_the_others_unless_it_is_said():
    found = mixers(**YARN | {"num_layers": 2}, sliding_window=4, window_attn_skip_freq=[2])
    assert found[0].rope == found[1].rope and found[0].rope.scaling is not None


def test_the_scaling_of_a_rope_is_that_of_the_settings():
    (mixer, *_) = mixers(**YARN, rope_mscale=0.7, rope_mscale_all_dim=1.0, rope_truncate=False)
    scaling = RopeScaling("yarn", 4.0, 256, mscale=0.7, mscale_all_dim=1.0, truncate=False)
    assert mixer.rope == RopeSpec(8, 10000.0, scaling=scaling)


def test_the_factor_of_longrope_follows_from_the_length():
    (mixer, *_) = mixers(**LONGROPE, seq_length=1024)
    assert mixer.rope.scaling.factor == 4.0
    assert mixer.rope.scaling.long_factors == (1.0, 2.0, 4.0, 8.0)


@pytest.mark.parametrize("settings", LEGAL)
def test_a_legal_pattern_or_rope_is_accepted_without_a_word(settings):
    given = config(**settings)
    validate(flat(given), 1)
    assert notices(resolve(given, 1)) == []


@pytest.mark.parametrize(("settings", "sentence"), NO_EFFECT)
def test_a_setting_without_effect_is_told(settings, sentence):
    (found,) = notices(resolve(config(**settings), 1))
    assert sentence in found


def test_a_pattern_for_fewer_layers_is_its_beginning_and_for_more_is_repeated():
    assert fitted([1, 1, 0], 2) == [1, 1]
    assert fitted([1, 1, 0], 7) == [1, 1, 0, 1, 1, 0, 1]
    assert fitted([6], 2) == [6]

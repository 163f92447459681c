"""Which layers of a model have a window, which rotate, and by which rope: what the settings of families say."""

from megascratch.config.fields import with_fields
from megascratch.config.layers import AttentionSpec, RopeSpec, layers_of
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config

ROPE = {"position_embedding_type": "rope"}
GIVEN = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "mock_data": True,
    "train_iters": 1,
}
WINDOWS = [
    (None, "11111111"),
    ([6], "11111011"),  # Gemma 3: five, then one that sees all
    ([4], "11101110"),  # OLMo 3
    ([2], "10101010"),  # Gemma 2
    ([1], "00000000"),
    ([9], "11111111"),
    ([0, 0, 1, 1, 1, 0, 1, 0], "00111010"),
]
ROTATING = [
    (None, "11111111"),
    ([4], "11101110"),  # SmolLM3
    ([1], "00000000"),
    ([0, 0, 1, 1, 1, 0, 1, 0], "11000101"),
]


def config_of(**settings) -> Config:
    return with_fields(Config(), GIVEN | settings)


def mixers(**settings) -> list[AttentionSpec]:
    return [layer.mixer for layer in layers_of(resolve(config_of(**settings), 1).model)]


def windows_are_where_the_patterns_say() -> None:
    for pattern, windowed in WINDOWS:
        found = mixers(sliding_window=5, window_attn_skip_freq=pattern)
        assert ["01"[mixer.window == 5] for mixer in found] == list(windowed), pattern
        assert {mixer.window for mixer in found} <= {5, None}


def layers_rotate_unless_the_patterns_say_so() -> None:
    for pattern, rotates in ROTATING:
        found = mixers(**ROPE, no_rope_freq=pattern)
        assert ["01"[mixer.rope is not None] for mixer in found] == list(rotates), pattern
        assert all(mixer.rope is None for mixer in mixers(no_rope_freq=pattern))


def windowed_layers_have_a_base_of_their_own_and_are_not_scaled() -> None:
    """Gemma 3: five layers with a window and base 10,000, then one with base 1,000,000, linearly stretched; OLMo 3:
    yarn in layers that see all."""
    settings = {
        **ROPE,
        "rotary_base": 1e6,
        "rotary_base_windowed": 1e4,
        "sliding_window": 4,
        "window_attn_skip_freq": [6],
        "rotary_interleaved": True,
        "rotary_percent": 0.5,
        "rope_scaling_factor": 8.0,
    }
    local = RopeSpec(8, 1e4, True)
    found = [mixer.rope for mixer in mixers(**settings, rope_scaling_type="linear")]
    assert found == [*[local] * 5, RopeSpec(8, 1e6, True, 8.0), local, local]
    yarn = {"rope_scaling_type": "yarn", "rope_original_max_position_embeddings": 256}
    found = [mixer.rope for mixer in mixers(**settings, **yarn)]
    assert [rope.scaling is None for rope in found] == [*[True] * 5, False, True, True]

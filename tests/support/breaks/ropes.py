"""Breaks of stretched ropes, of patterns of windows and ropes, and of caches that keep a window.

`BREAKS` are seen by the layout law, `ROPES` by laws of their own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megascratch.config import layers
from megascratch.inference import generate
from megascratch.inference.generate import _PromptState
from megascratch.layers import rope_kinds, rotary
from megascratch.layers.attention import KVCache
from megascratch.layers.context import ForwardContext
from megascratch.layers.visible import Visible
from megascratch.model import build, chunk
from megascratch.model.chunk import ModelChunk
from tests.support.breaks.replacing import PP2, ROTARY, Break
from tests.support.layer_patterns import (
    layers_rotate_unless_the_patterns_say_so,
    windowed_layers_have_a_base_of_their_own_and_are_not_scaled,
    windows_are_where_the_patterns_say,
)
from tests.support.rope_kinds import (
    frequencies_are_those_of_transformers,
    the_attention_factor_is_in_cosine_and_sine,
)
from tests.support.windowed_generation import (
    a_prompt_gives_in_a_batch_what_it_gives_alone,
    cached_logits_are_those_of_the_full_forward,
    greedy_tokens_are_the_likeliest_of_the_full_forward,
)

Law = Callable[[Path, Callable], None]


@cache
def law(of: Callable, *args: Any) -> Law:
    return lambda folder, run: of(*args)


def specs_from_the_first(model, numbers, *rest, **named):
    """A stage takes the windows and ropes of as many layers from the first on."""
    whole = chunk.layers_of(model)
    moved = list(whole)
    for number in numbers:
        moved[number] = replace(whole[number], mixer=whole[number - numbers.start].mixer)
    with patch.object(chunk, "layers_of", lambda model: tuple(moved)):
        return ModelChunk(model, numbers, *rest, **named)


def length_of_the_rank(self, context):
    return plain_rotary(self, replace(context, sample_length=context.positions.shape[1]))


def of_neighbouring_layers(plain):
    return lambda pattern, layer: plain(pattern, (layer + 1) % 8)


def base_of_the_others(model, windowed):
    return plain_rope(model, windowed=False)


def windows_are_stretched(model, windowed):
    base = model.rotary_base_windowed if windowed else None
    rope = plain_rope(model, windowed=False)
    return rope if base is None else replace(rope, base=base)


def once(rope):
    return plain_factor(rope) ** 0.5


def of_the_factor_alone(rope):
    if rope.scaling is not None and rope.scaling.mscale is not None:
        return rope_kinds._growth(rope.scaling.factor, 1.0)
    return plain_factor(rope)


def scaled(kind: str, change: Callable) -> list:
    """A kind whose `RopeScaling` is `change(scaling)`."""
    plain = rope_kinds.SCALED[kind]

    def changed(rope, scaling, length, even_dims):
        return plain(rope, change(scaling), length, even_dims)

    return [(rope_kinds, "SCALED", {**rope_kinds.SCALED, kind: changed})]


def swapped(scaling):
    return replace(scaling, short_factors=scaling.long_factors, long_factors=scaling.short_factors)


def ramp_is_exact(scaling):
    return replace(scaling, truncate=False)


def ramp_is_rounded(scaling):
    return replace(scaling, truncate=True)


def ramp_begins_at_the_end(scaling):
    return replace(scaling, low_freq_factor=scaling.high_freq_factor - 1e-9)


def without_its_constant(rope, scaling, length, even_dims):
    """The base grows at the original length, too."""
    longer = scaling.factor * max(length, scaling.original_length) / scaling.original_length
    return (rope.base * longer ** (rope.dims / (rope.dims - 2))) ** (-even_dims / rope.dims)


def one_key_less(self, x):
    kept = plain_kept(self, x)
    return kept if kept is x else kept[:, :, 1:]


def places_of_kept_keys_from_zero(self, count):
    """Keys are counted as if the cache began with the text."""
    seen = self.visible
    if count == len(seen.keys):
        return self
    shifted = Visible(seen.queries, seen.keys[:count], seen.starts, False, seen.window)
    return replace(self, visible=shifted)


def never_anew(self, ropes):
    return False


def by_the_longest_row(tokens, width, lengths, *rest):
    return plain_inputs(tokens, width, [max(lengths)] * len(lengths), *rest)


def by_columns(tokens, width, lengths, *rest):
    return plain_inputs(tokens, width, [width] * len(lengths), *rest)


plain_rotary = ModelChunk.rotary
plain_rope = layers._rope
plain_factor = rope_kinds.attention_factor
plain_kept = KVCache._kept
plain_inputs = generate._inputs

DYNAMIC = {
    **ROTARY,
    "rope_scaling_type": "dynamic",
    "rope_scaling_factor": 4.0,
    "rope_original_max_position_embeddings": 8,
}
BASES = law(windowed_layers_have_a_base_of_their_own_and_are_not_scaled)

BREAKS: dict[str, Break] = {
    "a window by a layer's number on its stage": Break(
        {**PP2, "num_layers": 4, "sliding_window": 5, "window_attn_skip_freq": [0, 1, 1, 1]},
        [(build, "ModelChunk", specs_from_the_first)],
    ),
    "no rotation by a layer's number on its stage": Break(
        {**PP2, **ROTARY, "num_layers": 4, "no_rope_freq": [4]},
        [(build, "ModelChunk", specs_from_the_first)],
    ),
    "a rope is stretched by the tokens of a context rank": Break(
        {**DYNAMIC, "context_parallel_size": 2}, [(ModelChunk, "rotary", length_of_the_rank)]
    ),
}
ROPES: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "windows of the layer after": (
        [(layers, "has_window", of_neighbouring_layers(layers.has_window))],
        law(windows_are_where_the_patterns_say),
    ),
    "the layer after rotates": (
        [(layers, "is_unrotated", of_neighbouring_layers(layers.is_unrotated))],
        law(layers_rotate_unless_the_patterns_say_so),
    ),
    "windowed layers have the base of the others": ([(layers, "_rope", base_of_the_others)], BASES),
    "windowed layers are stretched, too": ([(layers, "_rope", windows_are_stretched)], BASES),
    "the attention factor is applied to queries or keys alone": (
        [(rotary, "attention_factor", once)],
        law(the_attention_factor_is_in_cosine_and_sine),
    ),
    "mscale is not read": (
        [(rope_kinds, "attention_factor", of_the_factor_alone)],
        law(frequencies_are_those_of_transformers, "yarn of DeepSeek", 64),
    ),
    "yarn's ramp is not rounded": (
        scaled("yarn", ramp_is_exact),
        law(frequencies_are_those_of_transformers, "yarn", 64),
    ),
    "yarn's ramp is always rounded": (
        scaled("yarn", ramp_is_rounded),
        law(frequencies_are_those_of_transformers, "yarn of gpt-oss", 64),
    ),
    "llama3 without a ramp": (
        scaled("llama3", ramp_begins_at_the_end),
        law(frequencies_are_those_of_transformers, "llama3", 64),
    ),
    "long samples have longrope's short factors": (
        scaled("longrope", swapped),
        law(frequencies_are_those_of_transformers, "longrope", 65),
    ),
    "a dynamic base grows at the original length": (
        [(rope_kinds, "SCALED", {**rope_kinds.SCALED, "dynamic": without_its_constant})],
        law(frequencies_are_those_of_transformers, "dynamic", 64),
    ),
    "a cache drops one key too many": (
        [(KVCache, "_kept", one_key_less)],
        law(cached_logits_are_those_of_the_full_forward, "OLMo 3", 9, 1, 3, 2),
    ),
    "kept keys are at the positions of the first ones": (
        [(ForwardContext, "with_last_keys", places_of_kept_keys_from_zero)],
        law(cached_logits_are_those_of_the_full_forward, "OLMo 3", 9, 1, 3, 2),
    ),
    "keys of a cache stay as a shorter text turned them": (
        [(_PromptState, "turns_anew", never_anew)],
        law(greedy_tokens_are_the_likeliest_of_the_full_forward, "longrope"),
    ),
    "all prompts of a batch turn as the longest": (
        [(generate, "_inputs", by_the_longest_row)],
        law(a_prompt_gives_in_a_batch_what_it_gives_alone, "dynamic"),
    ),
    "padding counts as text": (
        [(generate, "_inputs", by_columns)],
        law(a_prompt_gives_in_a_batch_what_it_gives_alone, "longrope"),
    ),
}

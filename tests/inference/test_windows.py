"""Generation where layers have windows, do not rotate, or rotate by the length of the text: the cache changes nothing,
and that of a layer with a window holds no more than its window."""

import pytest
import torch

from megascratch.inference.generate import generate
from megascratch.inference.sampling import Sampling
from megascratch.layers.attention import KVCache
from tests.support.contexts import next_tokens
from tests.support.small_models import config_of, full_logits, model_of

GREEDY = Sampling(temperature=0)
EOD = 256
ROPE = {"position_embedding_type": "rope", "num_layers": 3, "num_query_groups": 2}
SCALED = {"rope_original_max_position_embeddings": 12, "rope_scaling_factor": 4.0}
FIXED = {
    "one token": {**ROPE, "sliding_window": 1},
    "two tokens": {"num_layers": 3, "sliding_window": 2},
    "Gemma 3": {
        **ROPE,
        "sliding_window": 4,
        "window_attn_skip_freq": [3],
        "rotary_base_windowed": 100.0,
        "rope_scaling_type": "linear",
        "rope_scaling_factor": 8.0,
    },
    "OLMo 3": {
        **ROPE,
        **SCALED,
        "sliding_window": 5,
        "window_attn_skip_freq": [1, 0, 1],
        "rotary_base_windowed": 10000.0,
        "rope_scaling_type": "yarn",
    },
    "SmolLM 3": {**ROPE, "no_rope_freq": [2]},
    "windows that rotate alone": {
        **ROPE,
        "sliding_window": 3,
        "window_attn_skip_freq": [3],
        "no_rope_freq": [3],
    },
    "Llama 3": {**ROPE, **SCALED, "rope_scaling_type": "llama3"},
    "a window with a soft cap and sinks": {
        **ROPE,
        "sliding_window": 3,
        "window_attn_skip_freq": [2],
        "attn_logit_softcapping": 2.0,
        "softmax_type": "off-by-one",
    },
}
BY_LENGTH = {
    "dynamic": {**ROPE, **SCALED, "rope_scaling_type": "dynamic"},
    "longrope": {
        **ROPE,
        **SCALED,
        "rope_scaling_type": "longrope",
        "rope_short_factors": [1.0, 1.5],
        "rope_long_factors": [2.0, 8.0],
        "sliding_window": 9,
        "window_attn_skip_freq": [2],
    },
}
KINDS = {**FIXED, **BY_LENGTH}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


@pytest.mark.parametrize("lengths", [(15,), (9, 1, 3, 2), (1,) * 15, (2, 13)])
@pytest.mark.parametrize("kind", FIXED)
def test_logits_from_the_cache_equal_those_of_the_full_forward(kind, lengths):
    """Also where several tokens at once are more than a window."""
    config = config_of(**FIXED[kind])
    model = model_of(config)
    expected = full_logits(config, model, IDS)
    cache = model.new_cache()
    at = 0
    for length in lengths:
        newest = torch.tensor([IDS[at : at + length]])
        got = model.next_logits(newest, next_tokens(newest, at, cache=cache))
        at += length
        assert (got[0] - expected[at - 1]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", FIXED)
def test_a_cache_never_holds_more_than_its_window(kind):
    """Also not behind a view: the memory is counted."""
    config = config_of(**FIXED[kind])
    model = model_of(config)
    cache = model.new_cache()
    for at in range(0, 24, 6):
        newest = torch.arange(at, at + 6)[None]
        model.next_logits(newest, next_tokens(newest, at, cache=cache))
        for layer, block in enumerate(model.blocks()):
            kept = cache[layer]
            window = block.mixer.window
            tokens = at + 6 if window is None else min(at + 6, window - 1)
            assert kept.keys.shape[2] == kept.values.shape[2] == tokens
            for tensor in (kept.keys, kept.values):
                one = tensor.shape[0] * tensor.shape[1] * tensor.shape[3] * tensor.element_size()
                if window is not None:
                    assert tensor.untyped_storage().nbytes() <= one * window


def test_a_cache_gives_the_new_tokens_all_that_they_may_see():
    cache = KVCache(window=3)
    token = torch.arange(10.0).view(1, 1, 10, 1)
    seen = [
        cache.extend(token[:, :, a:b], -token[:, :, a:b])
        for a, b in ((0, 4), (4, 5), (5, 9), (9, 10))
    ]
    assert [keys.flatten().tolist() for keys, _ in seen] == [
        [0, 1, 2, 3],
        [2, 3, 4],
        [3, 4, 5, 6, 7, 8],
        [7, 8, 9],
    ]
    assert all(torch.equal(keys, -values) for keys, values in seen)


@pytest.mark.parametrize("resets", [{}, {"reset_position_ids": True, "reset_attention_mask": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_the_likeliest_of_the_full_forward(kind, resets):
    """Across the length at which frequencies change, and behind an end of document."""
    config = config_of(**KINDS[kind], **resets)
    model = model_of(config)
    for prompt in ([5, 6, 7], [1, EOD, 8, 9]):
        (found,) = generate(model, config.data, [prompt], 14, GREEDY, EOD)
        ids = list(prompt)
        for token in found.tokens:
            assert token == full_logits(config, model, ids, EOD)[-1].argmax()
            ids.append(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(kind):
    """Prompts of both sides of the length at which frequencies change, and longer than any window."""
    config = config_of(**KINDS[kind])
    model = model_of(config)
    prompts = [[5], [7, 8, 9, 10, 11, 12, 13], [1] * 11, [2, 3] * 8]
    together = generate(model, config.data, prompts, 8, GREEDY, EOD)
    for number, prompt in enumerate(prompts):
        assert generate(model, config.data, [prompt], 8, GREEDY, EOD) == [together[number]]

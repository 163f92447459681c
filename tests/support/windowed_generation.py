"""Small models whose layers have windows, do not rotate, or rotate by the length of the text; and the laws of their
generation: the cache changes nothing, and neither does the batch."""

import torch

from megascratch.inference.generate import generate
from megascratch.inference.sampling import Sampling
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
    "dynamic": {
        **ROPE,
        **SCALED,
        "rope_scaling_type": "dynamic",
        "rotary_base": 10.0,
        "kv_channels": 8,
    },
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


def cached_logits_are_those_of_the_full_forward(kind: str, *lengths: int) -> None:
    """Args:
    lengths: tokens that are fed at once.
    """
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


def greedy_tokens_are_the_likeliest_of_the_full_forward(kind: str, **resets: bool) -> None:
    """Across the length at which frequencies change, and behind an end of document."""
    config = config_of(**KINDS[kind], **resets)
    model = model_of(config)
    for prompt in ([5, 6, 7], [1, EOD, 8, 9]):
        (found,) = generate(model, config.data, [prompt], 14, GREEDY, EOD)
        ids = list(prompt)
        for token in found.tokens:
            assert token == full_logits(config, model, ids, EOD)[-1].argmax()
            ids.append(token)


def a_prompt_gives_in_a_batch_what_it_gives_alone(kind: str) -> None:
    """Prompts on both sides of the length at which frequencies change, and longer than any window."""
    config = config_of(**KINDS[kind])
    model = model_of(config)
    prompts = [[5], [7, 8, 9, 10, 11, 12, 13], [1] * 11, [2, 3] * 8]
    together = generate(model, config.data, prompts, 8, GREEDY, EOD)
    for number, prompt in enumerate(prompts):
        assert generate(model, config.data, [prompt], 8, GREEDY, EOD) == [together[number]]

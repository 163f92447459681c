"""Generation where layers have windows, do not rotate, or rotate by the length of the text: the cache changes nothing,
and that of a layer with a window holds no more than its window."""

import pytest
import torch

from megascratch.layers.attention import KVCache
from tests.support.contexts import next_tokens
from tests.support.small_models import config_of, model_of
from tests.support.windowed_generation import (
    FIXED,
    KINDS,
    a_prompt_gives_in_a_batch_what_it_gives_alone,
    cached_logits_are_those_of_the_full_forward,
    greedy_tokens_are_the_likeliest_of_the_full_forward,
)


@pytest.mark.parametrize("lengths", [(15,), (9, 1, 3, 2), (1,) * 15, (2, 13)])
@pytest.mark.parametrize("kind", FIXED)
def test_logits_from_the_cache_equal_those_of_the_full_forward(kind, lengths):
    """Also where several tokens at once are more than a window."""
    cached_logits_are_those_of_the_full_forward(kind, *lengths)


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
    greedy_tokens_are_the_likeliest_of_the_full_forward(kind, **resets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(kind):
    a_prompt_gives_in_a_batch_what_it_gives_alone(kind)

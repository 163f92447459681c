"""Which layer has a window and which rotates, and by which rope."""

import pytest

from megascratch.config.fields import flat
from megascratch.config.laws import validate
from megascratch.config.layer_patterns import fitted
from megascratch.config.layers import RopeScaling, RopeSpec
from megascratch.config.notices import notices
from megascratch.config.resolve import resolve
from tests.support.broken_pattern_laws import LEGAL, LONGROPE, NO_EFFECT, YARN
from tests.support.layer_patterns import (
    config_of,
    layers_rotate_unless_the_patterns_say_so,
    mixers,
    windowed_layers_have_a_base_of_their_own_and_are_not_scaled,
    windows_are_where_the_patterns_say,
)


def test_a_window_is_where_the_pattern_says():
    windows_are_where_the_patterns_say()


def test_a_layer_rotates_unless_the_pattern_says_so():
    layers_rotate_unless_the_patterns_say_so()


def test_windowed_layers_may_have_a_base_of_their_own_and_are_then_not_scaled():
    windowed_layers_have_a_base_of_their_own_and_are_not_scaled()


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
    given = config_of(**settings)
    validate(flat(given), 1)
    assert notices(resolve(given, 1)) == []


@pytest.mark.parametrize(("settings", "sentence"), NO_EFFECT)
def test_a_setting_without_effect_is_told(settings, sentence):
    (found,) = notices(resolve(config_of(**settings), 1))
    assert sentence in found


def test_a_pattern_for_fewer_layers_is_its_beginning_and_for_more_is_repeated():
    assert fitted([1, 1, 0], 2) == [1, 1]
    assert fitted([1, 1, 0], 7) == [1, 1, 0, 1, 1, 0, 1]
    assert fitted([6], 2) == [6]

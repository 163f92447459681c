"""Every place that draws at random has a stream of its own: each mask of a run is drawn by one site, for one sample, in
one step, under one seed; and no order of samples is the order of another seed, epoch or purpose."""

from itertools import product

import torch

from megascratch.data.tokens.indices import stream_key
from megascratch.inference.generate import _generator
from megascratch.layers.kernels import dropout
from tests.support.random_sites import no_mask_is_drawn_twice


def test_no_mask_is_drawn_twice():
    no_mask_is_drawn_twice()


def test_every_seed_site_and_sample_have_a_key_of_their_own():
    """All of a grid, in which any two numbers may have been added up or taken for each other."""
    samples = torch.arange(64)
    keys = [
        dropout.sample_keys(seed, site, samples).tolist()
        for seed, site in product(range(24), range(24))
    ]
    assert len({key for some in keys for key in some}) == 24 * 24 * 64


def test_every_seed_epoch_and_purpose_have_an_order_of_their_own():
    keys = {stream_key(*numbers) for numbers in product(range(16), repeat=3)}
    keys |= {stream_key(*numbers) for numbers in product(range(16), repeat=2)}
    assert len(keys) == 16**3 + 16**2


def test_every_seed_and_prompt_have_draws_of_their_own():
    """Neighbours, and a prompt so far on that a multiple of the seed would have met it."""
    pairs = [*product(range(20), range(20)), (0, 1_000_003), (3, 7 + 2 * 1_000_003)]
    first = [torch.rand(4, generator=_generator(*pair)).tolist() for pair in pairs]
    assert len(set(map(tuple, first))) == len(pairs)

"""Every place that draws at random has a stream of its own: each mask of a run is drawn by one site, for one sample, in
one step, under one seed; and no order of samples is the order of another seed, epoch or purpose."""

from itertools import product
from unittest.mock import patch

import torch

from megascratch.data.indices import stream_key
from megascratch.layers import dropout
from megascratch.training.generation import _generator
from tests.laws.runs import config_of
from tests.laws.whole_runs import Case, Step, happened

LAYERS, BATCH, STEPS, SEEDS = 5, 4, 3, (1, 2, 3)
SETTINGS = {"num_layers": LAYERS, "global_batch_size": BATCH, "hidden_dropout": 0.1, "attention_dropout": 0.1,
            "device": "cpu", "eval_iters": 1}  # fmt: skip
SITES = 1 + 3 * LAYERS  # the embedding; in each layer attention and two places on the residual stream


def keys_of_a_run(seed: int) -> list[int]:
    """One for each mask of a sample, in the order in which they are drawn."""
    seen: list[int] = []
    plain = dropout.sample_keys

    def noted(seed, site, samples):
        keys = plain(seed, site, samples)
        seen.extend(keys.tolist())
        return keys

    with patch.object(dropout, "sample_keys", noted):
        happened(config_of(**SETTINGS, seed=seed), Case({}, [Step(STEPS, 0, BATCH)]))
    return seen


def no_mask_is_drawn_twice() -> None:
    """The law; neighbouring seeds, since a sum of seed, site and sample would give a mask of one run to the next."""
    drawn = [key for seed in SEEDS for key in keys_of_a_run(seed)]
    assert len(drawn) == len(SEEDS) * STEPS * BATCH * SITES, "every site draws for every sample"
    assert len(set(drawn)) == len(drawn), f"{len(drawn) - len(set(drawn))} of {len(drawn)} masks are copies"


def test_no_mask_is_drawn_twice():
    no_mask_is_drawn_twice()


def test_every_seed_site_and_sample_have_a_key_of_their_own():
    """All of a grid, in which any two numbers may have been added up or taken for each other."""
    samples = torch.arange(64)
    keys = [dropout.sample_keys(seed, site, samples).tolist() for seed, site in product(range(24), range(24))]
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

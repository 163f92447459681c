"""Laws of the random streams of a run."""

from unittest.mock import patch

from megascratch.layers.kernels import dropout
from tests.support.layout_runs import config_of
from tests.support.whole_runs import Case, Step, happened

LAYERS, BATCH, STEPS, SEEDS = 5, 4, 3, (1, 2, 3)
SETTINGS = {
    "num_layers": LAYERS,
    "global_batch_size": BATCH,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "device": "cpu",
    "eval_iters": 1,
}
# the embedding; in each layer attention and two places on the residual stream
SITES = 1 + 3 * LAYERS


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
    assert len(set(drawn)) == len(drawn), (
        f"{len(drawn) - len(set(drawn))} of {len(drawn)} masks are copies"
    )

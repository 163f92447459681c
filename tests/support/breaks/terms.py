"""Breaks of terms that arise in the middle of the model: their counts, their weights, their sums."""

import torch

from megascratch.model.loss_terms import LANGUAGE_MODEL
from megascratch.optim.loss_scale import LossScale
from megascratch.parallel.side_loss import SideLosses
from megascratch.training.trainer import Trainer
from tests.support.breaks.replacing import DP2, PP2, SP, TP2, Break
from tests.support.side_terms import NAME, train_with_term

FULL = {"recompute_granularity": "full"}


def over_learned_tokens(self, counts):
    return plain_weights(self, {**counts, NAME: counts[LANGUAGE_MODEL]})


def without_the_scale(self, counts):
    weights = plain_weights(self, counts)
    return {**weights, NAME: weights[NAME] / self.scale.scale}


def scaled(cls, optim):
    """In fp64 a power of two that is divided out again changes no bit."""
    return cls(1024.0)


def counted_by_the_last_stage(self, counts):
    """Elsewhere the number of tokens is unknown."""
    known = counts if self.stages[-1].is_last else dict.fromkeys(counts, 1.0)
    return plain_weights(self, known)


def counted_by_this_rank(self, batches):
    counts = plain_counts(self, batches)
    own = sum(float(batch.real.sum()) for batch in batches)
    return {**counts, NAME: own}


def added_each_time(self, x, total, term, layer, counts):
    before = self._sums.get((term, layer), torch.zeros_like(total))
    x = plain_join(self, x, total, term, layer, counts)
    if counts:
        self._sums[term, layer] += before
    return x


def on_every_rank(self, x, total, term, layer, counts):
    return plain_join(self, x, total, term, layer, True)


def under_one_key(self, x, total, term, layer, counts):
    return plain_join(self, x, total, term, 0, counts)


def on_the_first_rank(self, x, total, term, layer, counts):
    """A tensor rank that sees other tokens is taken for one that repeats."""
    return plain_join(self, x, total, term, layer, torch.distributed.get_rank() == 0)


plain_weights, plain_counts, plain_join = Trainer._weights, Trainer._counts, SideLosses.join

BREAKS: dict[str, Break] = {
    name: Break(settings, replacements, train_with_term)
    for name, (settings, replacements) in {
        "a side term divided by the learned tokens": (
            TP2,
            [(Trainer, "_weights", over_learned_tokens)],
        ),
        "a side term's weight without the loss scale": (
            PP2,
            [
                (LossScale, "start", classmethod(scaled)),
                (Trainer, "_weights", without_the_scale),
            ],
        ),
        "a side term's tokens unknown before the last stage": (
            {**PP2, "num_layers": 4},
            [(Trainer, "_weights", counted_by_the_last_stage)],
        ),
        "a side term's tokens of this rank alone": (
            DP2,
            [(Trainer, "_counts", counted_by_this_rank)],
        ),
        "a side term counted again by recomputation": (
            {**TP2, **FULL, "num_layers": 4, "recompute_num_layers": 4},
            [(SideLosses, "join", added_each_time)],
        ),
        "a side term counted by each tensor rank": (
            TP2,
            [(SideLosses, "join", on_every_rank)],
        ),
        "a side term of two layers kept once": (
            {**TP2, "num_layers": 4},
            [(SideLosses, "join", under_one_key)],
        ),
        "a side term of the first part of the sequence alone": (
            SP,
            [(SideLosses, "join", on_the_first_rank)],
        ),
    }.items()
}

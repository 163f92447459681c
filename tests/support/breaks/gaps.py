"""Breaks of what a step does that has nothing to learn, on some ranks or on all of them.

Five steps of 8 samples: the second has no learned token at all, the third none on the first of two data-parallel ranks,
the fourth none on the second. Micro-batches of one sample are dealt in turn, so even samples are the first rank's.
"""

import math
from dataclasses import replace
from unittest.mock import patch

import torch

from megascratch.config.settings import Config
from megascratch.parallel.collectives import all_gather
from megascratch.training.trainer import Trainer
from megascratch.verification import run_layout
from megascratch.verification.run_layout import RankTrace, synthetic_batch
from tests.support.breaks.replacing import DP2, PP2, Break

BATCH = 8
EMPTY, FIRST_HAS_NONE, SECOND_HAS_NONE = 1, 2, 3  # steps, from 0 on


def has_nothing_to_learn(sample: int) -> bool:
    step = sample // BATCH
    if step == FIRST_HAS_NONE:
        return sample % 2 == 0
    if step == SECOND_HAS_NONE:
        return sample % 2 == 1
    return step == EMPTY


def batch_with_gaps(data, vocab_size, numbers):
    batch = synthetic_batch(data, vocab_size, numbers)
    learned = torch.tensor([[not has_nothing_to_learn(number)] for number in numbers])
    return replace(batch, loss_mask=batch.loss_mask * learned)


def with_gaps(config: Config, steps: int) -> RankTrace:
    """On a rank: the run; the norm of a step without a learned token, which has none, counts as 0."""
    with patch.object(run_layout, "synthetic_batch", batch_with_gaps):
        found = run_layout.train_on_rank(config, steps)
    return found._replace(norms=[0.0 if math.isnan(norm) else norm for norm in found.norms])


# ---- replacements ----------------------------------------------------------------------------------------------


def only_the_last_stage_counts(self, batches):
    """The others take 1 for the divisor."""
    counts = plain_counts(self, batches)
    return counts if self.stages[-1].is_last else dict.fromkeys(counts, 1.0)


def only_the_first_data_rank_is_asked(self, parts, tokens, *others):
    """What it counted divides nothing, but decides whether anything is learned."""
    own = torch.tensor([float(self.own_tokens)])
    of_ranks = all_gather(own, self.mesh.data)
    return plain_update(self, parts, of_ranks[0].item(), *others)


def noting_its_own_tokens(self, batches):
    self.own_tokens = sum(float(batch.loss_mask.sum()) for batch in batches)
    return plain_counts(self, batches)


def second_rank_always_learns(self, parts, tokens, *others):
    return plain_update(self, parts, tokens + (self.mesh.rank == 1), *others)


plain_counts, plain_update = Trainer._counts, Trainer._update

BREAKS: dict[str, Break] = {
    name: Break({"global_batch_size": BATCH, **settings}, replacements, with_gaps)
    for name, (settings, replacements) in {
        "each stage asks itself whether a step has tokens": (
            PP2,
            [(Trainer, "_counts", only_the_last_stage_counts)],
        ),
        "the first data rank decides whether a step has tokens": (
            DP2,
            [
                (Trainer, "_counts", noting_its_own_tokens),
                (Trainer, "_update", only_the_first_data_rank_is_asked),
            ],
        ),
        "a second rank updates its copy in a step without tokens": (
            DP2,
            [(Trainer, "_update", second_rank_always_learns)],
        ),
    }.items()
}

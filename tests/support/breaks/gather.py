"""Breaks of when ZeRO-1's gathered weights are awaited. The gathers happen as late as they may: a weight that nobody
awaits is surely an old one."""

from unittest.mock import patch

from megascratch.config.settings import Config
from megascratch.data_parallel import base, zero1
from megascratch.data_parallel.base import DataParallel
from megascratch.parallel.collectives import start_all_gather
from megascratch.parallel.pending import Pending
from tests.support import layout_runs
from tests.support.breaks.replacing import ZERO1, Break, nothing


class WhenAwaited(Pending):
    """A gather that waits until it is awaited."""

    def __init__(self, x, axis, out):
        super().__init__("all_gather", axis, None, out)
        self.x = x

    def wait(self):
        return start_all_gather(self.x, self.axis, self.result).wait()


LATE = zero1, "start_all_gather", WhenAwaited


def run_gathering_late(config: Config, steps: int) -> layout_runs.RankTrace:
    """On a rank: no break, but every gather happens as late as it may."""
    with patch.object(*LATE):
        return layout_runs.train_on_rank(config, steps)


def awaits_nothing(buckets):
    return nothing


def awaits_no_tied_weight(buckets):
    return plain_awaiting([bucket for bucket in buckets if not bucket.plan.alone])


def awaits_what_the_layer_before_needs(self, layers):
    plain_overlap(self, [])
    layers = list(layers)
    for before, layer in zip([layers[-1], *layers[:-1]], layers, strict=True):
        layer.register_forward_pre_hook(
            plain_awaiting([p.grad_sink.bucket for p in before.parameters()])
        )


plain_awaiting, plain_overlap = base._awaiting, DataParallel.overlap_param_gather

BREAKS: dict[str, Break] = {
    "gathered weights not awaited": Break(ZERO1, [LATE, (base, "_awaiting", awaits_nothing)]),
    "gathered weights of another layer awaited": Break(
        ZERO1, [LATE, (DataParallel, "overlap_param_gather", awaits_what_the_layer_before_needs)]
    ),
    "gathered tied weight not awaited": Break(
        ZERO1, [LATE, (base, "_awaiting", awaits_no_tied_weight)]
    ),
}

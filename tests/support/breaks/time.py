"""Breaks of when arithmetic happens: recomputation, a backward in two halves, schedules, micro-batches."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from megascratch.data_parallel.buckets import Bucket, Buckets, GradSlot
from megascratch.layers import attention, linear
from megascratch.model import block, build, chunk
from megascratch.optim.grad_norm import clip_factor
from megascratch.optim.loss_scale import LossScale
from megascratch.pipeline import runtime
from megascratch.pipeline.runtime import _Player
from megascratch.pipeline.stage import Deferred, Stage
from megascratch.training import trainer
from megascratch.training.trainer import Trainer
from tests.support.breaks.replacing import (
    DOCUMENTS,
    DP2,
    DROPOUT,
    INTERLEAVED,
    PP2,
    UNTIED,
    Break,
    nothing,
)

FULL = {"recompute_granularity": "full"}
SELECTIVE = {"recompute_granularity": "selective"}
HALVES = {**PP2, "pipeline_schedule": "zb_h1"}
FOLDED = {**PP2, "pipeline_schedule": "zb_v", "num_layers": 4}


def again_with(change):
    """Recomputation whose second run gets other arguments: `change(function, *args) -> (function, *args)`."""

    def recomputed(function, *args):
        runs = []

        def run(*args):
            runs.append(1)
            called, *changed = (function, *args) if len(runs) == 1 else change(function, *args)
            return called(*changed)

        return plain_recomputed(run, *args)

    return recomputed


def next_samples(function, *args):
    *rest, context = args
    return (function, *rest, replace(context, samples=context.samples + 1))


def layers_backwards(function, x, context):
    return partial(function.func, function.args[0][::-1]), x, context


def twice_as_large(function, x, context):
    return function, 2 * x, context


def no_documents(function, q, k, v, context):
    return (
        function,
        q,
        k,
        v,
        replace(context, visible=replace(context.visible, starts=None)),
    )


def normed_no_more(x):
    """Backward takes the norm's input for what it returns."""
    kept, _ = plain_to_keep(x)
    return kept, None


plain_to_keep = linear.to_keep


@torch.no_grad()
def twice(self, microbatch):
    for deliver in self._waiting.pop(microbatch):
        deliver()
        deliver()


@torch.no_grad()
def all_but_the_last(self, microbatch):
    for deliver in list(self._waiting.pop(microbatch))[:-1]:
        deliver()


def rows_put_off_for_ever(self, inner, waiting):
    plain_deferred(self, inner, waiting)
    self.rows = nothing


@torch.no_grad()
def gradient_of_the_micro_batch_before(self, microbatch):
    """The inputs of one micro-batch meet the gradients of another."""
    mine = self._waiting.pop(microbatch)
    before = getattr(self, "before", mine)
    for deliver, other in zip(mine, before, strict=True):
        weight, x, _ = deliver.args
        deliver.func(weight, x, other.args[2])
    self.before = mine


def reduced_before_the_product(self, weight, x, grad):
    def late(tell=self.inner.tell):
        self.inner.tell = None
        self.inner.linear(weight, x, grad)
        self.inner.tell = tell

    if self.inner.tell is not None:
        self.inner.tell(self.inner)
    self.waiting.append(late)


def kept_by_autograd(self, weight):
    if weight.grad is not None:
        self.dense(weight, weight.grad)


def any_gradient_will_do(self):
    return any(slot.arrived for slot in self.slots)


def renew_always(self, last):
    self._renew()
    self.last = last


def last_is_first(self, action, last):
    self.data_parallel.begin(action.chunk, action.microbatch == 0 if action.chunk == 1 else last)


def next_micro_batch(self, action):
    stage = self.stages[action.chunk]
    before, self.batches = (
        self.batches,
        self.batches if stage.is_first else self.batches[1:] + self.batches[:1],
    )
    plain_forward(self, action)
    self.batches = before


def averaged_over_micro_batches(order, stages, links, batches, spec, loss_grad, *rest):
    return plain_run(order, stages, links, batches, spec, loss_grad / len(batches), *rest)


def loss_of_the_last(self, losses):
    return plain_loss_part(self, losses[-1:])


def in_another_order(places):
    """Virtual stages hold other layers, though the right stages hold embedding and head."""

    def make(model, layers, *rest):
        start = places[layers.start]
        return chunk.ModelChunk(model, range(start, start + 1), *rest)

    return make


def scaled(cls, optim):
    """In fp64 a power of two that is divided out again changes no bit."""
    return cls(1024.0)


def scale_left_in_the_step(self, *args):
    plain = self.data_parallel.step
    with patch.object(
        self.data_parallel,
        "step",
        lambda lr, factor, *others: plain(lr, factor * self.scale.scale, *others),
    ):
        return plain_update(self, *args)


def scale_left_in_the_norm(self, *args):
    with patch.object(
        trainer, "clip_factor", lambda norm, most: clip_factor(norm * self.scale.scale, most)
    ):
        return plain_update(self, *args)


plain_recomputed, plain_deferred = chunk.with_recompute, Deferred.__init__
plain_forward, plain_run, plain_loss_part = _Player.forward, runtime.run, Trainer._loss_part
plain_update = Trainer._update

BREAKS: dict[str, Break] = {
    "a norm that is not computed again": Break(
        {**SELECTIVE, "recompute_modules": ["layernorm"]}, [(linear, "to_keep", normed_no_more)]
    ),
    "a feed-forward recomputed from another input": Break(
        {**SELECTIVE, "recompute_modules": ["mlp"]},
        [(block, "with_recompute", again_with(twice_as_large))],
    ),
    "recomputation draws another dropout mask": Break(
        {**FULL, **DROPOUT}, [(chunk, "with_recompute", again_with(next_samples))]
    ),
    "attention recomputed with another dropout mask": Break(
        {**SELECTIVE, **DROPOUT}, [(attention, "with_recompute", again_with(next_samples))]
    ),
    "layers of a unit recomputed in another order": Break(
        {**FULL, "recompute_num_layers": 2},
        [(chunk, "with_recompute", again_with(layers_backwards))],
    ),
    "attention recomputed without document boundaries": Break(
        {**SELECTIVE, **DROPOUT, **DOCUMENTS},
        [(attention, "with_recompute", again_with(no_documents))],
    ),
    "weight gradients of W delivered twice": Break(HALVES, [(Stage, "backward_weight", twice)]),
    "one weight gradient of W dropped": Break(
        HALVES, [(Stage, "backward_weight", all_but_the_last)]
    ),
    "W pairs inputs with another micro-batch's gradients": Break(
        HALVES, [(Stage, "backward_weight", gradient_of_the_micro_batch_before)]
    ),
    "embedding rows of a split backward dropped": Break(
        HALVES, [(Deferred, "__init__", rows_put_off_for_ever)]
    ),
    "reduction begins at I, before W": Break(
        {**HALVES, **DP2}, [(Deferred, "linear", reduced_before_the_product)]
    ),
    "biases' gradients left to autograd, too": Break(
        HALVES, [(GradSlot, "from_autograd", kept_by_autograd)]
    ),
    "bucket reduced when its first gradient arrives": Break(
        DP2, [(Bucket, "is_full", property(any_gradient_will_do))]
    ),
    "each micro-batch overwrites the gradient": Break({}, [(Buckets, "begin", renew_always)]),
    "reduction after the first micro-batch of the second chunk": Break(
        {**INTERLEAVED, **DP2}, [(Trainer, "_before_backward", last_is_first)]
    ),
    "labels of the next micro-batch on the last stage": Break(
        PP2, [(_Player, "forward", next_micro_batch)]
    ),
    "loss averaged over micro-batches": Break(
        {}, [(trainer.runtime, "run", averaged_over_micro_batches)]
    ),
    "loss of the last micro-batch alone": Break(PP2, [(Trainer, "_loss_part", loss_of_the_last)]),
    "chunks of a rank are neighbours": Break(
        INTERLEAVED, [(build, "ModelChunk", in_another_order({0: 0, 1: 2, 2: 1, 3: 3}))]
    ),
    "chunks of a V lie as in a loop": Break(
        {**FOLDED, **UNTIED}, [(build, "ModelChunk", in_another_order({0: 0, 1: 1, 2: 3, 3: 2}))]
    ),
    "loss scale left in the step": Break(
        DP2,
        [(LossScale, "start", classmethod(scaled)), (Trainer, "_update", scale_left_in_the_step)],
    ),
    "loss scale left in the norm": Break(
        PP2,
        [(LossScale, "start", classmethod(scaled)), (Trainer, "_update", scale_left_in_the_norm)],
    ),
}

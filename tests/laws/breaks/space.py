"""Deliberate breaks of the code, each with a layout on which the layout law must notice; applied inside the ranks.

A break replaces a function or a method for one run; the model's definition stays as it is, only how it is laid out is
wrong, as it would be after a plausible mistake.
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from megascratch.config.settings import Config
from megascratch.data.loader import sample_numbers
from megascratch.data_parallel import base
from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.buckets import Buckets
from megascratch.data_parallel.ddp import Replicated
from megascratch.data_parallel.partial import PartialSums
from megascratch.data_parallel.zero1 import ZeroOne
from megascratch.layers import attention, dropout, embedding, linear, mlp
from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.model import build, chunk
from megascratch.parallel.collectives import Pending, all_reduce, gather_from, reduce_from, start_all_reduce
from megascratch.parallel.mesh import Axis
from megascratch.parallel.random import normal_rows
from megascratch.parallel.shard import Box
from megascratch.pipeline.runtime import _Player
from megascratch.training.trainer import Trainer
from megascratch.verification import measure
from tests.laws import runs

TP2 = {"tensor_model_parallel_size": 2}
SP = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
DP2 = {"data_parallel_size": 2}
INTERLEAVED = {**PP2, "num_virtual_stages_per_pipeline_rank": 2, "num_layers": 4}
ROTARY = {"position_embedding_type": "rope"}
UNTIED = {"untie_embeddings_and_output_weights": True}
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True}


class Break(NamedTuple):
    """Replacements (where, attribute, new value) and the settings of the layout that must notice."""

    settings: dict[str, Any]
    replacements: list[tuple[Any, str, Any]]


def run_broken(name: str, config: Config, steps: int) -> tuple:
    """On a rank: `train_on_rank` with the break of that name in force."""
    with ExitStack() as stack:
        for target, attribute, value in BREAKS[name].replacements:
            stack.enter_context(patch.object(target, attribute, value))
        return runs.train_on_rank(config, steps)


# ---- replacements ----------------------------------------------------------------------------------------------


def nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of a step that has no result."""


def own_value(x, axis, *rest):
    return x


def own_part(x, axis):
    return x.chunk(axis.size)[axis.rank]


def not_started(x, axis, *rest):
    return Pending("all_reduce", axis, None, x)


def own_part_not_started(x, axis):
    return Pending("reduce_scatter", axis, None, own_part(x, axis).contiguous())


def after(plain, **attributes):
    """A constructor that sets attributes afterwards."""

    def __init__(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        for name, value in attributes.items():
            setattr(self, name, value)

    return __init__


def bias_on_every_rank(self, x):
    return reduce_from(linear.linear(x, self.weight, self.bias, self.alone), self.tp)


def offset_without_padding(self, shard, *args, **kwargs):
    plain_embedding(self, shard, *args, **kwargs)
    self.first = self.tp.rank * (shard.shape[0] // self.tp.size)


def first_positions(self, positions):
    return embedding.rows(self.weight, positions.t().chunk(self.tp.size)[0])


def padding_counts(logits, labels, valid, tp):
    return vocab_parallel_cross_entropy(logits, labels, logits.shape[-1], tp)


def gathered_logits(logits, labels, valid, tp):
    whole = gather_from(logits.t(), tp).t().contiguous()
    return vocab_parallel_cross_entropy(whole, labels, whole.shape[-1], tp)


def by_place_in_the_batch(self, x, samples):
    return plain_dropout(self, x, torch.arange(len(samples)))


def without_parts(*args, parts=(), **kwargs):
    return linear.ColumnParallelLinear(*args, **kwargs)


def from_the_first_row(seed, name, shape, box):
    return normal_rows(seed, name, shape, Box((0,) * len(shape), box.shape))


def seed_per_rank(part, mesh, seed):
    return plain_initialise(part, mesh, seed + mesh.rank)


def local_layers(model, layers, *rest):
    return chunk.Chunk(model, range(len(layers)), *rest)


def layers_in_another_order(model, layers, *rest):
    """Virtual stages 0 1 2 3 hold the layers 0 2 1 3, as if each rank's chunks were neighbours."""
    start = {0: 0, 1: 2, 2: 1, 3: 3}[layers.start]
    return chunk.Chunk(model, range(start, start + 1), *rest)


def documents_on_the_first_stage_only(self, x, batch):
    return plain_chunk(self, x, batch if self.first else replace(batch, documents=None))


def positions_on_the_first_stage_only(self, x, batch):
    places = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return plain_chunk(self, x, batch if self.first else replace(batch, positions=places))


def mean_of_means(self, batches):
    mine = sum(batch.loss_mask.sum(dtype=torch.float64) for batch in batches)
    return mine.item() * self.mesh.data.size


def loss_of_every_rank(self, losses):
    return sum((loss.double() for loss in losses), torch.zeros((), dtype=torch.float64))


def one_sample_later(consumed, micro_batch, size, dp_rank, dp_size):
    return sample_numbers(consumed + (dp_rank == 1), micro_batch, size, dp_rank, dp_size)


def next_micro_batch(self, action):
    stage = self.stages[action.chunk]
    before, self.batches = self.batches, self.batches if stage.is_first else self.batches[1:] + self.batches[:1]
    plain_forward(self, action)
    self.batches = before


def last_is_first(self, action, last):
    self.data_parallel.begin(action.chunk, action.microbatch == 0 if action.chunk == 1 else last)


def renew_always(self, last):
    self._renew()
    self.last = last


def averaged(self, bucket):
    return start_all_reduce(bucket.grads.div_(self.mesh.data.size), self.mesh.data)


def not_reduced(self, bucket):
    return not_started(bucket.grads, self.mesh.data)


def counted_everywhere(self):
    def first_copies(self, owned, place):
        return [piece._replace(copy=self._replica) for piece in plain_pieces(self, owned, place)]

    with patch.object(DataParallel, "_pieces", first_copies):
        return plain_counted(self)


def summed_over_pipeline_alone(self):
    """What one line of stages holds, told to all."""
    here = plain_norm(self).square() if self.mesh.tp.rank == 0 else torch.zeros((), dtype=torch.float64)
    return all_reduce(here, self.mesh.tp).sqrt()


def of_stages(self):
    return self.mesh.pp


def of_tensor_ranks(self):
    return self.mesh.tp


def alone(self):
    return Axis.alone("world")


plain_embedding = embedding.VocabParallelEmbedding.__init__
plain_dropout = dropout.Dropout.forward
plain_initialise = build.initialise
plain_chunk = chunk.Chunk.forward
plain_forward = _Player.forward
plain_pieces, plain_counted, plain_norm = DataParallel._pieces, DataParallel._counted, DataParallel.norm

BREAKS: dict[str, Break] = {
    "input gradient of a column-parallel layer not summed": Break(
        TP2, [(linear, "start_all_reduce", not_started)]),
    "input gradient not reduce-scattered under SP": Break(
        SP, [(linear, "start_reduce_scatter", own_part_not_started)]),
    "output of a row-parallel layer not summed": Break(TP2, [(linear, "reduce_from", own_value)]),
    "output of a row-parallel layer not summed under SP": Break(SP, [(linear, "reduce_scatter_to", own_part)]),
    "row-parallel bias added on each tensor rank": Break(
        TP2, [(linear.RowParallelLinear, "forward", bias_on_every_rank)]),
    "embedding not summed over the vocabulary's parts": Break(TP2, [(embedding, "reduce_from", own_value)]),
    "vocabulary offset without its padding": Break(
        TP2, [(embedding.VocabParallelEmbedding, "__init__", offset_without_padding)]),
    "padding enters the softmax": Break(TP2, [(chunk, "vocab_parallel_cross_entropy", padding_counts)]),
    "gathered logits fed to a loss that expects a shard": Break(
        {**TP2, "vocab_size": 64}, [(chunk, "vocab_parallel_cross_entropy", gathered_logits)]),
    "learned positions not offset under SP": Break(SP, [(embedding.PositionEmbedding, "forward", first_positions)]),
    "q, k and v cut as one block": Break(TP2, [(attention, "ColumnParallelLinear", without_parts)]),
    "gate and up cut as one block": Break({**TP2, "swiglu": True}, [(mlp, "ColumnParallelLinear", without_parts)]),
    "gradients of norms not summed under SP": Break(SP, [(PartialSums, "add_up", nothing)]),
    "gradients of shared key/value heads not summed": Break(
        {"tensor_model_parallel_size": 4, "num_query_groups": 2}, [(PartialSums, "add_up", nothing)]),
    "dropout mask by local position under SP": Break(
        {**SP, "hidden_dropout": 0.1}, [(dropout.Dropout, "__init__", after(dropout.Dropout.__init__, part=0))]),
    "attention dropout by local head": Break(
        {**TP2, "attention_dropout": 0.1},
        [(dropout.AttentionDropout, "__init__", after(dropout.AttentionDropout.__init__, rank=0))]),
    "dropout by place in the micro-batch": Break(
        {**DP2, "hidden_dropout": 0.1}, [(dropout.Dropout, "forward", by_place_in_the_batch)]),
    "initial weights of each rank from row 0": Break(TP2, [(build, "normal_rows", from_the_first_row)]),
    "initial weights from a seed per rank": Break(PP2, [(build, "initialise", seed_per_rank)]),
    "layer numbers restart on each stage": Break(PP2, [(build, "Chunk", local_layers)]),
    "chunks of a rank are neighbours": Break(INTERLEAVED, [(build, "Chunk", layers_in_another_order)]),
    "document mask on the first stage only": Break(
        {**PP2, **DOCUMENTS}, [(chunk.Chunk, "forward", documents_on_the_first_stage_only)]),
    "rotary positions on the first stage only": Break(
        {**PP2, **ROTARY, "reset_position_ids": True}, [(chunk.Chunk, "forward", positions_on_the_first_stage_only)]),
    "labels of the next micro-batch on the last stage": Break(PP2, [(_Player, "forward", next_micro_batch)]),
    "two copies of a tied weight not summed": Break(PP2, [(base, "start_all_reduce", not_started)]),
    "loss as a mean of means": Break(DP2, [(Trainer, "_valid_tokens", mean_of_means)]),
    "loss counted on each tensor rank": Break(TP2, [(Trainer, "_loss_part", loss_of_every_rank)]),
    "one rank reads one sample later": Break(DP2, [(measure, "sample_numbers", one_sample_later)]),
    "gradients averaged over data ranks": Break(DP2, [(Replicated, "_reduce", averaged)]),
    "gradients not summed over data ranks": Break(DP2, [(Replicated, "_reduce", not_reduced)]),
    "reduction after the first micro-batch of the second chunk": Break(
        {**INTERLEAVED, **DP2}, [(Trainer, "_before_backward", last_is_first)]),
    "each micro-batch overwrites the gradient": Break({}, [(Buckets, "begin", renew_always)]),
    "updated weights not gathered under ZeRO-1": Break(
        {**DP2, "use_distributed_optimizer": True}, [(ZeroOne, "_share_weights", nothing)]),
    "norm of this rank's range alone under ZeRO-1": Break(
        {**DP2, "use_distributed_optimizer": True}, [(ZeroOne, "_norm_axis", alone)]),
    "replicated weights count on each tensor rank": Break(
        {**TP2, **UNTIED}, [(DataParallel, "_counted", counted_everywhere)]),
    "sharded weights of other tensor ranks left out of the norm": Break(TP2, [
        (Replicated, "_norm_axis", of_stages), (DataParallel, "norm", summed_over_pipeline_alone)]),
    "weights of other stages left out of the norm": Break(PP2, [(Replicated, "_norm_axis", of_tensor_ranks)]),
}  # fmt: skip

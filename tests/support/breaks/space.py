"""Breaks of where things lie: tensor, sequence, pipeline and data ranks, ZeRO-1's ranges, the norm."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.distributed as dist

from megascratch.config.resolve import padded_vocab_size
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.data_parallel import base
from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.ddp import DDP
from megascratch.data_parallel.optimizer_shard import OptimizerShard
from megascratch.data_parallel.partial_grads import PartialGradReducer, partial_blocks
from megascratch.data_parallel.zero1 import Zero1
from megascratch.layers import attention, dropout, embedding, linear, loss, mlp
from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.model import build, chunk
from megascratch.parallel.collectives import (
    _Pair,
    _sum,
    all_gather,
    all_reduce,
    gather_from,
    reduce_from,
    reduce_scatter,
    start_all_reduce,
)
from megascratch.parallel.initial_values import normal_blocks
from megascratch.parallel.pending import Pending
from megascratch.parallel.shard import Box, Shard
from megascratch.training.trainer import Trainer
from megascratch.verification import run_layout
from tests.support.breaks.replacing import (
    DOCUMENTS,
    DP2,
    PP2,
    ROTARY,
    SP,
    TP2,
    UNTIED,
    ZERO1,
    Break,
    after,
    not_started,
    nothing,
    own_part,
    own_part_repeated,
    own_value,
    setting,
)

SHARED_HEADS = {"tensor_model_parallel_size": 4, "num_query_groups": 2}


def own_part_not_started(x, axis):
    return Pending("reduce_scatter", axis, None, own_part(x, axis).contiguous())


def own_part_repeated_not_started(x, axis):
    return Pending("all_gather", axis, None, own_part_repeated(x, axis))


def gathered_from_the_second_rank_on(x, axis):
    return all_gather(x, axis).roll(x.shape[0], 0)


def summed_both_ways(x, axis):
    return _Pair.apply(x, axis, _sum, _sum)


def scattered_and_not_gathered(x, axis):
    return _Pair.apply(x, axis, reduce_scatter, own_part_repeated)


def own_where(wrong):
    """An all-reduce that leaves one kind of reduction out."""
    return lambda x, axis, op=dist.ReduceOp.SUM: x if op == wrong else all_reduce(x, axis, op)


def bias_on_every_rank(self, x):
    return reduce_from(linear.linear(x, self.weight, self.bias, self.alone), self.tp)


def offset_without_padding(self, shard, *args, **kwargs):
    plain_embedding(self, shard, *args, **kwargs)
    self.first = self.tp.rank * (shard.shape[0] // self.tp.size)


def first_positions(self, positions):
    return embedding.rows(self.weight, positions.t().chunk(self.tp.size)[0])


def padding_counts(logits, labels, valid, tp):
    return vocab_parallel_cross_entropy(logits, labels, logits.shape[-1], tp)


def rows_of_this_layout(shape, hidden, divisible_by, tp, std, role):
    """Trained padding by the rank's own layout, not by the number of rows of the model."""
    return plain_vocab_shard(
        padded_vocab_size(61, divisible_by, tp.size), hidden, divisible_by, tp, std, role
    )


def gathered_logits(logits, labels, valid, tp):
    whole = gather_from(logits.t(), tp).t().contiguous()
    return vocab_parallel_cross_entropy(whole, labels, whole.shape[-1], tp)


def by_place_in_the_batch(self, x, context):
    return plain_dropout(self, x, replace(context, samples=torch.arange(len(context.samples))))


def first_tokens(x, tp, sequence_parallel):
    """Of any tensor rank, as if it were the first."""
    return x.chunk(tp.size)[0] if sequence_parallel else x


def without_parts(*args, parts=(), **kwargs):
    return linear.ColumnParallelLinear(*args, **kwargs)


def from_the_first_row(seed, name, shape, box, *rest):
    return normal_blocks(seed, name, shape, Box((0,) * len(shape), box.shape), *rest)


def seed_per_rank(part, mesh, seed):
    return plain_initialise(part, mesh, seed + mesh.rank)


def local_layers(model, layers, *rest):
    return chunk.ModelChunk(model, range(len(layers)), *rest)


def documents_on_the_first_stage_only(self, x, batch):
    return plain_chunk(self, x, batch if self.first else replace(batch, document_starts=None))


def positions_on_the_first_stage_only(self, x, batch):
    places = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return plain_chunk(self, x, batch if self.first else replace(batch, positions=places))


def mean_of_means(self, batches):
    counts = tokens_of_this_rank(self, batches)
    return {name: count * self.mesh.data.size for name, count in counts.items()}


def loss_of_every_rank(self, losses):
    return sum((loss.double() for loss in losses), torch.zeros((), dtype=torch.float64))


def one_sample_later(consumed, micro_batch, size, dp_rank, dp_size):
    return sample_numbers(consumed + (dp_rank == 1), micro_batch, size, dp_rank, dp_size)


def averaged(self, bucket):
    return start_all_reduce(bucket.grads.div_(bucket.axis.size), bucket.axis)


def not_reduced(self, bucket):
    return not_started(bucket.grads, bucket.axis)


def counted_everywhere(self):
    def first_copies(self, owned, place):
        return [piece._replace(copy=0) for piece in plain_pieces(self, owned, place)]

    with patch.object(DataParallel, "_pieces", first_copies):
        return plain_counted(self)


def counted_on_the_first_of(axis: str) -> Callable:
    """The other ranks of the axis have no part in the norm."""

    def parts(self):
        own = plain_norm_parts(self)
        return own if getattr(self.mesh, axis).is_first else torch.zeros_like(own)

    return parts


def labels_one_earlier(logits, labels, valid, tp):
    return vocab_parallel_cross_entropy(logits, (labels - tp.rank).clamp(min=0), valid, tp)


def rows_of_others_count(self, ids):
    local = ids.t() - self.first
    mine = (local >= 0) & (local < self.weight.shape[0])
    return reduce_from(embedding.rows(self.weight, local.where(mine, 0)), self.tp)


def forget_partial_sums(self):
    self.shards = {name: replace(shard, grad_sum=()) for name, shard in self.shards.items()}


def dealt_out_in_turn(self, cut, ranks, rank):
    """Tensor ranks 0 1 2 3 hold the key/value heads 0 1 0 1 instead of 0 0 1 1."""
    turned = []
    for part, run in zip(cut.parts, plain_runs(self, cut, ranks, rank), strict=False):
        copies = max(1, ranks // part.units)
        first = run.whole - rank // copies * run.length
        turned.append(run._replace(whole=first + rank % (ranks // copies) * run.length))
    return turned if cut.parts else plain_runs(self, cut, ranks, rank)


def over_all_ranks(shard, position):
    return [block._replace(slot=0, slots=1) for block in partial_blocks(shard, position)]


def documents_of_the_first_sample(batch):
    starts = batch.document_starts
    return plain_context(replace(batch, document_starts=starts[:1].expand_as(starts)))


def rotary_by_place(self, positions):
    return plain_rotary(self, torch.arange(positions.shape[1]).expand_as(positions))


def dropout_by_local_layer(self):
    for place, block in enumerate(self.layers.values()):
        block.dropout1.site, block.dropout2.site = 4 * place + 5, 4 * place + 6


def means_of_this_rank(self, batches, weights):
    return [each * self.mesh.data.size for each in plain_loss_grad(self, batches, weights)]


def tokens_of_this_rank(self, batches):
    counts = self._own_counts(batches).tolist()
    return dict(zip([term.name for term in self.terms], counts, strict=True))


def copies_under_their_own_name(part):
    return {name: replace(shard, tied=None) for name, shard in plain_table(part).items()}


def range_of_the_next_rank(self, bucket):
    length = bucket.plan.size // bucket.axis.size
    rank = (bucket.axis.rank + 1) % bucket.axis.size
    return rank * length, (rank + 1) * length


def decay_ends_where_the_buckets_does(self):
    """The border between what decays and what doesn't is not moved with the range."""
    return plain_stretches(replace(self, start=0, stop=self.stop - self.start))


def copies_of_a_tied_weight_count(self):
    counted = plain_counted(self)
    for owned, place in self._places():
        name = self._name(place.name)
        if name != place.name:
            for piece in self._pieces(owned, place):
                counted[name].append(self._held(name, place, owned.grads, owned, piece).tensor)
    return counted


plain_vocab_shard = embedding.vocab_shard
plain_embedding = embedding.VocabParallelEmbedding.__init__
plain_dropout = dropout.Dropout.forward
plain_initialise = build.initialise
plain_table = build.shard_table
plain_chunk, plain_context = chunk.ModelChunk.forward, chunk.context_of
plain_rotary = chunk.ModelChunk.rotary
plain_runs, plain_stretches = Shard.runs, OptimizerShard.stretches
plain_loss_grad = Trainer._loss_grad
plain_pieces, plain_counted, plain_norm_parts = (
    DataParallel._pieces,
    DataParallel._counted,
    DataParallel.norm_parts,
)

BREAKS: dict[str, Break] = {
    "input gradient of a column-parallel layer not summed": Break(
        TP2, [(linear, "start_all_reduce", not_started)]
    ),
    "input gradient not reduce-scattered under SP": Break(
        SP, [(linear, "start_reduce_scatter", own_part_not_started)]
    ),
    "weight gradient from this rank's part of the sequence alone": Break(
        SP, [(linear, "start_all_gather", own_part_repeated_not_started)]
    ),
    "sequence gathered from the second rank on": Break(
        SP, [(linear, "all_gather", gathered_from_the_second_rank_on)]
    ),
    "gradient of a row-parallel output summed again": Break(
        TP2, [(linear, "reduce_from", summed_both_ways)]
    ),
    "gradient of a scattered output not gathered": Break(
        SP, [(linear, "reduce_scatter_to", scattered_and_not_gathered)]
    ),
    "output of a row-parallel layer not summed": Break(TP2, [(linear, "reduce_from", own_value)]),
    "output of a row-parallel layer not summed under SP": Break(
        SP, [(linear, "reduce_scatter_to", own_part)]
    ),
    "row-parallel bias added on each tensor rank": Break(
        TP2, [(linear.RowParallelLinear, "forward", bias_on_every_rank)]
    ),
    "embedding not summed over the vocabulary's parts": Break(
        TP2, [(embedding, "reduce_from", own_value)]
    ),
    "embedding not summed over the vocabulary's parts under SP": Break(
        SP, [(embedding, "reduce_scatter_to", own_part)]
    ),
    "ids of another rank look up row 0": Break(
        TP2, [(embedding.VocabParallelEmbedding, "forward", rows_of_others_count)]
    ),
    "vocabulary offset without its padding": Break(
        TP2, [(embedding.VocabParallelEmbedding, "__init__", offset_without_padding)]
    ),
    "padding enters the softmax": Break(
        TP2, [(chunk, "vocab_parallel_cross_entropy", padding_counts)]
    ),
    "trained padding by the layout of the rank": Break(
        {"tensor_model_parallel_size": 4, "padded_vocab_in_softmax": True, "padded_vocab_size": 70},
        [(chunk, "vocab_shard", rows_of_this_layout)],
    ),
    "labels one word earlier on the second rank": Break(
        TP2, [(chunk, "vocab_parallel_cross_entropy", labels_one_earlier)]
    ),
    "each rank's own peak in the softmax": Break(
        TP2, [(loss, "all_reduce", own_where(dist.ReduceOp.MAX))]
    ),
    "sums of the softmax not added up": Break(
        TP2, [(loss, "all_reduce", own_where(dist.ReduceOp.SUM))]
    ),
    "gathered logits fed to a loss that expects a shard": Break(
        {**TP2, "vocab_size": 64}, [(chunk, "vocab_parallel_cross_entropy", gathered_logits)]
    ),
    "learned positions not offset under SP": Break(
        SP, [(embedding.PositionEmbedding, "forward", first_positions)]
    ),
    "q, k and v cut as one block": Break(TP2, [(attention, "ColumnParallelLinear", without_parts)]),
    "gate and up cut as one block": Break(
        {**TP2, "swiglu": True}, [(mlp, "ColumnParallelLinear", without_parts)]
    ),
    "gradients of norms not summed under SP": Break(SP, [(PartialGradReducer, "add_up", nothing)]),
    "gradient of positions not summed under SP": Break(
        SP,
        [
            (
                embedding.PositionEmbedding,
                "__init__",
                after(embedding.PositionEmbedding.__init__, forget_partial_sums),
            )
        ],
    ),
    "gradients of row-parallel biases not summed under SP": Break(
        SP,
        [
            (
                linear.RowParallelLinear,
                "__init__",
                after(linear.RowParallelLinear.__init__, forget_partial_sums),
            )
        ],
    ),
    "gradients of shared key/value heads summed over all ranks": Break(
        SHARED_HEADS, [(base, "partial_blocks", over_all_ranks)]
    ),
    "shared key/value heads dealt out in turn": Break(
        SHARED_HEADS, [(Shard, "runs", dealt_out_in_turn)]
    ),
    "gradients of shared key/value heads not summed": Break(
        SHARED_HEADS, [(PartialGradReducer, "add_up", nothing)]
    ),
    "dropout mask by local position under SP": Break(
        {**SP, "hidden_dropout": 0.1},
        [(dropout, "own_tokens", first_tokens)],
    ),
    "attention dropout by local head": Break(
        {**TP2, "attention_dropout": 0.1},
        [
            (
                dropout.AttentionDropout,
                "__init__",
                setting(dropout.AttentionDropout.__init__, rank=0),
            )
        ],
    ),
    "dropout by place in the micro-batch": Break(
        {**DP2, "hidden_dropout": 0.1}, [(dropout.Dropout, "forward", by_place_in_the_batch)]
    ),
    "dropout by the layer's number on its stage": Break(
        {**PP2, "hidden_dropout": 0.1},
        [(chunk.ModelChunk, "__init__", after(chunk.ModelChunk.__init__, dropout_by_local_layer))],
    ),
    "initial weights of each rank from row 0": Break(
        TP2, [(build, "normal_blocks", from_the_first_row)]
    ),
    "initial weights from a seed per rank": Break(PP2, [(build, "initialise", seed_per_rank)]),
    "a tied copy with initial weights of its own": Break(
        PP2, [(build, "shard_table", copies_under_their_own_name)]
    ),
    "layer numbers restart on each stage": Break(PP2, [(build, "ModelChunk", local_layers)]),
    "document mask on the first stage only": Break(
        {**PP2, **DOCUMENTS}, [(chunk.ModelChunk, "forward", documents_on_the_first_stage_only)]
    ),
    "document boundaries of the first sample for all": Break(
        {**PP2, **DOCUMENTS, "micro_batch_size": 2},
        [(chunk, "context_of", documents_of_the_first_sample)],
    ),
    "rotary angles by place in the batch": Break(
        {**PP2, **ROTARY, "reset_position_ids": True},
        [(chunk.ModelChunk, "rotary", rotary_by_place)],
    ),
    "rotary positions on the first stage only": Break(
        {**PP2, **ROTARY, "reset_position_ids": True},
        [(chunk.ModelChunk, "forward", positions_on_the_first_stage_only)],
    ),
    "two copies of a tied weight not summed": Break(PP2, [(base, "start_all_reduce", not_started)]),
    "loss as a mean of means": Break(DP2, [(Trainer, "_counts", mean_of_means)]),
    "micro-batch means over the micro-batches of this rank": Break(
        {**DP2, "calculate_per_token_loss": False},
        [(Trainer, "_loss_grad", means_of_this_rank)],
    ),
    "valid tokens of this rank alone": Break(DP2, [(Trainer, "_counts", tokens_of_this_rank)]),
    "loss counted on each tensor rank": Break(TP2, [(Trainer, "_loss_part", loss_of_every_rank)]),
    "one rank reads one sample later": Break(
        DP2, [(run_layout, "sample_numbers", one_sample_later)]
    ),
    "gradients averaged over data ranks": Break(DP2, [(DDP, "_reduce", averaged)]),
    "gradients not summed over data ranks": Break(DP2, [(DDP, "_reduce", not_reduced)]),
    "gradients not reduce-scattered under ZeRO-1": Break(ZERO1, [(Zero1, "_reduce", not_reduced)]),
    "each rank updates the next one's range under ZeRO-1": Break(
        ZERO1, [(Zero1, "_range", range_of_the_next_rank)]
    ),
    "decay's border not moved with the range under ZeRO-1": Break(
        ZERO1, [(OptimizerShard, "stretches", decay_ends_where_the_buckets_does)]
    ),
    "updated weights not gathered under ZeRO-1": Break(ZERO1, [(Zero1, "_share_weights", nothing)]),
    "norm of the first data rank's ranges alone under ZeRO-1": Break(
        ZERO1, [(DataParallel, "norm_parts", counted_on_the_first_of("data"))]
    ),
    "replicated weights count on each tensor rank": Break(
        {**TP2, **UNTIED}, [(DataParallel, "_counted", counted_everywhere)]
    ),
    "sharded weights of other tensor ranks left out of the norm": Break(
        TP2, [(DataParallel, "norm_parts", counted_on_the_first_of("tp"))]
    ),
    "a tied weight counts twice in the norm": Break(
        PP2, [(DataParallel, "_counted", copies_of_a_tied_weight_count)]
    ),
    "weights of other stages left out of the norm": Break(
        PP2, [(DataParallel, "norm_parts", counted_on_the_first_of("pp"))]
    ),
}

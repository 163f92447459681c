"""Breaks of shared sequences, of what attention sees, of its norms and sinks, and of the loss in pieces."""

from dataclasses import replace

import numpy as np
import torch

from megascratch.data.samples.batch import Batch
from megascratch.layers import attention, chunked_loss, context, dropout, wide_norm
from megascratch.layers import attention_pieces as pieces
from megascratch.layers.context_parallel import gathered, heads, ring
from megascratch.layers.kernels import attention as kernels
from megascratch.layers.kernels import plain_attention
from megascratch.model import chunk
from megascratch.parallel.exchanges import start_shift
from megascratch.training import trainer
from tests.support.breaks.replacing import (
    DOCUMENTS,
    DROPOUT,
    ROTARY,
    TP2,
    Break,
    after,
    not_started,
    own_part_repeated,
    own_value,
)

CP2 = {"context_parallel_size": 2}
RING4 = {"context_parallel_size": 4}
GATHERED = {**CP2, "cp_comm_type": "all_gather"}
HEADS = {**CP2, "cp_comm_type": "a2a"}
WINDOW = {"sliding_window": 5}
SINKS = {"softmax_type": "learnable"}
GROUPS = {"tensor_model_parallel_size": 4, "num_query_groups": 2}
# a bias of keys has no gradient without rotation, so that an RMSNorm says more
NORMS = {"qk_layernorm": True, "normalization": "RMSNorm"}
WIDE = {**NORMS, "qk_layernorm_over": "all_heads"}
PIECES = {"loss_chunk_rows": 3}

plain_cut = Batch.cut
plain_context = chunk.context_of
plain_attention_dropout = dropout.AttentionDropout.forward
plain_merge = plain_attention.merge
plain_backward = kernels.attend_backward
plain_blocks = ring._Blocks.__init__
plain_own_heads = heads._OwnHeads.__init__
plain_counts = trainer.Trainer._own_counts
plain_loss_part = trainer.Trainer._loss_part
plain_qk_norm = attention._qk_norm
plain_join = kernels.join_sinks
plain_seen = context.Shares.seen_from
plain_back = heads._OwnHeads.back


def local_angles(self, sample_cut, rank):
    """Rotary and learned positions count this rank's tokens."""
    cut = plain_cut(self, sample_cut, rank)
    return replace(cut, positions=torch.arange(cut.ids.shape[1]).expand(cut.ids.shape))


def labels_after_the_cut(self, sample_cut, rank):
    """The next token of the rank's own tokens."""
    cut = plain_cut(self, sample_cut, rank)
    return replace(cut, labels=torch.cat((cut.ids[:, 1:], cut.labels[:, -1:]), 1))


def labels_of_all_ranks(self, sample_cut, rank):
    """Each rank learns the labels of the first."""
    first = plain_cut(self, sample_cut, 0)
    return replace(
        plain_cut(self, sample_cut, rank), loss_mask=first.loss_mask, labels=first.labels
    )


def second_chunk_is_not_mirrored(order, length, ranks, starts=None):
    chunks = np.arange(length).reshape(2 * ranks, -1)
    return np.stack([np.concatenate((chunks[r], chunks[ranks - 1 - r])) for r in range(ranks)])


def local_positions(batch):
    """Dropout and masks by a token's place on its rank."""
    found = plain_context(batch)
    places = torch.arange(batch.ids.shape[1])
    return replace(found, sample_positions=places)


def local_length(self, x, context, visible=None, first_head=None):
    """Keys are counted in the rank's own length."""
    own = replace(context, sample_length=context.visible.queries.shape[0])
    return plain_attention_dropout(self, x, own, visible, first_head)


def counted_on_every_rank(self, batches):
    return plain_counts(self, batches) * self.mesh.cp.size


def loss_of_the_first_rank(self, losses):
    return plain_loss_part(self, losses) * (self.mesh.cp.rank == 0)


def merged_without_scale(out, lse, other_out, other_lse):
    _, both = plain_merge(out, lse, other_out, other_lse)
    return out + other_out, both


def empty_rows_say_zero(out, lse, other_out, other_lse):
    """As torch's kernel says of a row that sees nothing."""
    return plain_merge(out, lse.masked_fill(lse == -torch.inf, 0), other_out, other_lse)


def lse_of_the_block(grad, q, k, v, out, lse, visible, scores):
    _, own = kernels.attend_forward(q, k, v, visible, scores)
    return plain_backward(grad, q, k, v, out, own, visible, scores)


def one_shift_short(x, axis, by=1):
    return start_shift(x, axis, 1 if by > 0 else by + 1)


def ends_early(self, shares, window, axis):
    plain_blocks(self, shares, window, axis)
    self.steps = max(1, self.steps - 1)
    self.visible = self.visible[: self.steps]


def window_forgets_other_chunks(self, shares, window, axis):
    plain_blocks(self, shares, window, axis)
    if window is not None:
        self.visible[1:] = [None] * (self.steps - 1)


def triangle_by_place(span, keys):
    """Queries see as many keys as they have places before them on this rank."""
    first = int(np.searchsorted(keys, span.start))
    return pieces.QueryRun(
        span.queries, (pieces.Piece(span.queries, slice(first, span.place + 1), "whole"),)
    )


def document_edge_is_open(self, sample_cut_rank, keys, window):
    found = plain_seen(self, sample_cut_rank, keys, window)
    if found.starts is None or found.on_host is None:
        return found
    on_host = replace(found.on_host, starts=np.maximum(found.on_host.starts - 1, 0))
    return replace(found, starts=(found.starts - 1).clamp_min(0), on_host=on_host, _windowed={})


def heads_in_turn(x, copies):
    """Copies of key/value heads follow each other as a whole, not each head by itself."""
    return x if copies == 1 else x.repeat(1, copies, 1, 1)


def sinks_of_the_first_heads(self, q, k, v, sinks, scores, axis, order):
    plain_own_heads(self, q, k, v, sinks, scores, axis, order)
    if sinks is not None:
        self.sinks = sinks[: self.q.shape[1]]


def first_head_is_zero(self, q, k, v, sinks, scores, axis, order):
    plain_own_heads(self, q, k, v, sinks, scores, axis, order)
    self.scores = self.scores._replace(first_head=0)


def tokens_in_rank_order(self, out):
    """What comes back is not put in the order of the ranks' tokens."""
    self.order = torch.arange(len(self.order))
    return plain_back(self, out)


def no_sum_over_tp(spec, heads, tp):
    norm = plain_qk_norm(spec, heads, tp)
    if norm is not None:
        norm.shards = {name: replace(shard, grad_sum=()) for name, shard in norm.shards.items()}
    return norm


BREAKS: dict[str, Break] = {
    "angles by a token's place on its rank": Break(
        {**GATHERED, **ROTARY}, [(Batch, "cut", local_angles)]
    ),
    "learned positions by a token's place on its rank": Break(CP2, [(Batch, "cut", local_angles)]),
    "labels shifted after the cut": Break(CP2, [(Batch, "cut", labels_after_the_cut)]),
    "each context rank learns the first one's labels": Break(
        CP2, [(Batch, "cut", labels_of_all_ranks)]
    ),
    "second chunk of a rank is not mirrored": Break(
        CP2, [(trainer, "positions_of_ranks", second_chunk_is_not_mirrored)]
    ),
    "hidden dropout by a token's place on its rank": Break(
        {**CP2, "hidden_dropout": 0.3}, [(chunk, "context_of", local_positions)]
    ),
    "attention dropout by the rank's own length": Break(
        {**CP2, "attention_dropout": 0.3},
        [(dropout.AttentionDropout, "forward", local_length)],
    ),
    "tokens counted once on each context rank": Break(
        CP2, [(trainer.Trainer, "_own_counts", counted_on_every_rank)]
    ),
    "loss of the first context rank alone": Break(
        CP2, [(trainer.Trainer, "_loss_part", loss_of_the_first_rank)]
    ),
    "keys gathered in the order of the ranks": Break(
        {**GATHERED}, [(context.Shares, "in_order", property(lambda self: torch.arange(16)))]
    ),
    "gathered keys are this rank's own": Break(
        GATHERED, [(gathered, "all_gather", own_part_repeated)]
    ),
    "gradients of gathered keys not summed": Break(
        GATHERED,
        [(gathered, "reduce_scatter", lambda x, axis: x.chunk(axis.size)[axis.rank])],
    ),
    "parts of the keys merged without their sums": Break(
        CP2, [(ring, "merge", merged_without_scale)]
    ),
    "a row without keys has a sum": Break(CP2, [(ring, "merge", empty_rows_say_zero)]),
    "backward with the sums of the block": Break(
        CP2, [(ring, "attend_backward", lse_of_the_block)]
    ),
    "gradients of keys one rank short of home": Break(
        {**RING4, **WINDOW}, [(ring, "start_shift", one_shift_short)]
    ),
    "a ring ends one rank early": Break(RING4, [(ring._Blocks, "__init__", ends_early)]),
    "a window ends at the edge of a rank's chunk": Break(
        {**CP2, **WINDOW}, [(ring._Blocks, "__init__", window_forgets_other_chunks)]
    ),
    "causal by a token's place on its rank": Break(
        {**CP2, "context_parallel_order": "contiguous"},
        [(pieces, "_run", triangle_by_place)],
    ),
    "a document sees the end of the one before it": Break(
        {**CP2, **DOCUMENTS}, [(context.Shares, "seen_from", document_edge_is_open)]
    ),
    "copies of key/value heads in turn": Break(
        {**HEADS, "context_parallel_size": 4, "num_query_groups": 2},
        [(heads, "_copied", heads_in_turn)],
    ),
    "exchanged tokens come back in another order": Break(
        {**HEADS, "context_parallel_order": "zigzag"},
        [(heads._OwnHeads, "back", tokens_in_rank_order)],
    ),
    "sinks of the first heads on every rank": Break(
        {**HEADS, **SINKS}, [(heads._OwnHeads, "__init__", sinks_of_the_first_heads)]
    ),
    "attention dropout of the first heads on every rank": Break(
        {**HEADS, **DROPOUT}, [(heads._OwnHeads, "__init__", first_head_is_zero)]
    ),
    "exchanged heads are this rank's own": Break(HEADS, [(heads, "all_to_all", own_value)]),
    "sinks join a ring as zeros": Break(
        {**CP2, **SINKS},
        [(ring, "join_sinks", lambda out, lse, sinks: plain_join(out, lse, sinks * 0))],
    ),
    "norm over a head not summed over tp": Break(
        {**TP2, **NORMS}, [(attention, "_qk_norm", no_sum_over_tp)]
    ),
    "norm over all heads by those of the rank": Break(
        {**TP2, **WIDE}, [(wide_norm, "reduce_from", own_value)]
    ),
    "norm over all heads without the gradient of others": Break(
        {**TP2, **WIDE}, [(wide_norm, "copy_to", own_value)]
    ),
    "copies of a head count several times in its norm": Break(
        {**GROUPS, **WIDE},
        [
            (
                wide_norm.WideNorm,
                "__init__",
                after(wide_norm.WideNorm.__init__, lambda self: setattr(self, "copies", 1)),
            )
        ],
    ),
    "loss in pieces: each rank's own peak and sums": Break(
        {**TP2, **PIECES}, [(chunked_loss, "all_reduce", own_value)]
    ),
    "loss in pieces: gradient of its input not summed": Break(
        {**TP2, **PIECES},
        [(chunked_loss, "start_all_reduce", not_started)],
    ),
}

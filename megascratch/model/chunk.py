"""The Transformer as a list of layers; a `ModelChunk` is the slice of it that a pipeline stage holds.

    embedding  layers.0 .. layers.L-1  final_norm  head

Parameter names contain the global number of the layer, so they do not depend on the pipeline split. Model code does not
know the pipeline: a chunk maps (hidden states or None, batch) to hidden states or the sum of the loss.
"""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from megascratch.config.layers import RopeSpec, layers_of, norm_of
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedModel
from megascratch.config.settings import ParallelConfig
from megascratch.data.samples.batch import Batch
from megascratch.layers.attention_pieces import Positions
from megascratch.layers.chunked_loss import Logits, chunked_loss
from megascratch.layers.context import ForwardContext, Shares
from megascratch.layers.dropout import Dropout
from megascratch.layers.embedding import PositionEmbedding, VocabParallelEmbedding, vocab_shard
from megascratch.layers.linear import linear
from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.layers.norm import build_norm
from megascratch.layers.offload import HostMemory
from megascratch.layers.recompute import RecomputeUnit, units, with_recompute
from megascratch.layers.rotary import rotary_angles
from megascratch.layers.visible import Visible
from megascratch.model.block import Block
from megascratch.model.loss_terms import LANGUAGE_MODEL
from megascratch.parallel.axis import Axis
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.shard import Shard


class Embedding(nn.Module):
    """Token embedding, learned positions and dropout: [b, s] -> [s or s/tp, b, h]."""

    def __init__(self, model: ResolvedModel, seed: int, tp: Axis, sequence_parallel: bool):
        super().__init__()
        shard = vocab_shard(
            model.trained_vocab_rows,
            model.hidden_size,
            model.make_vocab_size_divisible_by,
            tp,
            model.init_method_std,
            "embedding",
        )
        self.word = VocabParallelEmbedding(shard, tp, sequence_parallel)
        self.scale = model.embedding_scale
        self.position = None
        if model.position_embedding_type == "learned_absolute":
            self.position = PositionEmbedding(
                model.max_position_embeddings,
                model.hidden_size,
                tp,
                model.init_method_std,
                sequence_parallel,
            )
        self.dropout = Dropout(model.hidden_dropout, seed, 0, tp, sequence_parallel)

    def forward(self, ids: Tensor, context: ForwardContext) -> Tensor:
        x = self.word(ids)  # [s or s/tp, b, h]
        if self.scale is not None:  # rounded to the type of the weights, as in Gemma
            x = x * torch.full((), self.scale, dtype=x.dtype, device=x.device)
        if self.position is not None:
            x = x + self.position(context.positions)
        return self.dropout(x, context)


class Head(nn.Module):
    """Hidden states -> logits over this rank's part of the vocabulary, or the sum of the loss.

    A tied head on the stage of the embedding gets that weight; on another stage it holds its own copy.
    """

    def __init__(
        self,
        model: ResolvedModel,
        tp: Axis,
        sequence_parallel: bool,
        embedding: nn.Parameter | None,
    ):
        super().__init__()
        self.tp = tp
        self.gather = sequence_parallel and tp.size > 1
        self.scale = model.logit_scale
        self.softcap = model.final_logit_softcapping
        self.chunk_rows: int | None = None
        shard = vocab_shard(
            model.trained_vocab_rows,
            model.hidden_size,
            model.make_vocab_size_divisible_by,
            tp,
            model.init_method_std,
            "head",
        )
        self.shards: dict[str, Shard] = {}
        if embedding is None:
            self.shards["weight"] = shard
            embedding = nn.Parameter(torch.empty(shard.local_shape(Layout(tp=tp.size))))
        self.weight = embedding
        rows = self.weight.shape[0]
        self.valid = max(0, min(rows, model.trained_vocab_rows - tp.rank * rows))

    def logits(
        self, x: Tensor
    ) -> Tensor:  # [s or s/tp, b, h] -> [s * b, v/tp], columns of padding included
        logits = linear(x.flatten(0, 1), self.weight, None, self.tp, self.gather)
        if self.scale is not None:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def flops(self) -> int:
        """Floating-point operations of the forward of one token on this rank, without those of padding."""
        return 2 * self.valid * self.weight.shape[1]

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """The sum of the losses of the tokens that are learned."""
        labels = batch.labels.t().flatten()  # [b, s] -> [s * b]
        loss_mask = batch.loss_mask
        if self.chunk_rows is not None:
            return self._in_chunks(x, labels, batch)
        losses = vocab_parallel_cross_entropy(self.logits(x), labels, self.valid, self.tp)
        return (losses * loss_mask.t().flatten()).sum()

    def _in_chunks(self, x: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        assert self.chunk_rows is not None
        weights = {} if batch.side_losses is None else batch.side_losses.weights
        return chunked_loss(
            x.flatten(0, 1),
            self.weight,
            labels,
            batch.loss_mask.t().flatten(),
            Logits(self.valid, self.scale, self.softcap),
            self.tp,
            rows=self.chunk_rows,
            gather=self.gather,
            expected=weights.get(LANGUAGE_MODEL) or 1.0,
        )


class ModelChunk(nn.Module):
    """Consecutive layers of the model.

    Args:
        layers: global numbers of the blocks.
        first: holds the embedding. last: holds the final norm and the head.
        sequence_parallel: activations between tensor-parallel pairs are split along the sequence.
    """

    def __init__(
        self,
        model: ResolvedModel,
        layers: range,
        first: bool,
        last: bool,
        tp: Axis,
        sequence_parallel: bool = False,
        seed: int = 1234,
        cp: ContextAxes | None = None,
    ):
        super().__init__()
        sequence_parallel = sequence_parallel and tp.size > 1
        self.model = model
        self.first = first
        self.last = last
        self.embedding = Embedding(model, seed, tp, sequence_parallel) if first else None
        self.layers = nn.ModuleDict()
        specs = layers_of(model)
        for layer in layers:
            self.layers[str(layer)] = Block(specs[layer], layer, seed, tp, sequence_parallel, cp)
        self.host = HostMemory()
        self.units = [RecomputeUnit(0, len(layers), False)]
        self.final_norm = None
        if last:
            self.final_norm = build_norm(norm_of(model), model.hidden_size, tp, sequence_parallel)
        shared = None
        if self.embedding is not None and not model.untie_embeddings_and_output_weights:
            shared = self.embedding.word.weight
        self.head = Head(model, tp, sequence_parallel, shared) if last else None

    def set_recompute(self, parallel: ParallelConfig) -> None:
        """Sets what backward computes again; the details of `recompute_granularity` must be derived."""
        if parallel.recompute_granularity == "full":
            assert parallel.recompute_num_layers is not None
            by_block = parallel.recompute_method == "block"
            self.units = units(len(self.layers), by_block, parallel.recompute_num_layers)
        selective = parallel.recompute_granularity == "selective"
        parts = parallel.recompute_modules or [] if selective else []
        for block in self.blocks():
            block.set_recompute(parts)
            block.set_offload(parallel.offload_modules or [], self.host)

    def set_loss_chunks(self, rows: int | None) -> None:
        """Computes logits and loss of so many tokens at once; None: of all."""
        if self.head is not None:
            self.head.chunk_rows = rows

    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.layers.values()))

    def parts(self) -> list[nn.Module]:
        """The modules that a forward calls in order; together they hold all parameters."""
        parts = (self.embedding, *self.layers.values(), self.final_norm, self.head)
        return [part for part in parts if part is not None]

    def forward(self, x: Tensor | None, batch: Batch) -> Tensor:
        """Maps the hidden states [s or s/tp, b, h] of the previous chunk (None for the first) to hidden states, in the
        last chunk to the sum of the loss over the valid tokens of the batch (a scalar, divided later: law 5)."""
        x = self.hidden(x, batch.ids, context_of(batch))
        return x if self.head is None else self.head(x, batch)

    def hidden(self, x: Tensor | None, ids: Tensor, context: ForwardContext) -> Tensor:
        """The forward without the head."""
        self.host.begin()
        context = replace(context, rotary=self.rotary(context))
        if self.embedding is not None:
            x = self.embedding(ids, context)
        assert x is not None
        blocks = self.blocks()
        for unit in self.units:
            through = partial(_through, blocks[unit.start : unit.stop])
            if unit.again and self.training:
                through = partial(with_recompute, through)
            x = through(x, context)
        return x if self.final_norm is None else self.final_norm(x)

    def next_logits(self, ids: Tensor, context: ForwardContext) -> Tensor:
        """Logits [b, v] after the last of `ids` [b, n], for a model that is one chunk on one rank."""
        assert self.head is not None
        x = self.hidden(None, ids, context)  # [n, b, h]
        logits = self.head.logits(x[-1:])  # [b, v], with padding
        return logits[:, : self.model.vocab_size]

    def new_cache(self) -> dict[int, Any]:
        """What each layer keeps of previous tokens, before the first of them; `next_logits` updates it."""
        cache = {}
        for layer, block in zip(self.layers, self.blocks(), strict=True):
            cache[int(layer)] = block.mixer.new_cache()
        return cache

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The kinds of rope of these layers."""
        kinds = dict.fromkeys(rope for block in self.blocks() for rope in block.mixer.ropes)
        return tuple(kinds)

    def rotary(self, context: ForwardContext) -> dict[RopeSpec, tuple[Tensor, Tensor]]:
        """The angles of a forward for every kind of rope of these layers, each computed once."""
        lengths = context.lengths or (context.sample_length,)
        angles: dict[RopeSpec, tuple[Tensor, Tensor]] = {}
        for rope in self.ropes:
            dtype = next(self.parameters()).dtype
            angles[rope] = rotary_angles(context.positions, rope, dtype, lengths)
        return angles


def _through(blocks: list[Block], x: Tensor, context: ForwardContext) -> Tensor:
    for block in blocks:
        x = block(x, context)
    return x


def context_of(batch: Batch) -> ForwardContext:
    """What the layers may know about the tokens of a batch."""
    places = batch.sample_positions
    all_starts = batch.document_starts
    starts = all_starts
    if all_starts is not None and not batch.in_order:
        starts = all_starts[:, places]  # [b, s] of this rank's tokens
    shares = None
    if batch.sample_cut is not None:
        shares = Shares(batch.sample_cut, places.device, all_starts)
    return ForwardContext(
        batch.samples,
        batch.positions,
        places,
        batch.sample_length,
        batch.real,
        Visible(places, places, starts, batch.in_order, on_host=_positions(batch)),
        shares=shares,
        side_losses=batch.side_losses,
    )


def _positions(batch: Batch) -> Positions | None:
    """The positions of the tokens and of their documents, in host memory."""
    places = batch.host_positions
    if places is None:
        return None
    starts = None if batch.host_starts is None else batch.host_starts[:, places]
    return Positions(places, places, starts)

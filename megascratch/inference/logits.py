"""Computes the logits of whole sequences at once, by the forward that training uses."""

import torch
from torch import Tensor

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.batch import collate
from megascratch.model.chunk import ModelChunk, context_of


@torch.inference_mode()
def whole_logits(model: ModelChunk, data: DataConfig, ids: Tensor, eod: int | None) -> Tensor:
    """The logits [b, s, v] of the token after each of `ids` int64 [b, s], without the columns of padding.

    Raises: UserError for no token, an id outside the vocabulary, or more tokens than the model has positions.
    """
    shape = model.model
    if ids.numel() == 0:
        raise UserError("there are no ids: give at least one")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= shape.vocab_size:
        wrong = low if low < 0 else high
        raise UserError(
            f"id {wrong} is outside the model's vocabulary (0 to {shape.vocab_size - 1})"
        )
    length = ids.shape[1]
    rows = [[*row, 0] for row in ids.tolist()]  # the last one is only a label
    batch = collate(
        [torch.tensor(row).numpy() for row in rows],
        range(len(rows)),
        length,
        eod,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
    )
    has_table = shape.position_embedding_type == "learned_absolute"
    if has_table and int(batch.positions.max()) >= shape.max_position_embeddings:
        raise UserError(
            f"the ids have {length} positions, the model has {shape.max_position_embeddings} "
            f"(max_position_embeddings): give at most {shape.max_position_embeddings} ids at once"
        )
    batch = batch.to(next(model.parameters()).device)
    hidden = model.hidden(None, batch.ids, context_of(batch))  # [s, b, h]
    assert model.head is not None
    logits = model.head.logits(hidden)[:, : shape.vocab_size]  # [s * b, v]
    return logits.view(length, len(rows), -1).transpose(0, 1)

"""Collates samples of token ids into a `Batch` of tensors: inputs, labels, loss mask, positions, document numbers.

Shapes: b micro-batch, s seq_length. A sample has s + 1 tokens (the last one is only a label); a shorter one is
padded with id 0 and loss mask 0. A negative token ~id is an input that is not to be learned as a label. A new document
begins after each end-of-document token, which itself belongs to the old document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megascratch.config.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    ids: Tensor
    """[b, s] int64 input tokens."""
    labels: Tensor
    """[b, s] int64 next tokens."""
    loss_mask: Tensor
    """[b, s] float32, 1 where the loss counts."""
    positions: Tensor
    """[b, s] int64."""
    documents: Tensor | None
    """[b, s] int64 number of the document inside the sample if attention stops at boundaries, else None."""
    samples: Tensor
    """[b] int64 global number of each sample (seeds dropout)."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            ids=self.ids.to(device),
            labels=self.labels.to(device),
            loss_mask=self.loss_mask.to(device),
            positions=self.positions.to(device),
            documents=None if self.documents is None else self.documents.to(device),
            samples=self.samples.to(device),
        )


def collate(
    samples: Sequence[np.ndarray],
    numbers: Sequence[int],
    seq_length: int,
    eod: int | None,
    *,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    eod_mask_loss: bool = False,
) -> Batch:
    """Stacks samples (each int64 [<= s + 1]) with their global numbers into a batch.

    Raises: UserError where document boundaries are needed and `eod` is None; ValueError for a sample that is too long.
    """
    if eod is None and (reset_position_ids or reset_attention_mask or eod_mask_loss):
        raise UserError(
            "--reset-position-ids, --reset-attention-mask and --eod-mask-loss need an end-of-document token, "
            "this tokenizer has none: train it with one, or remove the flags"
        )
    tokens, real, learned = _pad(samples, seq_length)  # [b, s + 1], [b, s], [b, s]
    ids = tokens[:, :-1]
    nowhere = np.zeros_like(ids, dtype=bool)
    boundary = nowhere if eod is None else (ids == eod) & real
    loss_mask = learned & ~boundary if eod_mask_loss else learned
    positions = _positions(boundary if reset_position_ids else nowhere)
    return Batch(
        ids=_tensor(ids),
        labels=_tensor(tokens[:, 1:]),
        loss_mask=_tensor(loss_mask.astype(np.float32)),
        positions=_tensor(positions),
        documents=_tensor(_documents(boundary)) if reset_attention_mask else None,
        samples=torch.tensor(list(numbers), dtype=torch.int64),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _pad(
    samples: Sequence[np.ndarray], seq_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [b, s + 1] and, for each of the s places, whether its label is a real token, and whether it is learned."""
    tokens = np.zeros((len(samples), seq_length + 1), dtype=np.int64)
    real = np.zeros((len(samples), seq_length), dtype=bool)
    for row, sample in enumerate(samples):
        if len(sample) > seq_length + 1:
            raise ValueError(
                f"sample has {len(sample)} tokens, seq_length {seq_length} takes at most {seq_length + 1}"
            )
        tokens[row, : len(sample)] = sample
        real[row, : max(len(sample) - 1, 0)] = True
    unlearned = tokens < 0  # complements, see loss_mask.py
    ids = np.where(unlearned, ~tokens, tokens)
    learned = real & ~unlearned[:, 1:]
    return ids, real, learned


def _documents(boundary: np.ndarray) -> np.ndarray:
    """[b, s]: number of boundaries before each place."""
    return np.cumsum(boundary, axis=1) - boundary


def _positions(boundary: np.ndarray) -> np.ndarray:
    """[b, s]: distance from the last boundary."""
    place = np.broadcast_to(np.arange(boundary.shape[1]), boundary.shape)
    after_boundary = np.where(boundary, place + 1, 0)
    starts = np.zeros(boundary.shape, dtype=np.int64)
    starts[:, 1:] = after_boundary[:, :-1]
    starts = np.maximum.accumulate(starts, axis=1)  # start of the document that each place is in
    return place - starts

"""Collates samples of token ids into a `Batch` of tensors: inputs, labels, loss mask, positions, document starts.

Shapes: b micro-batch, S seq_length, s the tokens of a sample that a batch has: here all S. A sample has S + 1 tokens
(the last one is only a label); a shorter one is padded with id 0 and loss mask 0. A negative token ~id is an input that
is not to be learned as a label. A new document begins after each end-of-document token, which itself belongs to the old
document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megascratch.config.errors import UserError
from megascratch.parallel.sample_cut import SampleCut
from megascratch.parallel.side_loss import SideLosses


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
    """[b, s] int64, for position tables and rotary angles."""
    real: Tensor
    """[b, s] bool, True where the input is a token of the sample and not padding."""
    samples: Tensor
    """[b] int64 global number of each sample (seeds dropout)."""
    sample_positions: Tensor
    """[s] int64 position of each token in the whole sample."""
    sample_length: int
    """S."""
    document_starts: Tensor | None
    """[b, S] int64 position in the sample at which the document of each token of the whole sample begins, if attention
    stops at boundaries; else None."""
    in_order: bool
    """Whether the tokens are the whole sample, at positions 0 ... S - 1."""
    sample_cut: SampleCut | None = None
    """Who has which tokens, where context ranks share each sample; else None."""
    host_positions: np.ndarray | None = None
    """`sample_positions` in host memory, wherever the batch is; None: not kept."""
    host_starts: np.ndarray | None = None
    """`document_starts` in host memory."""
    side_losses: SideLosses | None = None
    """The terms of the loss in the middle of the model; None if none is trained or measured."""

    def cut(self, sample_cut: SampleCut, rank: int) -> "Batch":
        """The tokens of one context rank, from a batch of whole samples."""
        mine = torch.from_numpy(sample_cut.positions[rank])
        return replace(
            self,
            ids=self.ids[:, mine],
            labels=self.labels[:, mine],
            loss_mask=self.loss_mask[:, mine],
            positions=self.positions[:, mine],
            real=self.real[:, mine],
            sample_positions=mine,
            host_positions=sample_cut.positions[rank],
            in_order=False,
            sample_cut=sample_cut,
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        starts = self.document_starts
        return replace(
            self,
            ids=self.ids.to(device),
            labels=self.labels.to(device),
            loss_mask=self.loss_mask.to(device),
            positions=self.positions.to(device),
            real=self.real.to(device),
            samples=self.samples.to(device),
            sample_positions=self.sample_positions.to(device),
            document_starts=None if starts is None else starts.to(device),
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
    tokens, real, learned = _pad(samples, seq_length)  # [b, S + 1], [b, S + 1], [b, S]
    ids = tokens[:, :-1]
    nowhere = np.zeros_like(ids, dtype=bool)
    boundary = nowhere if eod is None else (ids == eod) & real[:, 1:]
    loss_mask = learned & ~boundary if eod_mask_loss else learned
    place = np.arange(seq_length)
    document_starts = _starts(boundary) if reset_attention_mask else None
    positions = place - _starts(boundary if reset_position_ids else nowhere)
    return Batch(
        ids=_tensor(ids),
        labels=_tensor(tokens[:, 1:]),
        loss_mask=_tensor(loss_mask.astype(np.float32)),
        positions=_tensor(positions),
        real=_tensor(real[:, :-1]),
        samples=torch.tensor(list(numbers), dtype=torch.int64),
        sample_positions=_tensor(place),
        sample_length=seq_length,
        document_starts=None if document_starts is None else _tensor(document_starts),
        host_positions=place,
        host_starts=document_starts,
        in_order=True,
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _pad(
    samples: Sequence[np.ndarray], seq_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [b, S + 1], whether each is of the sample [b, S + 1], and whether each place learns its label [b, S]."""
    tokens = np.zeros((len(samples), seq_length + 1), dtype=np.int64)
    real = np.zeros(tokens.shape, dtype=bool)
    for row, sample in enumerate(samples):
        if len(sample) > seq_length + 1:
            raise ValueError(
                f"sample has {len(sample)} tokens, seq_length {seq_length} takes at most {seq_length + 1}"
            )
        tokens[row, : len(sample)] = sample
        real[row, : len(sample)] = True
    unlearned = tokens < 0  # complements, see loss_mask.py
    ids = np.where(unlearned, ~tokens, tokens)
    learned = (real & ~unlearned)[:, 1:]
    return ids, real, learned


def _starts(boundary: np.ndarray) -> np.ndarray:
    """[b, S]: the place where the document of each place begins, which is the one after the last boundary before it."""
    place = np.arange(boundary.shape[1])
    after_boundary = np.where(boundary, place + 1, 0)
    starts = np.zeros(boundary.shape, dtype=np.int64)
    starts[:, 1:] = after_boundary[:, :-1]
    return np.maximum.accumulate(starts, axis=1)

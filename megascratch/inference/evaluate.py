"""Evaluates a model on documents: the exact loss over every token of every document, and bits per byte of the text.

The documents form one stream, as in training: an end of document before the first and after each one. Every token
after the first end of document is predicted exactly once, ends of documents included. The sum of these losses in nats,
divided by ln 2 and by the UTF-8 bytes of the texts, is the length of a lossless code for them in bits per byte.
If the vocabulary has no end of document, the documents follow one another directly; the first token then has no context
and costs the uniform ln(vocabulary). The loss mask of training (--eod-mask-loss) is not applied.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.batch import Batch, collate
from megascratch.model.chunk import ModelChunk


@dataclass(frozen=True)
class DocumentLoss:
    """The loss over some documents."""

    nats: float  # summed over all tokens
    tokens: int  # that were predicted, ends of documents included
    documents: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes

    @property
    def per_token(self) -> float:
        return self.nats / self.tokens


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of the stream; the last `counted` of them are predicted here, the others are context."""

    start: int
    stop: int
    counted: int


def windows(length: int, seq_length: int, stride: int) -> list[Window]:
    """Cuts a stream so that each token but the first is counted once.

    A window has up to seq_length + 1 tokens and counts `stride` new ones (the first window all of its own), so a token
    has at least seq_length - stride + 1 tokens before it, unless the stream begins there.
    """
    cut = []
    done = 1  # tokens [1, done) are counted
    while done < length:
        new = min(length - done, seq_length if done == 1 else stride)
        stop = done + new
        cut.append(Window(max(0, stop - seq_length - 1), stop, new))
        done = stop
    return cut


def document_stream(documents: Sequence[Sequence[int]], eod: int | None) -> np.ndarray:
    """The tokens of all documents, int64; with `eod`, one before the first document and one after each."""
    ends = [] if eod is None else [eod]
    stream = [*ends]
    for document in documents:
        stream += [*document, *ends]
    return np.array(stream, dtype=np.int64)


@torch.inference_mode()
def evaluate_stream(
    model: ModelChunk,
    data: DataConfig,
    stream: np.ndarray,
    eod: int | None,
    *,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Loss in nats, summed over all tokens of a stream but the first.

    Args:
        stride: new tokens per window (default: seq_length, so that windows do not overlap).
        batch_size: windows per forward (default: as many as have 4,096 tokens together).
        progress: called with (batches done, batches) after each batch.

    Raises: UserError for a stride outside 1 ... seq_length, or a loss that is not finite.
    """
    seq_length = data.seq_length
    stride = seq_length if stride is None else stride
    if not 1 <= stride <= seq_length:
        raise UserError(
            f"--stride ({stride}) must be from 1 to the model's --seq-length ({seq_length})"
        )
    batch_size = batch_size or max(1, 4096 // seq_length)
    cut = windows(len(stream), seq_length, stride)
    device = next(model.parameters()).device
    nats = 0.0
    batches = range(0, len(cut), batch_size)
    for done, start in enumerate(batches, 1):
        batch = _batch(stream, cut[start : start + batch_size], data, eod)
        nats += model(None, batch.to(device)).item()
        if progress is not None:
            progress(done, len(batches))
    if not math.isfinite(nats):
        raise UserError(f"the loss is {nats}: the run diverged before it wrote this checkpoint")
    return nats


def _batch(stream: np.ndarray, cut: Sequence[Window], data: DataConfig, eod: int | None) -> Batch:
    """A batch of windows [b, s], with a loss mask that keeps only the counted tokens."""
    batch = collate(
        [stream[window.start : window.stop] for window in cut],
        range(len(cut)),
        data.seq_length,
        eod,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
    )
    mask = torch.zeros_like(batch.loss_mask)
    for row, window in enumerate(cut):
        predictions = window.stop - window.start - 1
        mask[row, predictions - window.counted : predictions] = 1
    return replace(batch, loss_mask=mask)


def evaluate_documents(
    model: ModelChunk,
    data: DataConfig,
    texts: Sequence[str],
    documents: Sequence[Sequence[int]],
    eod: int | None,
    *,
    ends: bool = True,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DocumentLoss:
    """The loss over documents, given as texts and as token ids. Other arguments as in `evaluate_stream`.

    Args:
        ends: whether the model was trained with ends of documents; if not, the stream has none.

    Raises: UserError as `evaluate_stream`, and if there is no text or the tokenizer gives no token for it.
    """
    text_bytes = sum(len(text.encode()) for text in texts)
    if text_bytes == 0:
        raise UserError("there is no text to evaluate on: every document is empty")
    if not any(documents):
        raise UserError(
            f"the tokenizer gives no token for {len(texts)} documents with {text_bytes:,} bytes: there is no loss to "
            "measure; look at the input, or at --tokenizer-model"
        )
    ends = ends and eod is not None
    stream = document_stream(documents, eod if ends else None)
    nats = evaluate_stream(
        model, data, stream, eod, stride=stride, batch_size=batch_size, progress=progress
    )
    if not ends:
        nats += math.log(model.model.vocab_size)
    return DocumentLoss(nats, len(stream) - ends, len(texts), text_bytes)

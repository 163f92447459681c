"""A loss term of the tests: a function of the hidden states after every second layer, with a count of its own."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megascratch.config.settings import Config
from megascratch.layers.context import own_tokens
from megascratch.model import build, loss_terms
from megascratch.model.chunk import ModelChunk
from megascratch.model.loss_terms import LossTerm
from megascratch.training.trainer import Trainer
from megascratch.verification import run_layout
from megascratch.verification.run_layout import RankTrace

NAME = "smooth"
COEFFICIENT = 0.3


def real_tokens(batch) -> Tensor:
    return batch.real.sum(dtype=torch.float64)


def smooth(model) -> tuple[LossTerm, ...]:
    """The one row."""
    return (LossTerm(NAME, COEFFICIENT, real_tokens),)


def roughness(x: Tensor, real: Tensor) -> Tensor:
    """Summed over the real tokens: x [s, b, h] and real [s, b]."""
    each = (x.cosh().log() * torch.arange(1, x.shape[2] + 1, device=x.device)).mean(2)
    return (each.float() if x.dtype != torch.float64 else each).mul(real).sum()


class Joins:
    """A hook that joins the term behind one layer."""

    def __init__(self, layer: int, tp, sequence_parallel: bool):
        self.layer = layer
        self.tp = tp
        self.sequence_parallel = sequence_parallel and tp.size > 1

    def __call__(self, block, args, x: Tensor) -> Tensor:
        _, context = args
        real = own_tokens(context.real.t(), self.tp, self.sequence_parallel)
        counts = self.sequence_parallel or self.tp.is_first
        total = roughness(x, real)
        return context.side_losses.join(x, total, NAME, self.layer, counts)


def chunk_with_joins(model, layers, first, last, tp, sequence_parallel, *rest) -> ModelChunk:
    chunk = ModelChunk(model, layers, first, last, tp, sequence_parallel, *rest)
    for number, block in chunk.layers.items():
        if int(number) % 2:
            block.register_forward_hook(Joins(int(number), tp, sequence_parallel))
    return chunk


class WithTerm(ExitStack):
    """In force: every trainer that is built has the term."""

    def __enter__(self) -> Any:
        super().__enter__()
        self.enter_context(patch.object(build, "ModelChunk", chunk_with_joins))
        rows = [*loss_terms.LOSS_TERMS, smooth]
        self.enter_context(patch.object(loss_terms, "LOSS_TERMS", rows))
        return self


def train_with_term(config: Config, steps: int) -> RankTrace:
    """On a rank: the run; its losses are the whole objective, both terms as they are reported."""
    reported = []
    plain = Trainer.train_step

    def noted(self, *args, **named):
        result = plain(self, *args, **named)
        reported.append(COEFFICIENT * result.side_terms[NAME].loss)
        return result

    with WithTerm(), patch.object(Trainer, "train_step", noted):
        run = run_layout.train_on_rank(config, steps)
    both = [loss + side for loss, side in zip(run.losses, reported, strict=True)]
    return run._replace(losses=both)

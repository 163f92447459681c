"""Describes which keys a query of attention may see: those of its own document, up to its own position.

A description is three short vectors. Only the attention core (`layers/kernels/attention.py`) makes a dense mask of it,
where a kernel needs one.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visible:
    """What the queries of one micro-batch may see."""

    queries: Tensor
    """[q] int64 position of each query in its sample."""
    keys: Tensor
    """[k] int64 position of each key in its sample."""
    starts: Tensor | None
    """[b, q] int64 position of the first token of each query's document; None: a sample is one document."""
    in_order: bool
    """Whether queries and keys are the same tokens, at positions 0 ... s - 1, so that a causal kernel may be used."""

    @property
    def is_causal(self) -> bool:
        """Whether a mask of the form of a triangle says all."""
        return self.in_order and self.starts is None

    @property
    def dense(self) -> Tensor:
        """[b, 1, q, k] bool, True where attention is allowed ([1, 1, q, k] without documents); made once. Compiled code
        makes it again in each layer, fused with its use."""
        return self._made() if torch.compiler.is_compiling() else self._kept

    @cached_property
    def _kept(self) -> Tensor:
        return self._made()

    def _made(self) -> Tensor:
        not_later = self.keys <= self.queries[:, None]  # [q, k]
        if self.starts is None:
            return not_later[None, None]
        same_document = self.keys >= self.starts[:, None, :, None]  # [b, 1, q, k]
        return same_document & not_later

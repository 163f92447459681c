"""Describes which keys a query of attention may see: those of its own document, up to its own position, and not
farther back than a window.

A description is three short vectors. Only the attention core (`layers/kernels/attention.py`) makes a dense mask of it,
where a kernel needs one.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from megascratch.layers.attention_pieces import Positions, QueryRun, RowBlock, row_blocks, runs_of

ALL = slice(None)


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
    window: int | None = None
    """Keys that a query sees at most, itself included."""
    on_host: Positions | None = field(default=None, compare=False, repr=False)
    """The same positions in host memory; None: they are copied when a kernel needs them."""
    _windowed: dict[int, "Visible"] = field(default_factory=dict, compare=False, repr=False)
    _of_last: dict[int, "Visible"] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def runs(self) -> list[list[QueryRun]] | None:
        """See `attention_pieces.runs_of`."""
        return runs_of(self._positions, self.window)

    @cached_property
    def row_blocks(self) -> list[RowBlock]:
        """See `attention_pieces.row_blocks`."""
        return row_blocks(self._positions, self.window)

    @property
    def _positions(self) -> Positions:
        if self.on_host is not None:
            return self.on_host
        starts = None if self.starts is None else self.starts.cpu().numpy()
        return Positions(self.queries.cpu().numpy(), self.keys.cpu().numpy(), starts)

    @property
    def is_causal(self) -> bool:
        """Whether a mask of the form of a triangle says all."""
        return self.in_order and self.starts is None and self.window is None

    def windowed(self, window: int | None) -> "Visible":
        """The same for a layer with a sliding window; kept, because many layers have the same."""
        if window is None:
            return self
        if window not in self._windowed:
            self._windowed[window] = replace(self, window=window, _windowed={}, _of_last={})
        return self._windowed[window]

    def of_last_keys(self, count: int) -> "Visible":
        """The same for a layer that has only the last `count` keys; kept as well."""
        if count == len(self.keys):
            return self
        if count not in self._of_last:
            self._of_last[count] = self.part(ALL, slice(-count, None))
        return self._of_last[count]

    def part(self, queries: slice, keys: slice, samples: slice = ALL) -> "Visible":
        """What neighbouring queries see of neighbouring keys, both by their place in the tensors."""
        starts = None if self.starts is None else self.starts[samples, queries]
        on_host = None if self.on_host is None else self.on_host.part(queries, keys, samples)
        return Visible(self.queries[queries], self.keys[keys], starts, False, self.window, on_host)

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
        if self.window is not None:
            not_later = not_later & (self.keys > self.queries[:, None] - self.window)
        if self.starts is None:
            return not_later[None, None]
        same_document = self.keys >= self.starts[:, None, :, None]  # [b, 1, q, k]
        return same_document & not_later

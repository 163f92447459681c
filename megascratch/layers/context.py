"""What all layers of one forward know about its tokens, in addition to their hidden states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megascratch.config.layers import RopeSpec
from megascratch.layers.attention_pieces import Positions
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis
from megascratch.parallel.sample_cut import SampleCut
from megascratch.parallel.side_loss import SideLosses


@dataclass(frozen=True)
class Shares:
    """Which tokens each context rank has of samples that the ranks share."""

    cut: SampleCut
    device: torch.device
    starts: Tensor | None
    """[b, S] int64 position at which the document of each token of the sample begins; None: one document."""

    @cached_property
    def in_order(self) -> Tensor:
        """[S] the place of each position among the tokens of all ranks, one rank after the other."""
        return self._on_device(self.cut.positions.ravel().argsort())

    @cached_property
    def all_tokens(self) -> Visible:
        """What all tokens of the samples see of each other, in the order of their positions."""
        places = np.arange(self.cut.positions.size)
        positions = Positions(places, places, self.cut.starts)
        on_device = self._on_device(places)
        return Visible(on_device, on_device, self.starts, True, on_host=positions)

    def seen_from(self, rank: int, keys: np.ndarray, window: int | None) -> Visible:
        """What the tokens of a rank see of keys at these positions."""
        queries = self.cut.positions[rank]
        starts = None if self.cut.starts is None else self.cut.starts[:, queries]
        visible = Visible(
            self._on_device(queries),
            self._on_device(keys),
            None if starts is None else self._on_device(starts),
            in_order=False,
            on_host=Positions(queries, keys, starts),
        )
        return visible.windowed(window)

    def _on_device(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def joined(self, size: int) -> "Shares":
        """The same where `size` neighbouring ranks bring their tokens together, in the order of their positions."""
        return replace(self, cut=self.cut.joined(size))


@dataclass(frozen=True)
class ForwardContext:
    """The tokens of one forward: b samples, of which this rank has s tokens each.

    A layer that must know where a token is reads it here. The place of a token in a tensor says nothing: a rank may
    hold any tokens of a sample, in any order.
    """

    samples: Tensor
    """[b] int64 global number of each sample, the key of dropout."""
    positions: Tensor
    """[b, s] int64 position that the position table and rotary angles read; may begin again at each document."""
    sample_positions: Tensor
    """[s] int64 position of each token in the whole sample."""
    sample_length: int
    """Tokens of the whole sample."""
    real: Tensor
    """[b, s] bool, False for padding."""
    visible: Visible
    """What each token may attend to."""
    rotary: Mapping[RopeSpec, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """For each kind of rope of the blocks: cos [s, b, 1, d] and sin [s, b, 1, d/2]."""
    cache: Mapping[int, Any] | None = None
    """By layer: what its mixer keeps of the previous tokens, as made by `Mixer.new_cache`; None: nothing is kept."""
    shares: Shares | None = None
    """Who has which tokens, where context ranks share each sample."""
    side_losses: SideLosses | None = None
    """Where a layer joins a side term to the loss; None where nothing is trained or measured."""
    lengths: Sequence[int] | None = None
    """Tokens of each sample so far, in generation; None: `sample_length` for all."""

    def with_last_keys(self, count: int) -> "ForwardContext":
        """The same for a layer that has only the last `count` keys of those that are visible."""
        return replace(self, visible=self.visible.of_last_keys(count))


def own_tokens(x: Tensor, tp: Axis, sequence_parallel: bool) -> Tensor:
    """The rows [s/tp, ...] of x [s, ...] whose hidden states this tensor rank has; without sequence parallelism all."""
    return x.chunk(tp.size)[tp.rank] if sequence_parallel else x

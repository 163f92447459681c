"""A block of the Transformer, built from its `LayerSpec`: two residual branches, the first with a mixer and the second
with a feed-forward. `MIXERS` and `FEED_FORWARDS` list the kinds there are.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from megascratch.config.errors import UserError
from megascratch.config.layers import LayerSpec, OwnSpec, SublayerSpec
from megascratch.config.registry import look_up
from megascratch.layers.attention import Attention
from megascratch.layers.context import ForwardContext
from megascratch.layers.dropout import Dropout
from megascratch.layers.gated_delta_net import GatedDeltaNet
from megascratch.layers.mlp import MLP
from megascratch.layers.norm import build_norm
from megascratch.layers.offload import HostMemory
from megascratch.layers.recompute import forgettable, with_recompute
from megascratch.layers.sublayer import Mixer, Sublayer, SublayerSite, require_shards
from megascratch.parallel.axis import Axis
from megascratch.parallel.context_axes import ContextAxes

S = TypeVar("S", bound=Sublayer)

MIXERS: dict[str, Callable[[Any, SublayerSite], Mixer]] = {
    "attention": Attention,
    "gated_delta_net": GatedDeltaNet,
}
FEED_FORWARDS: dict[str, Callable[[Any, SublayerSite], Sublayer]] = {"mlp": MLP}


def _mixer(spec: SublayerSpec, site: SublayerSite) -> Mixer:
    make = look_up("mixer", spec.kind, MIXERS)
    if isinstance(spec, OwnSpec):
        return _own(make, Mixer, spec, site)
    return make(spec, site)


def _feed_forward(spec: SublayerSpec, site: SublayerSite) -> Sublayer:
    make = look_up("feed_forward", spec.kind, FEED_FORWARDS)
    if isinstance(spec, OwnSpec):
        return _own(make, Sublayer, spec, site)
    return make(spec, site)


def _own(make: Callable[..., S], base: type, spec: OwnSpec, site: SublayerSite) -> S:
    """A sublayer that was registered. Raises: UserError if it is not a `base`, or a weight of it has no shard."""
    sublayer = make(spec.model, site, **dict(spec.options))
    if not isinstance(sublayer, base):
        raise UserError(
            f"{spec.kind} must be a subclass of megascratch.layers.sublayer.{base.__name__}"
        )
    require_shards(sublayer, spec.kind, site.tp)
    return sublayer


class Branch(NamedTuple):
    """``dropout(post(mix(pre(x))))``, which is added to x; a norm that is None is left out."""

    pre: nn.Module | None
    mix: Sublayer
    post: nn.Module | None
    dropout: Dropout


class Block(nn.Module):
    """x + branch(x), once with the mixer and once with the feed-forward, which reads the sum, or with `spec.parallel`
    the same x as the mixer.

    Its modules, and so its weights, are called norm1 and norm2 (before a sublayer), post_norm1 and post_norm2 (on what
    it returns), and by the kinds of its mixer and feed-forward: ``attention.qkv.weight``.

    Args:
        layer: global number of the block.
        sequence_parallel: the residual stream is split along the sequence over tp.
        cp: the ranks that share each sequence; default: this one has whole samples.
    """

    def __init__(
        self,
        spec: LayerSpec,
        layer: int,
        seed: int,
        tp: Axis,
        sequence_parallel: bool,
        cp: ContextAxes | None = None,
    ):
        super().__init__()
        site = SublayerSite(
            layer,
            spec.hidden_size,
            spec.std,
            spec.output_std,
            seed,
            tp,
            sequence_parallel,
            cp or ContextAxes.alone(),
        )

        def norm_at(*placements: str) -> nn.Module | None:
            if spec.placement not in placements:
                return None
            return build_norm(spec.norm, spec.hidden_size, tp, sequence_parallel)

        self.norm1 = norm_at("pre", "both")
        self.norm2 = norm_at("pre", "both")
        self.post_norm1 = norm_at("post", "both")
        self.post_norm2 = norm_at("post", "both")
        mixer = _mixer(spec.mixer, site)
        feed_forward = _feed_forward(spec.feed_forward, site)
        self.add_module(spec.mixer.kind, mixer)
        self.add_module(spec.feed_forward.kind, feed_forward)
        self.dropout1 = Dropout(spec.dropout, seed, 4 * layer + 5, tp, sequence_parallel)
        self.dropout2 = Dropout(spec.dropout, seed, 4 * layer + 6, tp, sequence_parallel)
        self.parallel = spec.parallel
        self.residual_scale = spec.residual_scale
        self.again: frozenset[str] = frozenset()
        self.away: frozenset[str] = frozenset()
        self.host = HostMemory()
        self.branches = (
            Branch(self.norm1, mixer, self.post_norm1, self.dropout1),
            Branch(self.norm2, feed_forward, self.post_norm2, self.dropout2),
        )

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        read = x
        for branch in self.branches:
            y = self._mixed(branch, read if self.parallel else x, context)
            if branch.post is not None:
                y = branch.post(y)
            y = branch.dropout(y, context)
            if self.residual_scale is not None:
                y = y * self.residual_scale
            x = x + y
        return x

    def _mixed(self, branch: Branch, x: Tensor, context: ForwardContext) -> Tensor:
        """``mix(pre(x))``; keeps for backward what `set_recompute` says."""
        again = self.again if self.training else frozenset()
        away = self.away if self.training else frozenset()
        y = x
        if branch.pre is not None:
            if "layernorm" in again:
                y = forgettable(branch.pre, x)
            elif "layernorm" in away:
                y = self.host.keeping(branch.pre, x)
            else:
                y = branch.pre(x)
        is_feed_forward = branch is self.branches[1]
        if "mlp" in again and is_feed_forward:
            return with_recompute(branch.mix, y, context)
        if "mlp" in away and is_feed_forward:
            return self.host.keeping(branch.mix, y, context)
        return branch.mix(y, context)

    @property
    def mixer(self) -> Mixer:
        return cast(Mixer, self.branches[0].mix)

    def set_recompute(self, parts: Collection[str]) -> None:
        """The parts that backward computes again: core_attn, layernorm, mlp (the feed-forward, of any kind), and
        activation (of an MLP, between its two products)."""
        self.again = frozenset(parts)
        for branch in self.branches:
            branch.mix.set_recompute("core_attn" in parts)
            if isinstance(branch.mix, MLP):
                branch.mix.recompute_activation = "activation" in parts

    def set_offload(self, parts: Collection[str], host: HostMemory) -> None:
        """The parts whose activations wait for backward in host memory: core_attn, layernorm, mlp."""
        self.away = frozenset(parts)
        self.host = host
        if isinstance(self.mixer, Attention):
            self.mixer.host = host if "core_attn" in parts else None

    def flops(self, seq_length: int) -> int:
        """Floating-point operations of the forward of one token, without norms and sums."""
        return sum(branch.mix.flops(seq_length) for branch in self.branches)


def block_of_each_kind(
    specs: Iterable[LayerSpec], tp: Axis, sequence_parallel: bool
) -> dict[LayerSpec, Block]:
    """For each different spec, in the order of the first layers, one block without memory (on the meta device)."""
    blocks: dict[LayerSpec, Block] = {}
    with torch.device("meta"):
        for spec in dict.fromkeys(specs):
            blocks[spec] = Block(spec, 0, 0, tp, sequence_parallel)
    return blocks

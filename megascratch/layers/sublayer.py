"""What every sublayer of a block has in common: where it is built, and what the block and the model ask of it.

A mixer looks across the tokens of a sample (attention); a feed-forward computes from each token alone (MLP).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from megascratch.config.errors import UserError
from megascratch.config.layers import RopeSpec
from megascratch.config.layout import Layout
from megascratch.layers.context import ForwardContext
from megascratch.parallel.axis import Axis
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.shard import Shard


@dataclass(frozen=True)
class SublayerSite:
    """Where a sublayer is built: what it needs in addition to its spec."""

    layer: int  # global number of its block: the key of its dropout and of its cache
    hidden_size: int
    std: float  # of initial weights that read the residual stream
    output_std: float  # of initial weights that write to it
    seed: int
    tp: Axis
    sequence_parallel: bool  # the residual stream is split along the sequence over tp
    cp: ContextAxes = field(default_factory=ContextAxes.alone)  # the ranks that share each sequence


class Sublayer(nn.Module, ABC):
    """Maps [s or s/tp, b, h] to what is added to it. Is built as ``KIND(spec, site)``."""

    @abstractmethod
    def forward(self, x: Tensor, context: ForwardContext) -> Tensor: ...

    def set_recompute(self, core: bool) -> None:
        """Whether backward computes the part again that keeps the most memory for its weights (selective
        recomputation). A sublayer without such a part has nothing to set."""

    def flops(self, seq_length: int) -> int:
        """Floating-point operations of the forward of one token in a sample of that length: 2 per weight of every
        matrix product. A sublayer that multiplies activations with each other adds those."""
        return 2 * sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)


def require_shards(module: nn.Module, part: str, tp: Axis) -> None:
    """Raises: UserError for a weight that says nothing of its place in the whole tensor, or has another shape than it
    says.

    Args:
        part: what the module is, for a message: 'the norm ScaleNorm'.
    """
    for prefix, child in module.named_modules():
        shards = getattr(child, "shards", {})
        for name, weight in child.named_parameters(recurse=False):
            where = f"{prefix}.{name}" if prefix else name
            shape = tuple(weight.shape)
            if name not in shards:
                raise UserError(
                    f"{part}: the weight {where} {list(shape)} has no Shard, so no rank knows its part of it: "
                    f'if each has all of it, set self.shards["{name}"] = Shard({shape}, grad_sum=...)'
                )
            wanted = _local_shape(shards[name], tp)
            if wanted is not None and shape != wanted:
                raise UserError(
                    f"{part}: the weight {where} is {list(shape)} on each of {tp.size} tensor ranks, its Shard is of "
                    f"{list(shards[name].shape)} as a whole and {list(wanted)} on each rank: give it "
                    "shard.local_shape(Layout(tp=tp.size))"
                )


def _local_shape(shard: Shard, tp: Axis) -> tuple[int, ...] | None:
    """What a tensor rank has of a weight; None if that depends on other axes, too."""
    if any(cut.axis != "tp" for cut in shard.cuts):
        return None
    return shard.local_shape(Layout(tp=tp.size))


class Mixer(Sublayer):
    """A sublayer that looks across tokens: no token may see a later one, or one of another document."""

    ropes: tuple[RopeSpec, ...] = ()
    """The kinds of rotary angles that it reads from the context."""

    def new_cache(self) -> Any:
        """What it keeps of previous tokens in generation, before the first of them. Forward finds it in
        ``context.cache[layer]`` and updates it. None: it keeps nothing."""
        return None

"""Attention of ranks that share each sequence: chooses how they see each other's keys and values.

Every core is a function of (q, k, v, sinks, context, window, scores, cp), with q [b, n, s, d] and k and v [b, g, s, d]
of this rank's tokens, that returns [b, n, s, d]. All ranks of `cp.axis` call it in the same order.
"""

from collections.abc import Callable

from torch import Tensor

from megascratch.layers.context_parallel.gathered import gathered
from megascratch.layers.context_parallel.heads import heads_and_ring, heads_for_tokens
from megascratch.layers.context_parallel.ring import ring

CORES: dict[str, Callable[..., Tensor]] = {
    "all_gather": gathered,
    "p2p": ring,
    "a2a": heads_for_tokens,
    "a2a+p2p": heads_and_ring,
}
"""cp_comm_type -> the core."""

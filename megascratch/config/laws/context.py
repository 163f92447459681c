"""The laws of context parallelism: how a sequence, and the heads, are divided among ranks."""

from collections.abc import Callable
from math import lcm, prod

from megascratch.config.remedies import Broken, Remedy, divisors_near, each, near_multiples


def sequence_over_context_ranks(
    seq_length: int,
    context_parallel_size: int,
    context_parallel_order: str,
    sequence_parallel: bool,
    tensor_model_parallel_size: int,
) -> Broken | None:
    """Each context rank has the same number of tokens, which sequence parallelism divides again."""
    cp = context_parallel_size
    if cp == 1:
        return None
    parts = cp if context_parallel_order == "contiguous" else 2 * cp
    words = f"{'' if parts == cp else '2 x '}context-parallel-size ({cp})"
    unit = parts
    if sequence_parallel and tensor_model_parallel_size > 1:
        unit = lcm(parts, cp * tensor_model_parallel_size)
        words += f", and by {cp} x tensor-model-parallel-size ({tensor_model_parallel_size}) with sequence-parallel"
    if seq_length % unit == 0:
        return None
    return Broken(
        f"seq-length ({seq_length}) must be divisible by {words}",
        [
            Remedy("seq_length", near_multiples(seq_length, unit)),
            Remedy("context_parallel_size", each(divisors_near(seq_length, cp))),
        ],
    )


def heads_over_context_ranks(
    num_attention_heads: int,
    num_query_groups: int,
    tensor_model_parallel_size: int,
    context_parallel_size: int,
    cp_comm_type: str,
    hierarchical_context_parallel_sizes: list[int] | None,
) -> Broken | None:
    """Ranks that exchange heads for tokens have the same number of query heads each, and whole key/value heads."""
    tp = tensor_model_parallel_size
    ranks = _exchanging(context_parallel_size, cp_comm_type, hierarchical_context_parallel_sizes)
    heads = num_attention_heads // tp
    groups = max(1, num_query_groups // tp)
    if num_attention_heads % tp or ranks == 1:
        return None
    if heads % ranks == 0 and (groups % ranks == 0 or ranks % groups == 0):
        return None
    name, number, share = "num-attention-heads", num_attention_heads, heads
    if heads % ranks == 0:
        name, number, share = "num-query-groups", num_query_groups, groups
    return Broken(
        f"{name} ({number}) over tensor-model-parallel-size ({tp}) is {share}, which the {ranks} context ranks that "
        f"exchange heads (cp-comm-type {cp_comm_type}) cannot share evenly",
        [
            Remedy("context_parallel_size", each(divisors_near(heads, context_parallel_size))),
            Remedy("num_attention_heads", near_multiples(num_attention_heads, tp * ranks)),
            Remedy("cp_comm_type", [["p2p"]]),
        ],
    )


def _exchanging(size: int, comm_type: str, hierarchy: list[int] | None) -> int:
    """The ranks that exchange heads for tokens."""
    if comm_type == "a2a":
        return size
    if comm_type == "a2a+p2p" and hierarchy:
        return max(1, hierarchy[0])
    return 1


def hierarchy_is_the_context_size(
    context_parallel_size: int,
    cp_comm_type: str,
    hierarchical_context_parallel_sizes: list[int] | None,
) -> str | None:
    """Two sizes whose product is the number of context ranks."""
    cp = context_parallel_size
    if cp == 1 or cp_comm_type != "a2a+p2p":
        return None
    sizes = hierarchical_context_parallel_sizes
    possible = [f"{heads} {cp // heads}" for heads in range(1, cp + 1) if cp % heads == 0]
    use = f"use {', '.join(possible[:-1])} or {possible[-1]}"
    if sizes is None:
        return (
            "cp-comm-type a2a+p2p needs hierarchical-context-parallel-sizes, the ranks that exchange heads and those "
            f"of the ring: {use}"
        )
    if len(sizes) != 2 or min(sizes) < 1 or prod(sizes) != cp:
        given = " ".join(map(str, sizes))
        return (
            f"hierarchical-context-parallel-sizes ({given}) must be two sizes whose product is context-parallel-size "
            f"({cp}): {use}"
        )
    return None


def every_mixer_shares_sequences(
    context_parallel_size: int, mixers: list[str] | None
) -> Broken | None:
    """Attention is the only mixer that sees tokens of other ranks."""
    others = sorted({name for name in mixers or [] if name != "attention"})
    if context_parallel_size == 1 or not others:
        return None
    return Broken(
        f"context-parallel-size ({context_parallel_size}) divides each sequence, which mixers {' '.join(others)} do "
        "not allow: their state would have to travel from rank to rank",
        [Remedy("context_parallel_size", [[1]])],
        "use attention in every layer",
    )


LAWS: list[Callable[..., str | Broken | None]] = [
    sequence_over_context_ranks,
    heads_over_context_ranks,
    hierarchy_is_the_context_size,
    every_mixer_shares_sequences,
]

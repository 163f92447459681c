"""The laws of Gated DeltaNet's heads."""

from collections.abc import Callable

from megascratch.config.remedies import Broken, Remedy, divisors_near, each, near_multiples

NAME = "gated_delta_net"


def linear_heads_over_tp(
    linear_num_key_heads: int, tensor_model_parallel_size: int, mixers: list[str] | None
) -> Broken | None:
    """Each tensor rank has the same number of key heads."""
    heads = linear_num_key_heads
    tp = tensor_model_parallel_size
    if NAME not in (mixers or []) or heads % tp == 0:
        return None
    return Broken(
        f"linear-num-key-heads ({heads}) must be divisible by tensor-model-parallel-size ({tp})",
        [
            Remedy("linear_num_key_heads", near_multiples(heads, tp)),
            Remedy("tensor_model_parallel_size", each(divisors_near(heads, tp))),
        ],
    )


def linear_value_heads_share_keys(
    linear_num_value_heads: int, linear_num_key_heads: int, mixers: list[str] | None
) -> Broken | None:
    """Each key head serves the same number of value heads."""
    if NAME not in (mixers or []) or linear_num_value_heads % linear_num_key_heads == 0:
        return None
    return Broken(
        f"linear-num-value-heads ({linear_num_value_heads}) must be divisible by linear-num-key-heads "
        f"({linear_num_key_heads})",
        [
            Remedy(
                "linear_num_value_heads",
                near_multiples(linear_num_value_heads, linear_num_key_heads),
            ),
            Remedy(
                "linear_num_key_heads",
                each(divisors_near(linear_num_value_heads, linear_num_key_heads)),
            ),
        ],
    )


LAWS: list[Callable[..., str | Broken | None]] = [
    linear_heads_over_tp,
    linear_value_heads_share_keys,
]

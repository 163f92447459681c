"""The laws of the Transformer's shape; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.remedies import Broken, Remedy, divisors_near, each, near_multiples


def heads_share_the_width(
    hidden_size: int, num_attention_heads: int, kv_channels: int | None
) -> Broken | None:
    """If the width of a head is not given, it must come out as a whole number."""
    if kv_channels is not None or hidden_size % num_attention_heads == 0:
        return None
    return Broken(
        f"hidden-size ({hidden_size}) must be divisible by num-attention-heads ({num_attention_heads})",
        [
            Remedy("hidden_size", near_multiples(hidden_size, num_attention_heads)),
            Remedy("num_attention_heads", each(divisors_near(hidden_size, num_attention_heads))),
        ],
        "give kv-channels",
    )


def heads_share_the_query_groups(num_attention_heads: int, num_query_groups: int) -> Broken | None:
    """Each key/value head serves the same number of query heads."""
    if num_attention_heads % num_query_groups == 0:
        return None
    return Broken(
        f"num-attention-heads ({num_attention_heads}) must be divisible by num-query-groups ({num_query_groups})",
        [
            Remedy("num_query_groups", each(divisors_near(num_attention_heads, num_query_groups))),
            Remedy("num_attention_heads", near_multiples(num_attention_heads, num_query_groups)),
        ],
    )


def heads_over_tp(num_attention_heads: int, tensor_model_parallel_size: int) -> Broken | None:
    """Each tensor rank has the same number of query heads."""
    if num_attention_heads % tensor_model_parallel_size == 0:
        return None
    tp = tensor_model_parallel_size
    return Broken(
        f"num-attention-heads ({num_attention_heads}) must be divisible by tensor-model-parallel-size ({tp})",
        [
            Remedy("tensor_model_parallel_size", each(divisors_near(num_attention_heads, tp))),
            Remedy("num_attention_heads", near_multiples(num_attention_heads, tp)),
        ],
    )


def query_groups_over_tp(
    num_query_groups: int, num_attention_heads: int, tensor_model_parallel_size: int
) -> Broken | None:
    """Each tensor rank has the same number of key/value heads, or each head is on the same number of ranks."""
    groups = num_query_groups
    tp = tensor_model_parallel_size
    if _one_divides_the_other(groups, tp) or groups == num_attention_heads:
        # the last is `heads_over_tp`
        return None
    sizes = [
        size
        for size in divisors_near(num_attention_heads, tp)
        if _one_divides_the_other(groups, size)
    ]
    counts = [
        count
        for count in divisors_near(num_attention_heads, groups)
        if _one_divides_the_other(count, tp)
    ]
    return Broken(
        f"num-query-groups ({groups}) and tensor-model-parallel-size ({tp}) do not fit: "
        "one must be divisible by the other",
        [
            Remedy("tensor_model_parallel_size", each(sizes)),
            Remedy("num_query_groups", each(counts)),
        ],
    )


def _one_divides_the_other(a: int, b: int) -> bool:
    return a % b == 0 or b % a == 0


def ffn_over_tp(ffn_hidden_size: int, tensor_model_parallel_size: int) -> Broken | None:
    """Each tensor rank has the same number of MLP columns."""
    if ffn_hidden_size % tensor_model_parallel_size == 0:
        return None
    tp = tensor_model_parallel_size
    return Broken(
        f"ffn-hidden-size ({ffn_hidden_size}) must be divisible by tensor-model-parallel-size ({tp})",
        [Remedy("ffn_hidden_size", near_multiples(ffn_hidden_size, tp))],
    )


def one_activation(
    swiglu: bool, squared_relu: bool, openai_gelu: bool, activation_function: str | None
) -> str | None:
    """The MLP has one non-linearity."""
    activations = {
        "swiglu": swiglu,
        "squared-relu": squared_relu,
        "openai-gelu": openai_gelu,
        f"activation-function {activation_function}": activation_function is not None,
    }
    given = [name for name, on in activations.items() if on]
    if len(given) > 1:
        return f"at most one of {', '.join(given)} can be the MLP's activation: choose one"
    return None


def positions_reach_the_end(
    max_position_embeddings: int, seq_length: int, position_embedding_type: str
) -> Broken | None:
    """A learned table needs a row for each position."""
    if position_embedding_type != "learned_absolute" or max_position_embeddings >= seq_length:
        return None
    return Broken(
        f"max-position-embeddings ({max_position_embeddings}) must be at least seq-length ({seq_length}) "
        "with learned positions",
        [Remedy("max_position_embeddings", [[seq_length]], " or more")],
    )


def rotated_part_is_even(
    kv_channels: int, rotary_percent: float, position_embedding_type: str
) -> Broken | None:
    """Rotary positions rotate pairs of channels."""
    rotated = int(kv_channels * rotary_percent)
    if position_embedding_type != "rope" or (rotated >= 2 and rotated % 2 == 0):
        return None
    return Broken(
        f"the rotated part of a head (kv-channels {kv_channels} x rotary-percent {rotary_percent} = {rotated}) "
        "must be even and at least 2",
        [Remedy("kv_channels", near_multiples(kv_channels, 1))],
        "use another rotary-percent",
    )


def padding_holds_the_vocabulary(
    padded_vocab_in_softmax: bool, padded_vocab_size: int | None, vocab_size: int | None
) -> Broken | None:
    """Every id has a row, also where the number of rows is given."""
    if not padded_vocab_in_softmax or padded_vocab_size is None or vocab_size is None:
        return None
    if padded_vocab_size >= vocab_size:
        return None
    return Broken(
        f"padded-vocab-size ({padded_vocab_size}) must be at least vocab-size ({vocab_size})",
        [Remedy("padded_vocab_size", [[vocab_size]], " or more")],
    )


LAWS: list[Callable[..., str | Broken | None]] = [
    heads_share_the_width,
    heads_share_the_query_groups,
    heads_over_tp,
    query_groups_over_tp,
    ffn_over_tp,
    one_activation,
    positions_reach_the_end,
    rotated_part_is_even,
    padding_holds_the_vocabulary,
]

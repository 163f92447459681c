"""Shrinks a user's config so that a layout that needs a cluster can be verified on a laptop. Everything that could
break the layout law is kept.

Kept: kinds of layers, dropout, ties, document settings, the layout, and every divisibility that a layout relies on
(heads, key/value heads and MLP over the tensor ranks, a vocabulary that is not divisible). Scaled: widths keep their
ratios, and initial weights keep the size of the activations.
"""

from collections.abc import Sequence
from math import gcd, lcm
from typing import Any

from megascratch.config.fields import RANGES
from megascratch.config.part_options import PartName, parameters_of
from megascratch.config.resolve import Values, derive
from megascratch.config.settings import OptimConfig, TrainingConfig

SMALL_HEAD = 8
SMALL_SEQUENCE = 16
SMALL_VOCABULARY = 48
MOST_HEADS = 16
GPT2_VOCABULARY = 50257
EPSILON = {"fp64": 1e-6, "fp32": 1e-3, "bf16": 1e-3, "fp16": 1e-3}
"""The least Adam epsilon by precision: above the rounding error of a gradient. Adam divides a gradient by its own size,
so a gradient that is zero except for rounding (of a key's bias) would otherwise move its weight by up to lr."""
LOSS_SCALE = {"initial_loss_scale": 2.0**12, "loss_scale_window": 2}
"""A dynamic loss scale that grows within the few steps of a verification, and stays below scales that overflow in one
run and not in another."""


EOD = 3  # the token that ends a document in synthetic samples


def for_proof(settings: Values, steps: int, precision: str) -> dict[str, Any]:
    """The settings in the given precision, without what only a real run needs: files, ramp-ups, checkpoints."""
    data = dict.fromkeys(
        (
            "data_path",
            "train_data_path",
            "valid_data_path",
            "test_data_path",
            "data_stages",
            "split",
        )
    )
    plain: dict[str, Any] = {}  # settings that get their default
    for name, default in vars(OptimConfig()).items():
        if name.startswith("lr_") or name in _LOSS_SCALING:
            plain[name] = default
    for name in _REAL_RUN:
        plain[name] = getattr(TrainingConfig(), name)
    if precision == "fp16":
        plain |= LOSS_SCALE
    precisions = {name: precision == name for name in ("fp64", "bf16", "fp16")}
    proof = {
        "mock_data": True,
        "data_cache_path": None,
        "distributed_backend": None,
        "tokenizer_type": None,
        "tokenizer_model": None,
        "vocab_file": None,
        "fim_rate": 0.0,  # samples are drawn, not read
        "merge_file": None,
        "lr_decay_style": "constant",
        "min_lr": 0.0,
        "train_iters": steps,
        "optimizer_options": _of_the_optimizer(settings),
        "adam_eps": max(settings["adam_eps"], EPSILON[precision]),
        "vocab_size": settings["vocab_size"] or GPT2_VOCABULARY,
    }
    return {**settings, **data, **plain, **precisions, **proof}


def _of_the_optimizer(settings: Values) -> list[str] | None:
    """The options without those of the learning-rate curve, which is replaced by a constant rate."""
    part = PartName("optimizer", settings["optimizer"])
    known = {parameter.name for parameter in parameters_of(part)}
    given = settings["optimizer_options"]
    return [text for text in given if text.partition("=")[0] in known] if given else None


_LOSS_SCALING = (
    "loss_scale",
    "initial_loss_scale",
    "min_loss_scale",
    "loss_scale_window",
    "hysteresis",
)
_REAL_RUN = (
    "rampup_batch_size",
    "step_batch_size_schedule",
    "train_samples",
    "load",
    "save",
    "compile",
    "eval_interval",
    "save_interval",
)


def shrunk(settings: Values, most_tensor_ranks: int, most_context_ranks: int = 1) -> Values:
    """Settings of a small model. Every tensor-parallel size up to `most_tensor_ranks` that was legal stays legal, and
    every context-parallel size up to `most_context_ranks`. Where these exchange heads, both numbers count together:
    see `ranks_of_heads`.

    Settings of which one is outside its own range are returned unchanged: `validate` reports them.
    """
    now = derive(settings, 1)
    if any(now[name] is None or now[name] not in RANGES[name] for name in _READ):
        return settings
    if any(now[name] is not None and now[name] not in RANGES[name] for name in _LENGTHS):
        return settings
    tensor_ranks = _tensor_ranks(
        now["num_attention_heads"], now["num_query_groups"], most_tensor_ranks
    )

    heads, groups = _small_heads(
        now["num_attention_heads"], now["num_query_groups"], most_tensor_ranks
    )
    width = _small_width(now["kv_channels"], now["rotary_percent"])
    all_heads = now["num_attention_heads"] * now["kv_channels"]
    hidden = _scaled(heads * width, now["hidden_size"], all_heads, multiple=2)
    ffn_multiple = gcd(now["ffn_hidden_size"], lcm(*tensor_ranks))
    narrower = max(1.0, now["hidden_size"] / hidden)

    seq_length = _small_sequence(now["seq_length"], tensor_ranks, most_context_ranks)
    more_positions = now["max_position_embeddings"] - now["seq_length"]
    vocab_unit = now["make_vocab_size_divisible_by"]
    small_vocab_unit = min(vocab_unit, 4)
    lengths = {name: _scaled_length(now[name], now["seq_length"], seq_length) for name in _LENGTHS}
    frequencies = int(width * now["rotary_percent"]) // 2
    factors = {name: _picked(now[name], frequencies) for name in _BY_FREQUENCY}
    return {
        **settings,
        **lengths,
        **factors,
        **_small_linear_heads(now, most_tensor_ranks),
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": width,
        "hidden_size": hidden,
        "ffn_hidden_size": _scaled(
            hidden, now["ffn_hidden_size"], now["hidden_size"], ffn_multiple
        ),
        "init_method_std": now["init_method_std"] * narrower**0.5,
        "seq_length": seq_length,
        "max_position_embeddings": seq_length + min(more_positions, 8),
        "make_vocab_size_divisible_by": small_vocab_unit,
        "padded_vocab_size": None,
        "vocab_size": _small_vocabulary(
            now["vocab_size"], tensor_ranks, small_vocab_unit, vocab_unit
        ),
    }


_READ = (
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "hidden_size",
    "ffn_hidden_size",
    "seq_length",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    "vocab_size",
    "rotary_percent",
)

_LENGTHS = ("sliding_window", "rope_original_max_position_embeddings")
"""Settings that are a number of tokens, or none."""
_BY_FREQUENCY = ("rope_short_factors", "rope_long_factors")
"""Settings with a number for every two dims that rotate, or none."""


def _scaled_length(length: int | None, whole: int, small: int) -> int | None:
    """A number of tokens that is below the sequence if it was, by the same ratio."""
    if length is None:
        return None
    if length >= whole:
        return small
    least = min(length, 2)
    return max(least, min(small - 1, round(length * small / whole)))


def _picked(numbers: list[float] | None, count: int) -> list[float] | None:
    """So many of the numbers, evenly spread; all if there are no more."""
    if not numbers or len(numbers) <= count:
        return numbers
    return [numbers[place * len(numbers) // count] for place in range(count)]


def _small_heads(heads: int, groups: int, most: int) -> tuple[int, int]:
    """The smallest (query heads, key/value heads) of the same kind (MHA, MQA or GQA) that can be split over the same
    numbers of tensor ranks; with the same ratio if that is small enough."""
    tensor_ranks = _tensor_ranks(heads, groups, most)

    def is_same_kind(h: int, g: int) -> bool:
        is_mha = groups == heads
        is_mqa = groups == 1
        return (g == h) == is_mha and (g == 1) == is_mqa

    def is_alike_on(tp: int, h: int, g: int) -> bool:
        ranks_share_groups = tp > groups
        return _heads_cut(h, g, tp) and (tp > g) == ranks_share_groups

    candidates = []
    for h in range(min(heads, 2), min(heads, 2 * max(MOST_HEADS, most) + 1)):
        for g in range(1, min(h, groups) + 1):
            if (
                h % g == 0
                and is_same_kind(h, g)
                and all(is_alike_on(tp, h, g) for tp in tensor_ranks)
            ):
                candidates.append((h, g))
    for h, g in candidates:
        if h * groups == g * heads and h <= MOST_HEADS:
            return h, g
    return candidates[0] if candidates else (heads, groups)


def _small_linear_heads(now: Values, most: int) -> dict[str, Any]:
    """As few and as narrow heads of Gated DeltaNet as the same tensor ranks can divide; keys and values stay of
    different widths if they were."""
    keys = now["linear_num_key_heads"]
    values = now["linear_num_value_heads"]
    if "gated_delta_net" not in (now["mixers"] or []) or keys < 1 or values % keys:
        return {}
    few = lcm(*(tp for tp in range(1, most + 1) if keys % tp == 0))
    same = now["linear_key_head_dim"] == now["linear_value_head_dim"]
    return {
        "linear_num_key_heads": min(keys, few),
        "linear_num_value_heads": min(keys, few) * min(values // keys, 2),
        "linear_key_head_dim": min(now["linear_key_head_dim"], 4),
        "linear_value_head_dim": min(now["linear_value_head_dim"], 4 if same else 6),
    }


def _tensor_ranks(heads: int, groups: int, most: int) -> list[int]:
    """The tensor-parallel sizes up to `most` over which the heads can be split."""
    return [tp for tp in range(1, most + 1) if _heads_cut(heads, groups, tp)]


def _heads_cut(heads: int, groups: int, tp: int) -> bool:
    """Whether the heads can be split over the tensor ranks; fewer key/value heads than ranks are shared by some."""
    groups_fit = groups % tp == 0 or tp % groups == 0 or groups == heads
    return heads % tp == 0 and groups_fit


def _small_width(width: int, rotary_percent: float) -> int:
    """A small width of one head. As in the original, RoPE rotates only part of it if `rotary_percent` says so."""
    for small in (SMALL_HEAD, 2 * SMALL_HEAD, 4 * SMALL_HEAD):
        rotated = int(small * rotary_percent)
        if small < width and rotated >= 2 and rotated % 2 == 0:
            return small
    return width


def _scaled(base: int, number: int, of: int, multiple: int) -> int:
    """base x number / of, rounded to a multiple of `multiple`."""
    return max(1, round(base * number / of / multiple)) * multiple


def ranks_of_heads(settings: Values) -> int:
    """The number of ranks over which the heads of a layer are divided."""
    ranks: int = settings["tensor_model_parallel_size"]
    if settings["cp_comm_type"] == "a2a":
        return ranks * settings["context_parallel_size"]
    if settings["cp_comm_type"] == "a2a+p2p" and settings["hierarchical_context_parallel_sizes"]:
        return ranks * settings["hierarchical_context_parallel_sizes"][0]
    return ranks


def _small_sequence(length: int, tensor_ranks: Sequence[int], most_context_ranks: int) -> int:
    """A small sequence length, divisible by every number of tensor and context ranks by which the original one is
    divisible."""
    numbers = set(tensor_ranks)
    for cp in range(2, most_context_ranks + 1):
        numbers |= {2 * cp} | {cp * tp for tp in tensor_ranks}
    unit = lcm(*(number for number in numbers if length % number == 0))
    return min(length, -(-SMALL_SEQUENCE // unit) * unit)


def _small_vocabulary(size: int, tensor_ranks: Sequence[int], small_unit: int, unit: int) -> int:
    """The smallest vocabulary that, padded or not, is divisible by the same numbers of tensor ranks as the original."""

    def pattern(vocabulary: int, by: int) -> list[tuple[bool, bool]]:
        """For each number of tensor ranks: whether it divides the vocabulary, and whether it needs no padding."""
        divides = []
        for tp in tensor_ranks:
            divides.append((vocabulary % tp == 0, vocabulary % (by * tp) == 0))
        return divides

    enough = max(SMALL_VOCABULARY, 2 * small_unit * max(tensor_ranks) - 3)
    wanted = pattern(size, unit)
    for small in range(enough, min(size, enough + 8 * lcm(*tensor_ranks))):
        if pattern(small, small_unit) == wanted:
            return small
    return size

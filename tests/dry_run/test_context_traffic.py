"""What ranks that share sequences send each other, by closed forms: of a small model with every way of sharing, and of
Llama 3 405B on 16,384 ranks in its stage for long samples (Grattafiori et al. 2024, arXiv 2407.21783, table 4)."""

from collections import Counter
from typing import NamedTuple

import pytest

from megascratch.config.fields import flat
from megascratch.config.load import load_config
from megascratch.config.resolve import Found, derive, resolve_derived
from megascratch.dry_run.memory import MemoryTracker
from tests.support.layout_runs import config_of
from tests.support.traffic import imagined_traffic

HALF, WIDE = 2, 4  # bytes of bf16, and of the sums of gradients that travel


class Shape(NamedTuple):
    """Attention of one rank."""

    layers: int  # of all micro-batches of a step
    tokens: int  # of a rank, in all samples of a micro-batch
    heads: int
    groups: int
    width: int

    @property
    def keys(self) -> int:
        """Elements of the keys and values of this rank's tokens."""
        return self.tokens * self.groups * 2 * self.width


def by_hand(kind: str, cp: int, heads: int, x: Shape) -> Counter:
    """(operation, axis) -> bytes in a step."""
    found: Counter = Counter()
    if kind == "all_gather":  # forward, and again in backward
        found["all_gather", "cp"] = 2 * x.layers * cp * x.keys * HALF
        found["reduce_scatter", "cp"] = x.layers * cp * x.keys * HALF
    elif (
        kind == "p2p"
    ):  # keys and values go around twice, the sums of their gradients once and then home
        found["shift", "cp"] = x.layers * x.keys * (2 * (cp - 1) * HALF + cp * WIDE)
    elif kind == "a2a":  # q, k, v and the output, and their gradients
        shared = max(x.groups, cp)
        each = x.tokens * (x.heads + 2 * shared + x.heads) * x.width
        found["all_to_all", "cp"] = 2 * x.layers * each * HALF
    else:
        ring = cp // heads
        shared = max(x.groups, heads)
        each = x.tokens * (x.heads + 2 * shared + x.heads) * x.width
        found["all_to_all", "cp_heads"] = 2 * x.layers * each * HALF
        group = x.tokens * shared * 2 * x.width  # of all tokens of the group, some of the heads
        found["shift", "cp_ring"] = x.layers * group * (2 * (ring - 1) * HALF + ring * WIDE)
    return found


def sent(communications) -> Counter:
    found: Counter = Counter()
    for each in communications:
        if each.axis.startswith("cp"):
            found[each.operation, each.axis] += each.nbytes
    return found


@pytest.mark.parametrize(
    ("kind", "cp", "sizes"),
    [("all_gather", 4, None), ("p2p", 4, None), ("p2p", 2, None), ("a2a", 2, None)]
    + [("a2a", 4, None), ("a2a+p2p", 8, [2, 4]), ("a2a+p2p", 8, [4, 2])],
)
def test_shared_sequences_send_what_the_closed_forms_say(kind, cp, sizes):
    config = config_of(
        tensor_model_parallel_size=2,
        context_parallel_size=cp,
        cp_comm_type=kind,
        hierarchical_context_parallel_sizes=sizes,
        num_layers=3,
        num_attention_heads=16,
        num_query_groups=4,
        hidden_size=128,
        seq_length=64,
        micro_batch_size=2,
        global_batch_size=6,
        fp64=False,
        bf16=True,
    )
    shape = Shape(3 * 3, 2 * 64 // cp, heads=8, groups=2, width=8)
    expected = by_hand(kind, cp, sizes[0] if sizes else 1, shape)
    assert sent(imagined_traffic(config, 1, gloo=False)) == expected


@pytest.mark.parametrize("kind", [pytest.param("p2p", marks=pytest.mark.deep), "all_gather"])
def test_a_rank_of_llama_3_405b_sends_what_the_closed_forms_say(kind):
    """TP 8 x CP 16 x PP 16 x DP 8, 131,072 tokens; a rank of a stage in the middle, with 8 layers."""
    given, _ = load_config(
        ["--config", "llama3-405b", "--config", "examples/scaling/16384-gpus-long.yaml"]
    )
    settings = flat(given) | {"cp_comm_type": kind, "mock_data": True, "data_path": None}
    settings |= {"global_batch_size": 16, "tokenizer_model": None, "device": "cuda"}
    config = resolve_derived(derive(settings, 16384), Found())
    with MemoryTracker("cuda"):
        communications = imagined_traffic(config, 5003, gloo=False)
    shape = Shape(2 * 8, 131072 // 16, heads=16, groups=1, width=128)
    expected = by_hand(kind, 16, 1, shape)
    again = 2 * 3 * shape.keys * HALF  # three layers of eight run again for both micro-batches
    if kind == "p2p":
        expected["shift", "cp"] += 15 * again
    else:
        expected["all_gather", "cp"] += 16 * again
    assert sent(communications) == expected

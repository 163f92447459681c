"""Factors of a layout and of what is trained on it in, configs in which every pair of values meets out.

All combinations are some hundred thousand; most bugs need one or two factors together (Kuhn et al. 2004), so the suite
runs a pairwise cover and `make test-deep` a random sample of all.
"""

import random
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import combinations, count, product
from math import prod
from typing import Any

from megascratch.config.errors import SettingError
from tests.laws.runs import config_of

Choice = dict[str, str]  # factor -> the name of its value
Pair = tuple[tuple[str, str], tuple[str, str]]

GPT: dict[str, Any] = {}
LLAMA = {"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "ffn_hidden_size": 48,
         "num_query_groups": 2, "add_bias_linear": False}  # fmt: skip
PARTLY_ROTARY = {"position_embedding_type": "rope", "rotary_percent": 0.5, "squared_relu": True, "add_qkv_bias": True,
                 "add_bias_linear": False, "num_query_groups": 1}  # fmt: skip
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}

LAYOUTS = [(tp, pp, dp) for tp, pp, dp in product((1, 2, 4), repeat=3) if tp * pp * dp <= 8]


def _layout(tp: int, pp: int, dp: int) -> dict[str, int]:
    return {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, "data_parallel_size": dp}


FACTORS: dict[str, dict[str, Any]] = {
    "layout": {f"tp{tp}.pp{pp}.dp{dp}": _layout(tp, pp, dp) for tp, pp, dp in LAYOUTS},
    "schedule": {"gpipe": {"pipeline_schedule": "gpipe"}, "1f1b": {"pipeline_schedule": "1f1b"},
                 "interleaved": {"pipeline_schedule": "interleaved", "num_virtual_stages_per_pipeline_rank": 2}},
    "cut": {"even": {}, "uneven": {}, "explicit": {}},  # numbers follow from stages and schedule
    "sp": {"off": {}, "on": {"sequence_parallel": True}},
    "tied": {"yes": {}, "no": {"untie_embeddings_and_output_weights": True}},
    "data": {"ddp": {}, "zero1": {"use_distributed_optimizer": True}},
    "buckets": {"one": {"ddp_bucket_size": 10**6}, "many": {"ddp_bucket_size": 700}},
    "overlap": {"on": {}, "off": {"overlap_grad_reduce": False, "overlap_param_gather": False},
                "of gradients": {"overlap_param_gather": False}, "of weights": {"overlap_grad_reduce": False}},
    "vocab": {"64": {"vocab_size": 64}, "61": {"vocab_size": 61}, "33": {"vocab_size": 33}},
    "micro": {"1": {}, "2": {"micro_batch_size": 2}},
    "model": {"gpt": GPT, "llama": LLAMA, "sqrelu": PARTLY_ROTARY},
    "dropout": {"off": {}, "on": {"hidden_dropout": 0.1, "attention_dropout": 0.2}},
    "documents": {"off": {}, "on": DOCUMENTS},
    "recompute": {"none": {}, "selective": {"recompute_granularity": "selective"},
                  "full": {"recompute_granularity": "full", "recompute_num_layers": 2}},
}  # fmt: skip
DECIDE_LEGALITY = ("layout", "schedule", "cut", "micro")

UNEVEN = {(2, 1): (3, 2), (4, 1): (5, 2), (2, 2): (6, 4), (4, 2): (8, 2)}  # stages, chunks -> layers, on the first
EXPLICIT = {(2, 1): [1, 3], (4, 1): [2, 0, 1, 1], (2, 2): [1, 0, 2, 1], (4, 2): [1, 0, 1, 0, 0, 1, 0, 1]}


def settings_of(choice: Choice) -> dict[str, Any]:
    """The settings a choice stands for, with as few layers as it needs."""
    settings: dict[str, Any] = {}
    for factor, value in choice.items():
        settings |= FACTORS[factor][value]
    if settings["tensor_model_parallel_size"] == 4:
        settings["global_batch_size"] = 4  # half the micro-batches where collectives cost most
    pp, chunks = settings["pipeline_model_parallel_size"], settings.get("num_virtual_stages_per_pipeline_rank", 1)
    if choice["cut"] == "uneven":
        settings["num_layers"], settings["decoder_first_pipeline_num_layers"] = UNEVEN.get((pp, chunks), (2, 1))
    elif choice["cut"] == "explicit":
        settings["num_layers"] = sum(EXPLICIT.get((pp, chunks), [2]))
        settings["pipeline_model_parallel_layout"] = EXPLICIT.get((pp, chunks), [2])
    else:
        settings["num_layers"] = max(2, pp * chunks)
    return settings


@cache
def _legal(decisive: tuple[tuple[str, str], ...]) -> bool:
    try:
        config_of(**settings_of(dict(decisive)))
    except SettingError:
        return False
    return True


def is_legal(choice: Choice) -> bool:
    return _legal(tuple((factor, choice[factor]) for factor in DECIDE_LEGALITY))


def name_of(choice: Choice) -> str:
    return " ".join(f"{factor}:{value}" for factor, value in choice.items())


def world_of(choice: Choice) -> int:
    return prod(FACTORS["layout"][choice["layout"]].values())


def random_choices(seed: int, fixed: Mapping[str, str] | None = None, tries: int | None = None) -> Iterator[Choice]:
    """Legal choices that hold `fixed`: without end, or what so many tries bring."""
    stream = random.Random(seed)
    for _ in count() if tries is None else range(tries):
        choice = {factor: stream.choice(list(values)) for factor, values in FACTORS.items()} | dict(fixed or {})
        if is_legal(choice):
            yield choice


def pairs_of(choice: Choice) -> set[Pair]:
    return set(combinations(choice.items(), 2))


def all_pairs() -> list[Pair]:
    return [((a, x), (b, y)) for a, b in combinations(FACTORS, 2) for x in FACTORS[a] for y in FACTORS[b]]


@lru_cache(maxsize=1)
def pairwise_cover() -> tuple[list[Choice], list[Pair]]:
    """(choices, pairs that no legal choice holds). Greedy: for a pair that has not met yet, of many legal choices that
    hold it the one that brings most new pairs. Sorted by world size, so that the pool of ranks regroups rarely."""
    missing, cover, impossible = dict.fromkeys(all_pairs()), [], []
    while missing:
        pair = next(iter(missing))
        found = list(random_choices(len(cover), dict(pair), tries=200))
        if not found:
            impossible.append(pair)
            del missing[pair]
            continue
        best = max(found, key=lambda choice: sum(pair in missing for pair in pairs_of(choice)))
        cover.append(best)
        for met in pairs_of(best):
            missing.pop(met, None)
    return sorted(cover, key=world_of), impossible

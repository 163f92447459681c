"""Factors of a layout and of what is trained on it in, configs in which every pair of values meets, and every layout
is met, out.

All combinations are some millions; most bugs need one or two factors together (Kuhn et al. 2004), so the suite runs a
pairwise cover and `make test-deep` a random sample of all.
"""

import atexit
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import combinations, count, product
from pathlib import Path
from typing import Any

from megascratch.config.errors import SettingError
from megascratch.config.layout import Layout
from megascratch.pipeline.csv_schedule import write_table
from megascratch.pipeline.passes import compile_order
from megascratch.pipeline.schedule import Placement
from tests.support.layout_runs import config_of

Choice = dict[str, str]  # factor -> the name of its value
Meeting = tuple[tuple[str, str], ...]  # values of several factors in one config

GPT: dict[str, Any] = {}
LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "ffn_hidden_size": 48,
    "num_query_groups": 2,
    "add_bias_linear": False,
}
PARTLY_ROTARY = {
    "position_embedding_type": "rope",
    "rotary_percent": 0.5,
    "squared_relu": True,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "num_query_groups": 1,
}
MEGATRON = {
    "position_embedding_type": "rope",
    "rotary_interleaved": True,
    "rotary_seq_len_interpolation_factor": 2.0,
    "add_bias_linear": False,
    "norm_bias": True,
    "apply_layernorm_1p": True,
}
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}

MOST_RANKS = 8
SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "dp": "data_parallel_size",
}
FOLDED = ("zb_v", "dualpipe_v")
SCHEDULES = ("gpipe", "1f1b", "zb_h1", "zb_h2", "zb_v", "dualpipe_v")

FACTORS: dict[str, dict[str, Any]] = {
    **{axis: {str(size): {name: size} for size in (1, 2, 4)} for axis, name in SIZES.items()},
    "schedule": {
        **{name: {"pipeline_schedule": name} for name in SCHEDULES},
        "interleaved": {
            "pipeline_schedule": "interleaved",
            "num_virtual_stages_per_pipeline_rank": 2,
        },
        "csv": {"pipeline_schedule": "csv"},
    },
    "cut": {"even": {}, "uneven": {}, "explicit": {}},  # numbers follow from stages and schedule
    "sp": {"off": {}, "on": {"sequence_parallel": True}},
    "tied": {"yes": {}, "no": {"untie_embeddings_and_output_weights": True}},
    "data": {"ddp": {}, "zero1": {"use_distributed_optimizer": True}},
    "buckets": {"one": {"ddp_bucket_size": 10**6}, "many": {"ddp_bucket_size": 700}},
    "overlap": {
        "on": {},
        "off": {"overlap_grad_reduce": False, "overlap_param_gather": False},
        "of gradients": {"overlap_param_gather": False},
        "of weights": {"overlap_grad_reduce": False},
    },
    "offload": {"off": {}, "on": {"optimizer_cpu_offload": True}},
    "vocab": {"64": {"vocab_size": 64}, "61": {"vocab_size": 61}, "33": {"vocab_size": 33}},
    "micro": {"1": {}, "2": {"micro_batch_size": 2}},
    "model": {"gpt": GPT, "llama": LLAMA, "sqrelu": PARTLY_ROTARY, "megatron": MEGATRON},
    "dropout": {"off": {}, "on": {"hidden_dropout": 0.1, "attention_dropout": 0.2}},
    "documents": {"off": {}, "on": DOCUMENTS},
    "recompute": {
        "none": {},
        "selective": {"recompute_granularity": "selective"},
        "full": {"recompute_granularity": "full", "recompute_num_layers": 2},
    },
}
DECIDE_LEGALITY = (*SIZES, "schedule", "cut", "micro")

# stages, chunks -> layers, on the first
UNEVEN = {
    (2, 1): (3, 2),
    (4, 1): (5, 2),
    (2, 2): (6, 4),
    (4, 2): (8, 2),
}
EXPLICIT = {
    (2, 1): [1, 3],
    (4, 1): [2, 0, 1, 1],
    (2, 2): [1, 0, 2, 1],
    (4, 2): [1, 0, 1, 0, 0, 1, 0, 1],
}


def settings_of(choice: Choice) -> dict[str, Any]:
    """The settings a choice stands for, with as few layers as it needs."""
    settings: dict[str, Any] = {}
    for factor, value in choice.items():
        settings |= FACTORS[factor][value]
    if settings["tensor_model_parallel_size"] == 4:
        settings["global_batch_size"] = 4  # half the micro-batches where collectives cost most
    pp, chunks = (
        settings["pipeline_model_parallel_size"],
        settings.get("num_virtual_stages_per_pipeline_rank", 1),
    )
    if choice["schedule"] in FOLDED:
        chunks = 2
    if choice["schedule"] == "csv":
        sample = settings.get("micro_batch_size", 1) * settings["data_parallel_size"]
        settings["pipeline_schedule_csv"] = own_schedule(
            pp, max(1, settings.get("global_batch_size", 8) // sample)
        )
    if choice["cut"] == "uneven":
        settings["num_layers"], settings["decoder_first_pipeline_num_layers"] = UNEVEN.get(
            (pp, chunks), (2, 1)
        )
    elif choice["cut"] == "explicit":
        settings["num_layers"] = sum(EXPLICIT.get((pp, chunks), [2]))
        settings["pipeline_model_parallel_layout"] = EXPLICIT.get((pp, chunks), [2])
    else:
        settings["num_layers"] = max(2, pp * chunks)
    return settings


@cache
def own_schedule(stages: int, microbatches: int) -> str:
    """A file with ZB-H1's order."""
    file = _folder() / f"{stages}-{microbatches}.csv"
    file.write_text(
        write_table(
            compile_order("zb_h1", stages, microbatches), Placement(stages), compute_only=True
        )
    )
    return str(file)


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="schedules-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _legal(decisive: tuple[tuple[str, str], ...]) -> bool:
    try:
        config_of(**settings_of(dict(decisive)))
    except SettingError:
        return False
    return True


def is_legal(choice: Choice) -> bool:
    return world_of(choice) <= MOST_RANKS and _legal(
        tuple((factor, choice[factor]) for factor in DECIDE_LEGALITY)
    )


def name_of(choice: Choice) -> str:
    return " ".join(f"{factor}:{value}" for factor, value in choice.items())


def world_of(choice: Choice) -> int:
    return Layout(**{axis: int(choice[axis]) for axis in SIZES}).world


def random_choices(
    seed: int, fixed: Mapping[str, str] | None = None, tries: int | None = None
) -> Iterator[Choice]:
    """Legal choices that hold `fixed`: without end, or what so many tries bring."""
    stream = random.Random(seed)
    for _ in count() if tries is None else range(tries):
        choice = {factor: stream.choice(list(values)) for factor, values in FACTORS.items()} | dict(
            fixed or {}
        )
        if is_legal(choice):
            yield choice


def meetings_of(choice: Choice) -> set[Meeting]:
    """Each pair of its values, and its layout."""
    return {*combinations(choice.items(), 2), tuple((axis, choice[axis]) for axis in SIZES)}


def all_meetings() -> list[Meeting]:
    """Every pair of values, and every layout that is not too large."""
    layouts = product(*[[(axis, value) for value in FACTORS[axis]] for axis in SIZES])
    pairs = [
        ((a, x), (b, y))
        for a, b in combinations(FACTORS, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
    ]
    return [layout for layout in layouts if world_of(dict(layout)) <= MOST_RANKS] + pairs


@lru_cache(maxsize=1)
def pairwise_cover() -> tuple[list[Choice], list[Meeting]]:
    """(choices, meetings that no legal choice holds). Greedy: for a meeting that is missing yet, of many legal choices
    that hold it the one that brings most new ones, the smaller one of equals; then without the choices that the others
    make redundant. Sorted by world size and layout, so that the pool of ranks regroups rarely."""
    missing, cover, impossible = dict.fromkeys(all_meetings()), [], []
    while missing:
        wanted = next(iter(missing))
        found = list(random_choices(len(cover), dict(wanted), tries=200))
        if not found:
            impossible.append(wanted)
            del missing[wanted]
            continue
        best = max(
            found,
            key=lambda choice: (sum(m in missing for m in meetings_of(choice)), -world_of(choice)),
        )
        cover.append(best)
        for met in meetings_of(best):
            missing.pop(met, None)
    return sorted(_needed(cover), key=_size_and_layout), impossible


def _size_and_layout(choice: Choice) -> tuple:
    return (world_of(choice), *(choice[axis] for axis in SIZES))


def _needed(cover: list[Choice]) -> list[Choice]:
    """Without choices of which every meeting takes place elsewhere, too; the largest go first."""
    times = Counter(met for choice in cover for met in meetings_of(choice))
    kept = list(cover)
    for choice in sorted(cover, key=world_of, reverse=True):
        if all(times[met] > 1 for met in meetings_of(choice)):
            kept.remove(choice)
            times.subtract(meetings_of(choice))
    return kept

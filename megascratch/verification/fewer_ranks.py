"""Moves a legal config to fewer ranks (or to more): the nearest layout of the same kind that these ranks allow.

An axis that is used stays in use as long as there are ranks for it, and so do virtual stages and uneven stages. The
layers of a stage stay as many as they are, so fewer stages make a shorter model. Pure arithmetic.
"""

from collections.abc import Sequence
from itertools import product
from math import gcd
from typing import Any

from megascratch.config.laws import validate
from megascratch.config.layer_patterns import fitted_patterns
from megascratch.config.layout import Layout
from megascratch.config.pipeline_split import layer_cut
from megascratch.config.registry import facts_of
from megascratch.config.remedies import divisors
from megascratch.config.resolve import Values, derive
from megascratch.config.settings import ParallelConfig
from megascratch.config.stage_string import string_of_layers

_OF_A_PIPELINE = (
    "pipeline_schedule",
    "pipeline_schedule_csv",
    "num_virtual_stages_per_pipeline_rank",
    "microbatch_group_size_per_virtual_pipeline_stage",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)


def on_ranks(given: Values, world: int) -> dict[str, Any]:
    """The settings that change when a legal config moves to `world` ranks, with their new values."""
    own = Layout.of_values(given)
    layout = nearest_layout(own, world, may_have_copies=given["data_parallel_size"] != 1)
    changes: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
    }
    if layout.cp != own.cp:
        changes |= _fewer_context_ranks(given, layout.cp)
    if given["data_parallel_size"] is not None:
        changes["data_parallel_size"] = layout.dp
    if layout.tp == 1:
        changes["sequence_parallel"] = False
    if layout.dp == 1:
        changes["use_distributed_optimizer"] = False
    now = derive(given, own.world)
    if layout.pp != own.pp:
        changes |= _of_one_stage() if layout.pp == 1 else _fewer_stages(given, now, layout.pp)
    if given["global_batch_size"] is not None:
        at_once = given["micro_batch_size"]
        many = given["global_batch_size"] // (at_once * own.dp)
        changes["global_batch_size"] = many * at_once * layout.dp
    return {name: value for name, value in changes.items() if value != given[name]}


def at_most(settings: Values, world: int) -> dict[str, Any]:
    """The settings on at most `world` ranks. Raises: SettingError if they are not legal on ranks of their own."""
    own = Layout.of_values(settings)
    validate(settings, own.world)
    if own.world <= world:
        return dict(settings)
    moved = {**settings, **on_ranks(settings, world)}
    copy = Layout.of_values(moved).ranks_of_copy
    return {**moved, "data_parallel_size": world // copy}


def nearest_layout(own: Layout, world: int, may_have_copies: bool) -> Layout:
    """The layout of `world` ranks that is nearest to another one. Its tensor and context ranks divide those of the
    other, so that whatever they could divide stays divisible.

    Args:
        may_have_copies: data parallelism is used, or nothing is known about it.
    """
    found = []
    for tp, cp in product(divisors(own.tp), divisors(own.cp)):
        for pp in range(1, own.pp + 1):
            copy = tp * cp * pp
            if world % copy:
                continue
            layout = Layout(tp=tp, pp=pp, dp=world // copy, cp=cp)
            if (tp, pp, cp) == (own.tp, own.pp, own.cp):
                return layout
            has_copies = layout.dp > 1 and may_have_copies
            in_use = (tp > 1) + (pp > 1) + (cp > 1) + has_copies
            found.append((in_use, copy, tp, cp, layout))
    return max(found, key=lambda each: each[:4])[-1]


def _fewer_context_ranks(given: Values, cp: int) -> dict[str, Any]:
    """Settings of `cp` context ranks, fewer than there are."""
    changes: dict[str, Any] = {"context_parallel_size": cp}
    sizes = given["hierarchical_context_parallel_sizes"]
    if cp == 1:
        kept = vars(ParallelConfig())
        names = ("cp_comm_type", "hierarchical_context_parallel_sizes", "context_parallel_order")
        changes |= {name: kept[name] for name in names}
    elif sizes:
        exchanging = gcd(sizes[0], cp)
        changes["hierarchical_context_parallel_sizes"] = [exchanging, cp // exchanging]
    return changes


def _of_one_stage() -> dict[str, Any]:
    """Settings of a model that is not cut."""
    defaults = vars(ParallelConfig())
    return {name: defaults[name] for name in _OF_A_PIPELINE}


def _fewer_stages(given: Values, now: Values, pp: int) -> dict[str, Any]:
    """Settings of a pipeline of `pp` stages, fewer than it has, each as it is; `now` is derived."""
    chunks = now["num_virtual_stages_per_pipeline_rank"]
    own_pp = now["pipeline_model_parallel_size"]
    changes: dict[str, Any] = {}
    if given["pipeline_schedule_csv"] is not None:  # it is for its own number of stages
        changes |= {"pipeline_schedule_csv": None, "pipeline_schedule": None}
    group = given["microbatch_group_size_per_virtual_pipeline_stage"]
    if group is not None:
        changes["microbatch_group_size_per_virtual_pipeline_stage"] = pp + (group > own_pp)
    first = now["decoder_first_pipeline_num_layers"]
    last = now["decoder_last_pipeline_num_layers"]
    layout = now["pipeline_model_parallel_layout"]
    ends = (
        now["account_for_embedding_in_pipeline_split"],
        now["account_for_loss_in_pipeline_split"],
    )
    layers = now["num_layers"]
    if layout is not None:
        cut = layer_cut(layers, own_pp, chunks, None, None, layout)
        small = _sampled(cut, pp * chunks)
        written = string_of_layers(small) if isinstance(layout, str) else small
        changes["pipeline_model_parallel_layout"] = written
        layers = sum(small)
    elif first is not None or last is not None:
        at_ends = (first or 0) + (last or 0)
        between = own_pp - (first is not None) - (last is not None)
        now_between = pp - (first is not None) - (last is not None)
        layers = at_ends + (layers - at_ends) // between * now_between
    else:
        layers = (layers + sum(ends)) // (own_pp * chunks) * pp * chunks - sum(ends)
        if layers < 1:  # stages of an embedding and of an output layer alone
            layers += pp * chunks
    changes["num_layers"] = layers
    changes |= fitted_patterns(given, layers)
    if given["recompute_num_layers"] is not None:
        changes["recompute_num_layers"] = min(given["recompute_num_layers"], layers)
    if facts_of("schedule", now["pipeline_schedule"])["chunks"] is None and chunks > 1:
        changes["num_virtual_stages_per_pipeline_rank"] = chunks
    return changes


def _sampled(cut: Sequence[int], number: int) -> list[int]:
    """`number` entries of a list, its ends included, at equal distances; at least one has a layer."""
    distance = (len(cut) - 1) / max(1, number - 1)
    found = [cut[round(place * distance)] for place in range(number)]
    if not any(found):
        found[-1] = max(cut)
    return found

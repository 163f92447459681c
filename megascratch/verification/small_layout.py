"""The layers and batches of a small run of the same layout: as few as the layout can have without losing what is
special about it.
"""

from dataclasses import replace
from typing import Any

from megascratch.config.layer_patterns import fitted_patterns
from megascratch.config.layers import layers_of
from megascratch.config.pipeline_split import cut_of
from megascratch.config.resolve import ResolvedModel, ResolvedParallel, ResolvedTraining
from megascratch.config.stage_string import string_of_layers


def small_cut(model: ResolvedModel, parallel: ResolvedParallel) -> dict[str, Any]:
    """Settings with as few layers as the cut of a legal config allows. Stages of different sizes stay different."""
    layers = model.num_layers
    pp = parallel.pipeline_model_parallel_size
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    first = parallel.decoder_first_pipeline_num_layers
    last = parallel.decoder_last_pipeline_num_layers
    layout = parallel.pipeline_model_parallel_layout
    small = _ranked(cut_of(layers, pp, parallel))
    ends = (
        parallel.account_for_embedding_in_pipeline_split,
        parallel.account_for_loss_in_pipeline_split,
    )
    small = _with_every_kind(model, small, ends)
    values: dict[str, Any] = {"num_layers": sum(small)}
    if isinstance(layout, str):
        values["pipeline_model_parallel_layout"] = string_of_layers(small)
    elif layout is not None:
        values["pipeline_model_parallel_layout"] = small
    elif first is not None or last is not None:
        if first is not None:
            values["decoder_first_pipeline_num_layers"] = small[0] * chunks
        if last is not None:
            values["decoder_last_pipeline_num_layers"] = small[pp - 1] * chunks
    elif sum(small) == 1:
        values["num_layers"] = min(2, layers)
    if parallel.recompute_num_layers is not None:
        values["recompute_num_layers"] = min(parallel.recompute_num_layers, values["num_layers"])
    return values | fitted_patterns(vars(model), values["num_layers"])


def _with_every_kind(model: ResolvedModel, cut: list[int], ends: tuple[bool, bool]) -> list[int]:
    """The cut, or the least multiple of it that has a layer of every kind of the model.

    Args:
        ends: whether the embedding and the output layer count as a layer of the first and last stage.
    """
    counted = list(cut)
    counted[0] += ends[0]
    counted[-1] += ends[1]
    kinds = len(set(layers_of(model)))
    times = 1
    while True:
        larger = [times * layers for layers in counted]
        larger[0] -= ends[0]
        larger[-1] -= ends[1]
        number = sum(larger)
        if number >= model.num_layers:
            return larger
        if number and len(set(layers_of(replace(model, num_layers=number)))) == kinds:
            return larger
        times += 1


def _ranked(numbers: list[int]) -> list[int]:
    """5 9 5 0 -> 1 2 1 0: equal stays equal, larger stays larger, empty stays empty."""
    order = sorted({number for number in numbers if number})
    return [order.index(number) + 1 if number else 0 for number in numbers]


def small_batch(training: ResolvedTraining, parallel: ResolvedParallel) -> dict[str, Any]:
    """Settings with few and small micro-batches. A last group that is not full, as in the whole, stays so."""
    pp = parallel.pipeline_model_parallel_size
    group = parallel.microbatch_group_size_per_virtual_pipeline_stage
    many = training.global_batch_size // (training.micro_batch_size * parallel.data_parallel_size)
    micro = min(training.micro_batch_size, 2)
    small_group = group
    if parallel.pipeline_schedule == "csv":
        few = many  # the file is for this number of micro-batches
    elif parallel.pipeline_schedule == "interleaved":
        small_group = min(group, pp + 1)
        few = min(many // group, 2) * small_group or many
        if many % group and small_group > pp:
            few += pp
    else:
        few = min(many, 2 * pp if pp > 1 else 2)
    return {
        "micro_batch_size": micro,
        "global_batch_size": micro * parallel.data_parallel_size * few,
        "microbatch_group_size_per_virtual_pipeline_stage": small_group,
    }

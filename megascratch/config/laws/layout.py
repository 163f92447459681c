"""The laws of the layout: processes, stages, chunks and backends; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.layout import Layout
from megascratch.config.pipeline_split import CutError, layer_cut
from megascratch.config.registry import facts_of, is_registered
from megascratch.config.remedies import (
    WORLD,
    Broken,
    Remedy,
    choice,
    divisors,
    each,
    near_multiples,
)


def layout_fits_the_world(
    world_size: int,
    tensor_model_parallel_size: int,
    pipeline_model_parallel_size: int,
    context_parallel_size: int,
    data_parallel_size: int | None,
) -> Broken | None:
    """The world size is tensor x pipeline x context x data parallel size."""
    tp = tensor_model_parallel_size
    pp = pipeline_model_parallel_size
    dp = data_parallel_size
    cp = context_parallel_size
    copy = Layout(tp, pp, cp=cp).ranks_of_copy
    context, times = (" x context", f" x {cp}") if cp > 1 else ("", "")
    if world_size % copy:
        smaller = ""
        if sorted((tp, pp, cp))[1] > 1:  # else a remedy below says the same
            ranks = "rank" if world_size == 1 else "ranks"
            smaller = f"use a layout of {choice(divisors(world_size), copy)} {ranks}"
        return Broken(
            f"world size ({world_size}) must be divisible by tensor-model-parallel-size x pipeline-model-parallel-size"
            f"{' x context-parallel-size' if cp > 1 else ''} ({tp} x {pp}{times} = {copy})",
            [
                Remedy(WORLD, near_multiples(world_size, copy)),
                Remedy("tensor_model_parallel_size", each(divisors(world_size))),
                Remedy("pipeline_model_parallel_size", each(divisors(world_size))),
                Remedy("context_parallel_size", each(divisors(world_size)) if cp > 1 else []),
            ],
            smaller,
        )
    if dp is not None and world_size != copy * dp:
        return Broken(
            f"world size ({world_size}) must be tensor x pipeline{context} x data parallel size ({tp} x {pp}{times} x "
            f"{dp} = {copy * dp})",
            [
                Remedy(WORLD, [[copy * dp]]),
                Remedy("data_parallel_size", [[world_size // copy]]),
            ],
        )
    return None


def sequence_over_tp(
    seq_length: int, tensor_model_parallel_size: int, sequence_parallel: bool
) -> Broken | None:
    """Sequence parallelism splits the sequence into equal parts."""
    if not sequence_parallel or seq_length % tensor_model_parallel_size == 0:
        return None
    return Broken(
        f"seq-length ({seq_length}) must be divisible by tensor-model-parallel-size ({tensor_model_parallel_size}) "
        "with sequence-parallel",
        [Remedy("seq_length", near_multiples(seq_length, tensor_model_parallel_size))],
        "remove sequence-parallel",
    )


def layers_are_cut_whole(
    num_layers: int,
    pipeline_model_parallel_size: int,
    num_virtual_stages_per_pipeline_rank: int,
    decoder_first_pipeline_num_layers: int | None,
    decoder_last_pipeline_num_layers: int | None,
    pipeline_model_parallel_layout: list[int] | str | None,
    account_for_embedding_in_pipeline_split: bool,
    account_for_loss_in_pipeline_split: bool,
) -> Broken | None:
    """Every layer is on exactly one virtual stage; see `pipeline_split.layer_cut`."""
    try:
        layer_cut(
            num_layers,
            pipeline_model_parallel_size,
            num_virtual_stages_per_pipeline_rank,
            decoder_first_pipeline_num_layers,
            decoder_last_pipeline_num_layers,
            pipeline_model_parallel_layout,
            embedding_counts=account_for_embedding_in_pipeline_split,
            loss_counts=account_for_loss_in_pipeline_split,
        )
    except CutError as error:
        return error.broken
    return None


def schedule_fits_the_chunks(
    pipeline_schedule: str,
    pipeline_model_parallel_size: int,
    num_virtual_stages_per_pipeline_rank: int,
) -> str | None:
    """Interleaving needs several chunks per rank, a V schedule needs two, most other schedules need one."""
    pp = pipeline_model_parallel_size
    chunks = num_virtual_stages_per_pipeline_rank
    needed = facts_of("schedule", pipeline_schedule)["chunks"]
    if needed is not None and needed > 1:
        if chunks == needed and pp > 1:
            return None
        return (
            f"pipeline-schedule {pipeline_schedule} needs pipeline-model-parallel-size of 2 or more and "
            f"num-virtual-stages-per-pipeline-rank {needed} (now {pp} and {chunks}): use these, or 1f1b"
        )
    if needed == 1:
        if chunks == 1:
            return None
        return (
            f"num-virtual-stages-per-pipeline-rank ({chunks}) needs pipeline-schedule interleaved, "
            f"not {pipeline_schedule}: use interleaved, or 1 virtual stage"
        )
    if pipeline_schedule != "interleaved" or (chunks > 1 and pp > 1):
        return None
    return (
        "pipeline-schedule interleaved needs pipeline-model-parallel-size and num-virtual-stages-per-pipeline-rank "
        f"of 2 or more (now {pp} and {chunks}): raise them, or use 1f1b"
    )


def own_schedule_has_a_file(
    pipeline_schedule: str, pipeline_schedule_csv: str | None
) -> str | None:
    """Only pipeline-schedule csv reads a file, and it needs one."""
    if (pipeline_schedule == "csv") == (pipeline_schedule_csv is not None):
        return None
    if pipeline_schedule_csv is None:
        return "pipeline-schedule csv needs pipeline-schedule-csv: give the file"
    return f"pipeline-schedule-csv needs pipeline-schedule csv, not {pipeline_schedule}: remove one of them"


def a_v_is_cut_evenly_or_by_hand(
    pipeline_schedule: str,
    decoder_first_pipeline_num_layers: int | None,
    decoder_last_pipeline_num_layers: int | None,
) -> str | None:
    """In a V schedule the first rank has both ends of the model, so there is no separate last stage."""
    if not facts_of("schedule", pipeline_schedule)["folded"]:
        return None
    for name, given in (
        ("first", decoder_first_pipeline_num_layers),
        ("last", decoder_last_pipeline_num_layers),
    ):
        if given is not None:
            return (
                f"decoder-{name}-pipeline-num-layers ({given}) cannot be combined with pipeline-schedule "
                f"{pipeline_schedule}, whose first rank has both ends of the model: "
                "set the layers of each stage with pipeline-model-parallel-layout"
            )
    return None


def groups_are_for_interleaving(
    microbatch_group_size_per_virtual_pipeline_stage: int,
    pipeline_schedule: str,
    pipeline_model_parallel_size: int,
) -> str | Broken | None:
    """The group size orders interleaved micro-batches, and is at least the number of stages."""
    group = microbatch_group_size_per_virtual_pipeline_stage
    pp = pipeline_model_parallel_size
    if pipeline_schedule == "interleaved" and group < pp:
        return Broken(
            f"microbatch-group-size-per-virtual-pipeline-stage ({group}) must be at least "
            f"pipeline-model-parallel-size ({pp})",
            [Remedy("microbatch_group_size_per_virtual_pipeline_stage", [[pp]], " or more")],
        )
    has_groups = pipeline_schedule == "interleaved" or is_registered("schedule", pipeline_schedule)
    if not has_groups and group != pp:
        return (
            f"microbatch-group-size-per-virtual-pipeline-stage ({group}) needs pipeline-schedule interleaved, "
            f"not {pipeline_schedule}: remove it"
        )
    return None


def backend_fits_the_device(device: str | None, distributed_backend: str | None) -> str | None:
    """NCCL only works with GPU memory."""
    if device in ("cpu", "mps") and distributed_backend == "nccl":
        return f"distributed-backend nccl needs device cuda, not {device}: use gloo"
    return None


def mps_is_one_rank_without_fp64(device: str | None, world_size: int, fp64: bool) -> str | None:
    """No communication library reaches the memory of Apple's GPU, which computes in at most fp32."""
    if device == "mps" and world_size > 1:
        return f"device mps needs 1 rank, not {world_size}: start 1, or use device cpu"
    if device == "mps" and fp64:
        return "device mps has no fp64: remove fp64, or use device cpu"
    return None


LAWS: list[Callable[..., str | Broken | None]] = [
    layout_fits_the_world,
    sequence_over_tp,
    layers_are_cut_whole,
    schedule_fits_the_chunks,
    own_schedule_has_a_file,
    a_v_is_cut_evenly_or_by_hand,
    groups_are_for_interleaving,
    backend_fits_the_device,
    mps_is_one_rank_without_fp64,
]

"""Resolves the settings of a run: from what was given to a `ResolvedConfig`, in which every derived value is known.

    derive    values that follow from other settings and the number of processes; unknown ones stay None, so that the
              laws can report everything at once
    resolve   the same with what files and the machine say (`Found`), as sections without None

A process derives its settings once. Needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from megascratch.config.batch_schedule import in_samples, last_size
from megascratch.config.errors import SettingError
from megascratch.config.fields import SETTINGS, flat
from megascratch.config.layout import Layout
from megascratch.config.pipeline_split import stages_of
from megascratch.config.registry import facts_of
from megascratch.config.settings import (
    Config,
    DataConfig,
    GuardConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainingConfig,
)

Values = Mapping[str, Any]
"""Setting -> value, for all settings."""

Device = Literal["cpu", "cuda", "mps"]

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "mps": "gloo"}
"""Device -> the communication library that is used by default."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """The shape of the Transformer, with every size known."""

    num_query_groups: int
    kv_channels: int
    ffn_hidden_size: int
    max_position_embeddings: int
    norm_bias: bool
    attention_output_bias: bool
    vocab_size: int

    @property
    def trained_vocab_rows(self) -> int:
        """Rows of the embedding that are weights: padding is one only if it takes part in the softmax."""
        if self.padded_vocab_in_softmax:
            assert self.padded_vocab_size is not None
            return self.padded_vocab_size
        return self.vocab_size


@dataclass(frozen=True, kw_only=True)
class ResolvedParallel(ParallelConfig):
    """The layout, with its data-parallel size, chunks and schedule known."""

    data_parallel_size: int
    pipeline_schedule: str
    num_virtual_stages_per_pipeline_rank: int
    microbatch_group_size_per_virtual_pipeline_stage: int
    distributed_backend: Literal["gloo", "nccl"]
    context_parallel_order: Literal["zigzag", "documents", "contiguous"]


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(TrainingConfig):
    """Batch size, folders and device of the run, all known."""

    global_batch_size: int
    tensorboard_dir: str
    save: str
    stop_file: str
    device: Device


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """All sections of a run that can start."""

    model: ResolvedModel
    parallel: ResolvedParallel
    training: ResolvedTraining


class Found(NamedTuple):
    """What the settings leave to files and to the machine; None: not looked up, or not needed."""

    vocab_size: int | None = None
    """Of the tokenizer, if the settings do not give it."""
    load: str | None = None
    """The checkpoint of --auto-resume."""
    global_batch_size: int | None = None
    """Of the checkpoint, if the settings do not give it."""
    padded_vocab_size: int | None = None
    """Of the checkpoint, if its padding rows are trained and the settings do not give it."""
    device: Device | None = None
    """Of this rank, if the settings do not name one. A process that computes nothing does not look for one."""

    def values(self) -> dict[str, Any]:
        """Setting -> value, for what was found."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def derive(given: Values, world_size: int) -> dict[str, Any]:
    """All settings, with every None filled in that follows from the others and the number of processes; never raises.

    What needs a file or a device stays None (see `Found`), and so does a number that cannot be derived because other
    settings are invalid; `laws.validate` reports which.
    """
    filled = dict(given)
    for defaults in (_model, _parallel, _batch, _paths):
        for name, value in defaults(filled, world_size).items():
            if filled[name] is None:
                filled[name] = value
    return filled


def resolve(config: Config, world_size: int, found: Found | None = None) -> ResolvedConfig:
    """Derives the settings of a run and adds what was found.

    Raises: SettingError if a value is still unknown. The laws say why, so check them before (`laws.broken_laws`).
    """
    return resolve_derived(derive(flat(config), world_size), found or Found())


def resolve_derived(derived: Values, found: Found) -> ResolvedConfig:
    """`resolve` for settings that are derived already, because their laws have been checked."""
    values = dict(derived) | found.values()
    if values["device"] is None:
        values["device"] = "cpu"
    if values["distributed_backend"] is None:
        values["distributed_backend"] = BACKENDS[values["device"]]
    if values["step_batch_size_schedule"] is not None:
        values["step_batch_size_schedule"] = in_samples(
            values["step_batch_size_schedule"], values["seq_length"]
        )
    unknown = [name for name in _must_be_known() if values[name] is None]
    if unknown:
        names = ", ".join(name.replace("_", "-") for name in unknown)
        raise SettingError(
            f"{names}: unknown, and cannot be derived from the other settings: give a value"
        )
    if values["padded_vocab_in_softmax"] and values["padded_vocab_size"] is None:
        values["padded_vocab_size"] = padded_vocab_size(
            values["vocab_size"],
            values["make_vocab_size_divisible_by"],
            values["tensor_model_parallel_size"],
        )
    return ResolvedConfig(
        model=ResolvedModel(**_section(values, "model")),
        parallel=ResolvedParallel(**_section(values, "parallel")),
        data=DataConfig(**_section(values, "data")),
        optim=OptimConfig(**_section(values, "optim")),
        training=ResolvedTraining(**_section(values, "training")),
        guard=GuardConfig(**_section(values, "guard")),
    )


def padded_vocab_size(vocab_size: int, divisible_by: int, tp_size: int) -> int:
    """The number of rows of the table over all tp ranks, with padding."""
    unit = divisible_by * tp_size
    return -(-vocab_size // unit) * unit


def _section(values: Values, section: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if SETTINGS[name].section == section}


def _must_be_known() -> list[str]:
    """The settings that are never None in a resolved config: those that its sections declare again."""
    names = []
    for section in (ResolvedModel, ResolvedParallel, ResolvedTraining):
        names += [field.name for field in fields(section) if field.name in section.__annotations__]
    return names


def _model(now: Values, world_size: int) -> dict[str, Any]:
    hidden = now["hidden_size"]
    heads = now["num_attention_heads"]
    width_of_head = hidden // heads if heads > 0 and hidden % heads == 0 else None
    is_gated = now["swiglu"] or facts_of("activation", now["activation_function"])["inputs"] > 1
    # three matrices of width 8/3 h have as many weights as two of 4h; a multiple of 64 suits any usual tp
    width_with_gate = -(-8 * hidden // (3 * 64)) * 64
    original = now["rope_original_max_position_embeddings"]
    longer = None
    if now["rope_scaling_type"] == "longrope" and original and original > 0:
        longer = now["seq_length"] / original
    return {
        "num_query_groups": heads,
        "kv_channels": width_of_head,
        "ffn_hidden_size": width_with_gate if is_gated else 4 * hidden,
        "max_position_embeddings": now["seq_length"],
        "norm_bias": now["add_bias_linear"],
        "attention_output_bias": now["add_bias_linear"],
        "rope_scaling_factor": longer,
    }


def _parallel(now: Values, world_size: int) -> dict[str, Any]:
    pp = now["pipeline_model_parallel_size"]
    stages = stages_of(now["pipeline_model_parallel_layout"])
    model_ranks = Layout(
        tp=now["tensor_model_parallel_size"], pp=pp, cp=now["context_parallel_size"]
    ).ranks_of_copy
    fits = model_ranks > 0 and world_size > 0 and world_size % model_ranks == 0
    if now["num_virtual_stages_per_pipeline_rank"]:
        chunks = now["num_virtual_stages_per_pipeline_rank"]
    elif (facts_of("schedule", now["pipeline_schedule"])["chunks"] or 1) > 1:
        chunks = facts_of("schedule", now["pipeline_schedule"])["chunks"]
    elif stages and pp > 0 and stages % pp == 0:
        chunks = stages // pp
    else:
        chunks = 1
    if now["pipeline_schedule_csv"]:
        schedule = "csv"
    elif chunks > 1:
        schedule = "interleaved"
    else:
        schedule = "1f1b"
    recomputes_all = now["recompute_granularity"] == "full"
    return {
        "data_parallel_size": world_size // model_ranks if fits else None,
        "num_virtual_stages_per_pipeline_rank": chunks,
        "pipeline_schedule": schedule,
        "microbatch_group_size_per_virtual_pipeline_stage": pp,
        "recompute_method": "uniform" if recomputes_all else None,
        "recompute_num_layers": 1 if recomputes_all else None,
        "recompute_modules": ["core_attn"] if now["recompute_granularity"] == "selective" else None,
        "distributed_backend": BACKENDS.get(now["device"]),
        "context_parallel_order": "contiguous" if now["cp_comm_type"] == "a2a" else "zigzag",
    }


def _batch(now: Values, world_size: int) -> dict[str, Any]:
    copies = now["data_parallel_size"]
    one_microbatch_each = now["micro_batch_size"] * copies if copies else None
    return {
        "global_batch_size": last_size(now["step_batch_size_schedule"]) or one_microbatch_each,
        "lr_decay_iters": now["train_iters"],
        "lr_decay_samples": now["train_samples"],
    }


def _paths(now: Values, world_size: int) -> dict[str, Any]:
    return {
        "split": "969,30,1" if now["data_path"] else None,
        "tensorboard_dir": f"{now['output_dir']}/tensorboard",
        "save": f"{now['output_dir']}/checkpoints",
        "stop_file": f"{now['output_dir']}/stop",
    }

"""Fills in the defaults that depend on other settings or on the world size, such as data_parallel_size.

What needs a file or a device stays None and is filled in later: `vocab_size` and `tokenizer_type` from the tokenizer,
`device` and `distributed_backend` from the machine. A number that cannot be derived because other settings are invalid
stays None, too; `laws.validate` reports which.
"""

from typing import Any

from megascratch.config.fields import flat, with_fields
from megascratch.config.layout import Layout
from megascratch.config.pipeline_split import FOLDED
from megascratch.config.settings import Config


def derive(config: Config, world_size: int) -> Config:
    """Fill in every None that follows from the other settings and the number of processes; never raises."""
    given = flat(config)
    filled = dict(given)
    for defaults in (_model, _parallel, _batch, _paths):
        for name, value in defaults(filled, world_size).items():
            if filled[name] is None:
                filled[name] = value
    return with_fields(
        config, {name: value for name, value in filled.items() if given[name] is None}
    )


def _model(now: dict[str, Any], world_size: int) -> dict[str, Any]:
    hidden = now["hidden_size"]
    heads = now["num_attention_heads"]
    width_of_head = hidden // heads if heads > 0 and hidden % heads == 0 else None
    # three matrices of width 8/3 h have as many weights as two of 4h; a multiple of 64 suits any usual tp
    width_with_gate = -(-8 * hidden // (3 * 64)) * 64
    return {
        "num_query_groups": heads,
        "kv_channels": width_of_head,
        "ffn_hidden_size": width_with_gate if now["swiglu"] else 4 * hidden,
        "max_position_embeddings": now["seq_length"],
    }


def _parallel(now: dict[str, Any], world_size: int) -> dict[str, Any]:
    pp = now["pipeline_model_parallel_size"]
    layout = now["pipeline_model_parallel_layout"]
    model_ranks = Layout(tp=now["tensor_model_parallel_size"], pp=pp).ranks_of_copy
    fits = model_ranks > 0 and world_size > 0 and world_size % model_ranks == 0
    if now["num_virtual_stages_per_pipeline_rank"]:
        chunks = now["num_virtual_stages_per_pipeline_rank"]
    elif now["pipeline_schedule"] in FOLDED:
        chunks = 2
    elif layout and pp > 0 and len(layout) % pp == 0:
        chunks = len(layout) // pp
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
        "distributed_backend": {"cpu": "gloo", "cuda": "nccl", None: None}[now["device"]],
    }


def _batch(now: dict[str, Any], world_size: int) -> dict[str, Any]:
    copies = now["data_parallel_size"]
    return {
        "global_batch_size": now["micro_batch_size"] * copies if copies else None,
        "lr_decay_iters": now["train_iters"],
        "lr_decay_samples": now["train_samples"],
    }


def _paths(now: dict[str, Any], world_size: int) -> dict[str, Any]:
    return {
        "split": "969,30,1" if now["data_path"] else None,
        "tensorboard_dir": f"{now['output_dir']}/tensorboard",
        "save": f"{now['output_dir']}/checkpoints",
        "stop_file": f"{now['output_dir']}/stop",
    }

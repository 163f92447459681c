"""The table of names that other tools have for settings: Megatron-LM, nanoGPT, Hugging Face, torchtitan, nanotron.

A row names the setting here and, where the value changes, says how; or it says that the thing is not there. See
`hints.py`, which reads it. Of an option of Megatron-LM a row is here only if it names a setting that is written in its
place; what else there is to say stands in `megatron/flags.csv`.
"""

from typing import NamedTuple


class Hint(NamedTuple):
    """A row of the table."""

    setting: str = ""
    """What the name means here; '': there is no such setting."""
    value: str = ""
    """The value of the setting that says the same: 'true', 'rope'; '': the value is kept, or `words` say how."""
    words: str = ""
    """How the value is converted; or why there is no such setting, and what to do instead."""


def _not_yet(what: str) -> Hint:
    return Hint(words=f"{what} not there yet (docs/limits.md)")


def _remove(why: str) -> Hint:
    return Hint(words=f"not needed, remove it: {why}")


_GLOBAL_BATCH = "it is micro_batch_size x accumulation steps x data parallel size"
_DTYPE = "fp16 is float16, and without either the run is in float32"
_PREFIX = "it names the .bin/.idx files that `megascratch preprocess` writes, without their suffix"
_RANKS = "the number of ranks is not a setting: start with --nproc-per-node N"
_NODES = "the number of machines is not a setting: start with --nnodes N"
_EPOCHS = "it is samples, so epochs x samples of the corpus"
_KERNELS = "the fastest kernels that the device has are used"
_CHECKPOINTS = "checkpoints have one format, which any layout can load"
_MOE = _not_yet("mixture of experts is")
_FP8 = _not_yet("FP8 is")
_CONTEXT = Hint("context_parallel_size")
_ZERO = Hint(
    "use_distributed_optimizer", "true", "it is ZeRO-1; ZeRO-2, ZeRO-3 and FSDP are not there"
)
_WANDB = Hint(
    "log_to", "wandb", "its other options are environment variables: WANDB_ENTITY, WANDB_DIR"
)
_TRACKERS = Hint(
    words="not there: log_to has wandb, trackio and otel, and metrics.jsonl is always written"
)
_PROFILE = Hint("profile", "true", "it records some steps with torch.profiler")
_GENERATION = Hint(words="not a setting of training: see `megascratch generate --help`")
_TOKENIZER = Hint(
    "tokenizer_model", words="it is the tokenizer's file, or the folder that contains it"
)
_ONE_MODEL = Hint(
    words="there is one Transformer: `megascratch init` lists configs of known models"
)
_SPECIAL_IDS = _remove("the tokenizer knows its special tokens")

_RENAMED = {
    # nanoGPT, minGPT, litgpt
    "n_layer": "num_layers",
    "n_layers": "num_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "n_query_groups": "num_query_groups",
    "block_size": "seq_length",
    "max_iters": "train_iters",
    "learning_rate": "lr",
    "max_lr": "lr",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "grad_clip": "clip_grad",
    "warmup_iters": "lr_warmup_iters",
    "out_dir": "output_dir",
    "backend": "distributed_backend",
    # Hugging Face: config.json, TrainingArguments, TRL
    "num_hidden_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "num_kv_heads": "num_query_groups",
    "n_kv_heads": "num_query_groups",
    "intermediate_size": "ffn_hidden_size",
    "n_inner": "ffn_hidden_size",
    "n_positions": "max_position_embeddings",
    "n_ctx": "max_position_embeddings",
    "head_dim": "kv_channels",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "layer_norm_epsilon": "norm_epsilon",
    "layernorm_epsilon": "norm_epsilon",
    "norm_eps": "norm_epsilon",
    "rope_theta": "rotary_base",
    "rope_base": "rotary_base",
    "partial_rotary_factor": "rotary_percent",
    "rope_percent": "rotary_percent",
    "initializer_range": "init_method_std",
    "init_std": "init_method_std",
    "hidden_dropout_prob": "hidden_dropout",
    "resid_pdrop": "hidden_dropout",
    "embd_pdrop": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "per_device_train_batch_size": "micro_batch_size",
    "max_steps": "train_iters",
    "warmup_steps": "lr_warmup_iters",
    "warmup_ratio": "lr_warmup_fraction",
    "lr_scheduler_type": "lr_decay_style",
    "adam_epsilon": "adam_eps",
    "max_grad_norm": "clip_grad",
    "logging_steps": "log_interval",
    "eval_steps": "eval_interval",
    "save_steps": "save_interval",
    "save_total_limit": "keep_last_n_checkpoints",
    "data_seed": "seed",
    "max_length": "seq_length",
    "max_seq_length": "seq_length",
    "model_max_length": "seq_length",
    "logging_dir": "tensorboard_dir",
    "torch_compile": "compile",
    # torchtitan, nanotron, DeepSpeed, OLMo
    "steps": "train_iters",
    "train_steps": "train_iters",
    "local_batch_size": "micro_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "device_train_microbatch_size": "micro_batch_size",
    "train_batch_size": "global_batch_size",
    "global_train_batch_size": "global_batch_size",
    "seq_len": "seq_length",
    "max_seq_len": "seq_length",
    "sequence_length": "seq_length",
    "max_sequence_length": "seq_length",
    "context_length": "seq_length",
    "context_size": "seq_length",
    "dim": "hidden_size",
    "d_model": "hidden_size",
    "model_dim": "hidden_size",
    "embed_dim": "hidden_size",
    "d_ff": "ffn_hidden_size",
    "ffn_dim": "ffn_hidden_size",
    "tp": "tensor_model_parallel_size",
    "tp_size": "tensor_model_parallel_size",
    "tensor_parallel": "tensor_model_parallel_size",
    "tensor_parallel_size": "tensor_model_parallel_size",
    "tensor_parallel_degree": "tensor_model_parallel_size",
    "model_parallel_size": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "pp_size": "pipeline_model_parallel_size",
    "pipeline_parallel": "pipeline_model_parallel_size",
    "pipeline_parallel_size": "pipeline_model_parallel_size",
    "pipeline_parallel_degree": "pipeline_model_parallel_size",
    "dp": "data_parallel_size",
    "dp_size": "data_parallel_size",
    "data_parallel": "data_parallel_size",
    "data_parallel_degree": "data_parallel_size",
    "data_parallel_replicate_degree": "data_parallel_size",
    "pp_engine": "pipeline_schedule",
    "pipeline_parallel_schedule": "pipeline_schedule",
    "gradient_clipping": "clip_grad",
    "max_norm": "clip_grad",
    "lr_warmup_steps": "lr_warmup_iters",
    "lr_decay_steps": "lr_decay_iters",
    "min_decay_lr": "min_lr",
    "checkpoint_interval": "save_interval",
    "checkpoints_path": "save",
    "val_check_interval": "eval_interval",
    "eps": "adam_eps",
    # what people write
    "wd": "weight_decay",
    "layers": "num_layers",
    "depth": "num_layers",
    "heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "ffn_size": "ffn_hidden_size",
    "iters": "train_iters",
    "iterations": "train_iters",
    "num_steps": "train_iters",
    "num_train_steps": "train_iters",
    "total_steps": "train_iters",
    "random_seed": "seed",
    "save_dir": "save",
    "ckpt_dir": "save",
    "checkpoint_dir": "save",
    "log_dir": "tensorboard_dir",
    "logdir": "tensorboard_dir",
    "vocabulary_size": "vocab_size",
    "n_vocab": "vocab_size",
    "save_every": "save_interval",
    "eval_every": "eval_interval",
    "log_every": "log_interval",
    "lr_scheduler": "lr_decay_style",
    "lr_schedule": "lr_decay_style",
    "scheduler": "lr_decay_style",
}
"""Name elsewhere -> setting with the same value."""

SYNONYMS: dict[str, Hint] = {name: Hint(setting) for name, setting in _RENAMED.items()} | {
    "warmup": Hint("lr_warmup_iters", words="or lr_warmup_fraction"),
    "batch_size": Hint("micro_batch_size", words="global_batch_size is that of all ranks"),
    "gradient_accumulation_steps": Hint("global_batch_size", words=_GLOBAL_BATCH),
    "accumulate_grad_batches": Hint("global_batch_size", words=_GLOBAL_BATCH),
    "batch_accumulation_per_replica": Hint("global_batch_size", words=_GLOBAL_BATCH),
    "dtype": Hint("bf16", "true", _DTYPE),
    "torch_dtype": Hint("bf16", "true", _DTYPE),
    "precision": Hint("bf16", "true", _DTYPE),
    "mixed_precision": Hint("bf16", "true", _DTYPE),
    "mixed_precision_param": Hint("bf16", "true", _DTYPE),
    "amp": Hint("bf16", "true", _DTYPE),
    "dropout": Hint("hidden_dropout", words="attention_dropout is a setting of its own"),
    "bias": Hint("add_bias_linear"),
    "decay_lr": Hint("lr_decay_style", "cosine", "constant keeps lr"),
    "betas": Hint("adam_beta1", words="adam_beta2 is the second one"),
    "momentum": Hint("adam_beta1", words="the optimizer is Adam"),
    "dataset": Hint("data_path", words=_PREFIX),
    "dataset_path": Hint("data_path", words=_PREFIX),
    "data_dir": Hint("data_path", words=_PREFIX),
    "train_data": Hint("train_data_path", words=_PREFIX),
    "train_file": Hint("train_data_path", words=_PREFIX),
    "validation_file": Hint("valid_data_path", words=_PREFIX),
    "data_args_path": Hint("data_path", words="it takes the weights and prefixes themselves"),
    "per_split_data_args_path": Hint(
        "train_data_path", words="so do valid_data_path and test_data_path"
    ),
    "init_from": Hint("load", words="auto_resume continues the run's own checkpoints"),
    "resume": Hint("auto_resume", "true"),
    "resume_from_checkpoint": Hint("load", words="auto_resume continues the run's own checkpoints"),
    "ckpt": Hint("load"),
    "ckpt_path": Hint("load"),
    "epochs": Hint("train_samples", words=_EPOCHS),
    "num_epochs": Hint("train_samples", words=_EPOCHS),
    "num_train_epochs": Hint("train_samples", words=_EPOCHS),
    "eval_only": Hint(words="to measure a checkpoint use `megascratch evaluate`"),
    "always_save_checkpoint": Hint("save_interval", words="it is in steps"),
    "load_best_model_at_end": Hint("keep_best_n_checkpoints", "1"),
    "tie_word_embeddings": Hint("untie_embeddings_and_output_weights", words="it is the opposite"),
    "tied_embeddings": Hint("untie_embeddings_and_output_weights", words="it is the opposite"),
    "hidden_act": Hint("swiglu", "true", "that is silu; openai_gelu is gelu_new, the default gelu"),
    "activation": Hint("activation_function"),
    "rope": Hint("position_embedding_type", "rope"),
    "use_rope": Hint("position_embedding_type", "rope"),
    "rmsnorm": Hint("normalization", "RMSNorm"),
    "use_rmsnorm": Hint("normalization", "RMSNorm"),
    "norm": Hint("normalization"),
    "norm_type": Hint("normalization"),
    "attention_bias": Hint("add_bias_linear", words="add_qkv_bias is for queries, keys and values"),
    "qkv_bias": Hint("add_qkv_bias"),
    "mlp_bias": Hint("add_bias_linear"),
    "group_query_attention": Hint("num_query_groups", words="to give it is enough"),
    "ffn_dim_multiplier": Hint("ffn_hidden_size", words="it is the width itself"),
    "gradient_checkpointing": Hint("recompute_granularity", "full"),
    "activation_checkpointing": Hint("recompute_granularity", "full"),
    "checkpoint_activations": Hint("recompute_granularity", "full"),
    "recompute_activations": Hint("recompute_granularity", "selective"),
    "num_layers_per_virtual_pipeline_stage": Hint(
        "num_virtual_stages_per_pipeline_rank",
        words="it is num_layers / pipeline_model_parallel_size / layers of a virtual stage",
    ),
    "fim_data": Hint("fim_rate", words="it is the share of rearranged documents"),
    "phase_transition_iterations": Hint("data_stages", words="it counts samples"),
    "tokenizer": _TOKENIZER,
    "tokenizer_path": _TOKENIZER,
    "tokenizer_name": _TOKENIZER,
    "tokenizer_name_or_path": _TOKENIZER,
    "yaml_cfg": Hint("config"),
    "config_file": Hint("config"),
    "config_path": Hint("config"),
    "config_name": Hint("config"),
    "run_name": Hint("output_dir", words="a run is named by its folder"),
    "exp_name": Hint("output_dir", words="a run is named by its folder"),
    "experiment": Hint("output_dir", words="a run is named by its folder"),
    "name": Hint("output_dir", words="a run is named by its folder"),
    "data_parallel_shard_degree": _ZERO,
    "zero_stage": _ZERO,
    "zero": _ZERO,
    "num_gpus": Hint(words=_RANKS),
    "gpus": Hint(words=_RANKS),
    "ngpu": Hint(words=_RANKS),
    "devices": Hint(words=_RANKS),
    "nproc": Hint(words=_RANKS),
    "world_size": Hint(words=_RANKS),
    "num_processes": Hint(words=_RANKS),
    "num_nodes": Hint(words=_NODES),
    "num_machines": Hint(words=_NODES),
    "dataloader_num_workers": _remove("one thread reads ahead (data_prefetch_steps)"),
    "per_device_eval_batch_size": _remove("validation uses micro_batch_size and global_batch_size"),
    "model_type": _ONE_MODEL,
    "model_name": _ONE_MODEL,
    "model_name_or_path": _ONE_MODEL,
    "architectures": _ONE_MODEL,
    "transformers_version": _ONE_MODEL,
    "bos_token_id": _SPECIAL_IDS,
    "eos_token_id": _SPECIAL_IDS,
    "pad_token_id": _SPECIAL_IDS,
    "use_cache": _GENERATION,
    "temperature": _GENERATION,
    "max_new_tokens": _GENERATION,
    "do_sample": _GENERATION,
    "report_to": Hint("log_to"),
    "wandb_project": Hint("log_project", words="with log_to wandb"),
    "wandb_exp_name": Hint("log_run", words="with log_to wandb"),
    "wandb_run_name": Hint("log_run", words="with log_to wandb"),
    "wandb_name": Hint("log_run", words="with log_to wandb"),
    # chooses an implementation, or always so
    "use_legacy_models": _remove("there is one implementation"),
    "attn_implementation": _remove(_KERNELS),
    "flash_attention": _remove(_KERNELS),
    "no_async_tensor_model_parallel_allreduce": _remove("it changes no result"),
    "dataloader_type": Hint(
        "data_order", words="keyed shuffles by seed, megatron is Megatron-LM's order"
    ),
    "distributed_timeout_seconds_after_init": Hint(
        "distributed_timeout_minutes", words="in minutes"
    ),
    # not there
    "context_parallel_degree": _CONTEXT,
    "cp": _CONTEXT,
    "num_local_experts": _MOE,
    "num_experts_per_tok": _MOE,
    "ep": _MOE,
    "qk_norm": Hint("qk_layernorm"),
    "rope_scaling": Hint("rope_scaling_type"),
    "rope_parameters": Hint("rope_scaling_type"),
    "rope_local_base_freq": Hint("rotary_base_windowed"),
    "layer_types": Hint("window_attn_skip_freq", words="1 for a layer with the window, 0 without"),
    "no_rope_layers": Hint("no_rope_freq", words="1 for a layer that does not rotate"),
    "use_qk_norm": Hint("qk_layernorm", "true"),
    "query_pre_attn_scalar": Hint("softmax_scale", words="it is 1 / its square root"),
    "attention_multiplier": Hint("softmax_scale"),
    "embedding_multiplier": Hint("embedding_scale"),
    "residual_multiplier": Hint("residual_scale"),
    "logits_scaling": Hint("logit_scale", words="it is 1 / that"),
    "swiglu_limit": Hint("activation_func_clamp_value"),
    "fsdp": _ZERO,
    "use_torch_fsdp2": _ZERO,
    "use_megatron_fsdp": _ZERO,
    "deepspeed": _ZERO,
    "push_to_hub": _not_yet("export to Hugging Face is"),
}
"""Name elsewhere -> what it means here."""

PREFIXES: dict[str, Hint] = {
    "moe_": _MOE,
    "expert_": _MOE,
    "fp8_": _FP8,
    "fp4_": _not_yet("FP4 is"),
    "wandb_": _WANDB,
    "mlflow_": _TRACKERS,
    "lora_": _not_yet("LoRA is"),
    "mtp_": _not_yet("prediction of several tokens is"),
    "mamba_": _not_yet("state-space layers are"),
    "muon_": _not_yet("the optimizer Muon is"),
    "profile_": _PROFILE,
    "fsdp_": _ZERO,
    "megatron_fsdp_": _ZERO,
    "dist_ckpt_": _remove(_CHECKPOINTS),
    "ckpt_": _remove(_CHECKPOINTS),
    "inference_": _GENERATION,
    "rl_": Hint(words="reinforcement learning is not there (docs/limits.md)"),
    "grpo_": Hint(words="reinforcement learning is not there (docs/limits.md)"),
    "yarn_": Hint(words="its settings begin with rope_: rope_scaling_type yarn"),
}
"""The beginning of names -> what they mean here, for groups of options."""

WHOLE = {
    "wandb": _WANDB,
    "mlflow": _TRACKERS,
    "trackio": Hint("log_to", "trackio"),
    "moe": _MOE,
    "fp8": _FP8,
    "lora": PREFIXES["lora_"],
}

"""Every setting of a training run, declared once in frozen dataclasses. Needs no torch.

The names are Megatron-LM's. Each one is unique across the sections, so the flag (``--kebab-case``), the YAML key and
the field have the same name. ``None`` means "derived": `resolve.derive` fills it in, `laws.validate` checks the config.

A declaration is ``name: type = setting(default, rule of a resume, range, needs=...)``, see `declare.py`; the docstring
below it is its help text.
"""

from dataclasses import dataclass, field
from typing import Literal

from megascratch.config.declare import Needs, differs, equals, setting
from megascratch.config.ranges import above, at_least, within
from megascratch.config.resume_effects import (
    FIXED_OPTIMIZER,
    FIXED_POSITIONS,
    FIXED_TENSORS,
    FREE_CHECKS,
    FREE_IMPORTS,
    FREE_LAYOUT,
    FREE_OUTPUT,
    FREE_START,
    FREE_STOP,
    FREE_VALIDATION,
    NOTICE_BATCH,
    NOTICE_LENGTH,
    NOTICE_STEPS,
    NOTICE_VALIDATION_TEXT,
    REFUSED_CORPUS,
    REFUSED_FUNCTION,
    REFUSED_ORDER,
    REFUSED_SEED,
    REFUSED_STAGES,
    REFUSED_TEXT,
    REFUSED_TOKENIZER,
)

LOGS_TO_A_TRACKER = Needs(
    "log_to",
    lambda sinks: bool({"wandb", "trackio", "otel"} & set(sinks or ())),
    "without log-to wandb, trackio or otel",
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the Transformer."""

    num_layers: int = setting(12, FIXED_TENSORS, at_least(1))
    """Number of Transformer blocks."""
    hidden_size: int = setting(768, FIXED_TENSORS, at_least(1))
    """Width of the residual stream."""
    num_attention_heads: int = setting(12, FIXED_TENSORS, at_least(1))
    """Number of query heads."""
    num_query_groups: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Number of key/value heads (grouped-query attention); default: one per query head."""
    kv_channels: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Width of one head; default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Width of the MLP; default: 4 x hidden_size, with swiglu 8/3 x rounded up to a multiple of 64."""
    max_position_embeddings: int | None = setting(None, FIXED_POSITIONS, at_least(1))
    """Rows of the learned position table; default: seq_length."""
    position_embedding_type: Literal["learned_absolute", "rope", "none"] = setting(
        "learned_absolute", FIXED_TENSORS
    )
    """How the position of a token enters the model."""
    rotary_base: float = setting(
        10000.0, REFUSED_FUNCTION, above(0), needs=equals("position_embedding_type", "rope")
    )
    """Base of the rotary frequencies."""
    rotary_percent: float = setting(
        1.0, REFUSED_FUNCTION, within("(0, 1]"), needs=equals("position_embedding_type", "rope")
    )
    """Fraction of each head that is rotated."""
    normalization: str = setting("LayerNorm", FIXED_TENSORS, names="norm")
    """Normalization layer."""
    norm_epsilon: float = setting(1e-5, REFUSED_FUNCTION, above(0))
    """Added to the variance inside the norm."""
    swiglu: bool = setting(False, FIXED_TENSORS)
    """Gated MLP: silu(gate) * up."""
    activation_function: str | None = setting(None, REFUSED_FUNCTION, names="activation")
    """The MLP's activation by name; default: the one of swiglu, squared_relu and openai_gelu that is given, or gelu."""
    squared_relu: bool = setting(False, REFUSED_FUNCTION)
    """relu(x)^2 as the MLP's activation."""
    openai_gelu: bool = setting(False, REFUSED_FUNCTION)
    """GELU in its tanh approximation, as in GPT-2 (default: exact GELU)."""
    mixers: list[str] | None = setting(None, FIXED_TENSORS, names="mixer")
    """The kind of each layer's mixer, repeated over the layers: `attention shift` alternates; default: attention."""
    feed_forwards: list[str] | None = setting(None, FIXED_TENSORS, names="feed_forward")
    """The kind of each layer's feed-forward, repeated over the layers in the same way; default: mlp."""
    layer_options: list[str] | None = setting(None, REFUSED_FUNCTION)
    """NAME=VALUE for the norm, activation, mixers and feed-forwards that you registered: their keyword parameters."""
    add_bias_linear: bool = setting(True, FIXED_TENSORS)
    """Biases on every linear layer and every LayerNorm."""
    add_qkv_bias: bool = setting(False, FIXED_TENSORS)
    """Biases on the query/key/value projection only."""
    untie_embeddings_and_output_weights: bool = setting(False, FIXED_TENSORS)
    """Use a separate output matrix instead of sharing the word embedding."""
    hidden_dropout: float = setting(0.1, NOTICE_STEPS, within("[0, 1)"))
    """Dropout on the embedding and on both residual branches."""
    attention_dropout: float = setting(0.1, NOTICE_STEPS, within("[0, 1)"))
    """Dropout on the attention weights."""
    init_method_std: float = setting(0.02, FREE_START, above(0))
    """Standard deviation of the initial weights; projections into the residual stream get std / sqrt(2 num_layers)."""
    vocab_size: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Size of the vocabulary without padding; default: taken from the tokenizer."""
    make_vocab_size_divisible_by: int = setting(128, FREE_LAYOUT, at_least(1))
    """The embedding table is padded to a multiple of this x tensor_model_parallel_size; no result depends on it."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the computation is distributed and ordered; nothing here changes the model."""

    tensor_model_parallel_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Ranks that share each layer."""
    pipeline_model_parallel_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Pipeline stages that the layers are divided into."""
    data_parallel_size: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """Copies of the model; default: world size / (tensor x pipeline)."""
    sequence_parallel: bool = setting(
        False, FREE_LAYOUT, needs=differs("tensor_model_parallel_size", 1)
    )
    """Split norms, dropout and residuals along the sequence over the tensor-parallel ranks."""
    pipeline_schedule: str | None = setting(None, FREE_LAYOUT, names="schedule")
    """Order of forwards and backwards; default: 1f1b, interleaved (virtual stages) or csv (pipeline_schedule_csv)."""
    pipeline_schedule_csv: str | None = setting(None, FREE_LAYOUT)
    """File with your own schedule: one row per stage, in the notation of torch.distributed.pipelining."""
    num_virtual_stages_per_pipeline_rank: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """Model chunks per rank; default: 2 with zb_v and dualpipe_v, else from pipeline_model_parallel_layout, else 1."""
    microbatch_group_size_per_virtual_pipeline_stage: int | None = setting(
        None, FREE_LAYOUT, at_least(1)
    )
    """Micro-batches that run through one chunk before the next chunk starts; default: the number of stages."""
    decoder_first_pipeline_num_layers: int | None = setting(None, FREE_LAYOUT)
    """Layers on the first stage; default: all stages have the same number."""
    decoder_last_pipeline_num_layers: int | None = setting(None, FREE_LAYOUT)
    """Layers on the last stage; default: all stages have the same number."""
    pipeline_model_parallel_layout: list[int] | None = setting(None, FREE_LAYOUT)
    """The number of layers of each virtual stage, in model order."""
    use_distributed_optimizer: bool = setting(
        False, FREE_LAYOUT, needs=differs("data_parallel_size", 1, "with one data-parallel rank")
    )
    """ZeRO-1: shard fp32 master weights and moments over the data-parallel ranks."""
    optimizer_cpu_offload: bool = setting(False, FREE_LAYOUT)
    """Keep master weights and moments in host memory and run the optimizer's step there."""
    optimizer_offload_fraction: float = setting(
        1.0, FREE_LAYOUT, within("(0, 1]"), needs=equals("optimizer_cpu_offload", True)
    )
    """With optimizer_cpu_offload: the fraction of the optimizer state to offload, rounded to whole buckets."""
    overlap_grad_reduce: bool = setting(True, FREE_LAYOUT)
    """Start each gradient bucket's reduction while backward still runs."""
    overlap_param_gather: bool = setting(
        True, FREE_LAYOUT, needs=equals("use_distributed_optimizer", True)
    )
    """With use_distributed_optimizer: gather updated weights during the next forward."""
    ddp_bucket_size: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """Elements per gradient bucket; default: an eighth of a rank's parameters, see data_parallel/bucket_layout.py."""
    recompute_granularity: Literal["none", "selective", "full"] = setting("none", FREE_LAYOUT)
    """What backward recomputes instead of storing: nothing, the attention core (selective), or whole layers (full)."""
    recompute_method: Literal["uniform", "block"] | None = setting(None, FREE_LAYOUT)
    """With full: recompute all layers in uniform groups, or only the first layers of each chunk; default: uniform."""
    recompute_num_layers: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """With full: layers per group (uniform) or per chunk (block); default: 1."""
    distributed_backend: Literal["gloo", "nccl"] | None = setting(None, FREE_LAYOUT)
    """Communication library; default: nccl on cuda, gloo on cpu. With gloo, ranks may share a CUDA device (slow)."""
    distributed_timeout_minutes: float = setting(10.0, FREE_LAYOUT, above(0))
    """A communication that takes longer ends the run with a message that names the operation that hung."""
    start_timeout_minutes: float | None = setting(None, FREE_LAYOUT, above(0))
    """How long ranks wait for each other before the process groups are made; default: distributed_timeout_minutes."""
    load_timeout_minutes: float | None = setting(None, FREE_LAYOUT, above(0))
    """How long ranks wait for each other to load or save a checkpoint; default: distributed_timeout_minutes."""


@dataclass(frozen=True)
class DataConfig:
    """What the model is trained on, and in which order."""

    data_path: list[str] | None = setting(None, REFUSED_CORPUS)
    """Prefixes of .bin/.idx pairs, or a blend: weight prefix weight prefix ..."""
    train_data_path: list[str] | None = setting(None, REFUSED_CORPUS)
    """Like data_path, for training only (then do not give data_path and split)."""
    valid_data_path: list[str] | None = setting(None, NOTICE_VALIDATION_TEXT)
    """Like data_path, for validation only."""
    test_data_path: list[str] | None = setting(None, NOTICE_VALIDATION_TEXT)
    """Like data_path, for the test set only."""
    data_stages: list[str] | None = setting(None, REFUSED_STAGES)
    """Blends that take over from a given sample: "SAMPLE weight prefix ...", one string per stage, in rising order."""
    split: str | None = setting(None, REFUSED_ORDER)
    """Proportions of train, validation and test in data_path; default: 969,30,1."""
    mock_data: bool = setting(False, REFUSED_ORDER)
    """Train on synthetic documents instead of files."""
    data_cache_path: str | None = setting(None, FREE_LAYOUT, needs=differs("mock_data", True))
    """Folder of the index cache; default: a folder `cache` next to the data."""
    data_order: str = setting("keyed", REFUSED_ORDER, names="data_order")
    """Order of the samples: keyed depends only on files and seed; megatron is Megatron-LM's order, which also depends
    on the number of samples requested (so keep train_iters to compare a run with one of Megatron-LM)."""
    packing: Literal["concatenate", "best-fit"] = setting("concatenate", REFUSED_ORDER)
    """How documents become samples: concatenated and cut, or packed so that no document is cut that fits in one."""
    fim_rate: float = setting(0.0, REFUSED_TEXT, within("[0, 1]"))
    """Fill-in-the-middle: fraction of the training documents that is rearranged as prefix, suffix, middle; 0: none."""
    fim_spm_rate: float = setting(0.5, REFUSED_TEXT, within("[0, 1]"), needs=differs("fim_rate", 0))
    """Fraction of the rearranged documents whose suffix comes first."""
    fim_prefix_id: int | None = setting(None, REFUSED_TEXT, at_least(0))
    """Token id that marks the prefix."""
    fim_middle_id: int | None = setting(None, REFUSED_TEXT, at_least(0))
    """Token id that marks the middle."""
    fim_suffix_id: int | None = setting(None, REFUSED_TEXT, at_least(0))
    """Token id that marks the suffix."""
    data_prefetch_steps: int = setting(2, FREE_LAYOUT, at_least(0))
    """How many steps ahead a background thread reads batches; 0: no thread."""
    seq_length: int = setting(1024, REFUSED_ORDER, at_least(1))
    """Tokens per sample."""
    reset_position_ids: bool = setting(False, REFUSED_TEXT)
    """Restart positions at 0 after each end of document."""
    reset_attention_mask: bool = setting(False, REFUSED_TEXT)
    """Tokens attend only to tokens of their own document."""
    eod_mask_loss: bool = setting(False, REFUSED_TEXT)
    """Leave out the loss where the input token is the end of a document."""
    tokenizer_type: str | None = setting(None, REFUSED_TOKENIZER, names="tokenizer")
    """Kind of tokenizer; default: detected from the content of tokenizer_model."""
    tokenizer_model: str | None = setting(None, REFUSED_TOKENIZER)
    """The tokenizer's file, or the folder that contains it."""


@dataclass(frozen=True)
class OptimConfig:
    """Learning rate, optimizer and precision."""

    optimizer: str = setting("adam", FIXED_OPTIMIZER, names="optimizer")
    """The rule by which weights are updated: adam is AdamW, with Megatron-LM's name for it."""
    optimizer_options: list[str] | None = setting(None, NOTICE_STEPS)
    """NAME=VALUE for the optimizer and the learning-rate curve that you registered: their keyword parameters."""
    lr: float = setting(3e-4, NOTICE_STEPS, at_least(0))
    """Highest learning rate."""
    min_lr: float = setting(
        0.0, NOTICE_STEPS, at_least(0), needs=differs("lr_decay_style", "constant")
    )
    """Lowest learning rate after warm-up."""
    lr_decay_style: str = setting("linear", NOTICE_STEPS, names="lr_curve")
    """Shape of the decay."""
    lr_decay_iters: int | None = setting(None, NOTICE_STEPS, at_least(1))
    """Steps until min_lr; default: train_iters."""
    lr_decay_samples: int | None = setting(None, NOTICE_STEPS, at_least(1))
    """The same in samples, for runs whose length is given by train_samples."""
    lr_warmup_iters: int = setting(0, NOTICE_STEPS, at_least(0))
    """Steps of linear warm-up."""
    lr_warmup_samples: int = setting(0, NOTICE_STEPS, at_least(0))
    """The same in samples."""
    lr_warmup_fraction: float | None = setting(None, NOTICE_STEPS, within("[0, 1)"))
    """The same as a fraction of the decay length."""
    lr_warmup_init: float = setting(0.0, NOTICE_STEPS, at_least(0))
    """Learning rate at step 0 of the warm-up."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = setting(
        "exponential", NOTICE_STEPS, needs=equals("lr_decay_style", "WSD")
    )
    """Shape of WSD's last phase."""
    lr_wsd_decay_iters: int | None = setting(None, NOTICE_STEPS, at_least(1))
    """Length of WSD's last phase in steps."""
    lr_wsd_decay_samples: int | None = setting(None, NOTICE_STEPS, at_least(1))
    """The same in samples."""
    weight_decay: float = setting(0.01, NOTICE_STEPS, at_least(0))
    """Decoupled weight decay, applied to matrices and never to norms and biases."""
    adam_beta1: float = setting(0.9, NOTICE_STEPS, within("[0, 1)"))
    """Decay rate of Adam's first moment."""
    adam_beta2: float = setting(0.999, NOTICE_STEPS, within("[0, 1)"))
    """Decay rate of Adam's second moment."""
    adam_eps: float = setting(1e-8, NOTICE_STEPS, above(0))
    """Added to the square root of the second moment."""
    clip_grad: float = setting(1.0, NOTICE_STEPS, at_least(0))
    """Clip the global gradient norm to this; 0: no clipping."""
    bf16: bool = setting(False, FIXED_TENSORS)
    """Weights and activations in bfloat16, master weights and gradients in fp32."""
    fp16: bool = setting(False, FIXED_TENSORS)
    """Weights and activations in float16 with a loss scale, master weights and gradients in fp32."""
    fp64: bool = setting(False, FIXED_TENSORS)
    """Everything in float64 (to verify layouts)."""
    loss_scale: float | None = setting(None, NOTICE_STEPS, above(0))
    """Constant fp16 loss scale; default: dynamic."""
    initial_loss_scale: float = setting(2.0**32, FREE_START, above(0))
    """Initial value of the dynamic loss scale."""
    min_loss_scale: float = setting(1.0, NOTICE_STEPS, above(0))
    """Smallest value of the dynamic loss scale."""
    loss_scale_window: int = setting(1000, NOTICE_STEPS, at_least(1))
    """Steps without overflow before the loss scale doubles."""
    hysteresis: int = setting(2, NOTICE_STEPS, at_least(1))
    """Steps with overflow before the loss scale halves."""


@dataclass(frozen=True)
class TrainingConfig:
    """Length and batch size of the run, validation, logging and checkpoints."""

    micro_batch_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Sequences per forward pass."""
    global_batch_size: int | None = setting(None, NOTICE_BATCH, at_least(1))
    """Sequences per step over all ranks; default: micro_batch_size x data_parallel_size."""
    rampup_batch_size: list[int] | None = setting(None, NOTICE_BATCH)
    """START INCREMENT SAMPLES: grow the global batch from START in steps of INCREMENT over that many samples."""
    imports: list[str] | None = setting(None, FREE_IMPORTS)
    """Python files or modules, run first in every process, that register layers, schedules and so on of your own; also
    --import."""
    train_iters: int | None = setting(None, NOTICE_LENGTH, at_least(1))
    """Number of steps to train."""
    train_samples: int | None = setting(None, NOTICE_LENGTH, at_least(1))
    """Number of samples to train on, instead of train_iters."""
    seed: int = setting(1234, REFUSED_SEED, at_least(0))
    """Seed of initial weights, data order and dropout."""
    eval_interval: int = setting(1000, FREE_VALIDATION, at_least(0))
    """Steps between validations; 0: never."""
    eval_iters: int = setting(100, FREE_VALIDATION, at_least(1))
    """Global batches per validation."""
    log_interval: int = setting(10, FREE_OUTPUT, at_least(1))
    """Steps between log lines."""
    output_dir: str = setting("runs/default", FREE_OUTPUT)
    """Folder of the run: settings, command, log, metrics, curves, summary and checkpoints."""
    log_to: list[str] | None = setting(None, FREE_OUTPUT, names="sink")
    """Where the numbers of the run go in addition to metrics.jsonl, one or several; default: tensorboard."""
    log_project: str = setting("megascratch", FREE_OUTPUT, needs=LOGS_TO_A_TRACKER)
    """The project of the run in Weights & Biases, trackio or OpenTelemetry."""
    log_run: str | None = setting(None, FREE_OUTPUT, needs=LOGS_TO_A_TRACKER)
    """The name of the run there; default: the name of output_dir."""
    tensorboard_dir: str | None = setting(None, FREE_OUTPUT)
    """Folder for TensorBoard events; default: {output_dir}/tensorboard."""
    save: str | None = setting(None, FREE_OUTPUT)
    """Folder for checkpoints, also in object storage (s3://bucket/run); default: {output_dir}/checkpoints."""
    save_interval: int = setting(0, FREE_OUTPUT, at_least(0))
    """Steps between checkpoints; 0: only at the end."""
    async_save: bool = setting(
        True,
        FREE_OUTPUT,
        needs=differs(
            "save_interval",
            0,
            "with save-interval 0: no training runs while the only checkpoint is written",
        ),
    )
    """Write checkpoints in the background: training pauses only while its state is copied to host memory."""
    exit_on_save_error: bool = setting(False, FREE_OUTPUT)
    """End the run when a checkpoint cannot be written; default: warn, continue, and try again at the next save."""
    keep_last_n_checkpoints: int | None = setting(None, FREE_OUTPUT, at_least(1))
    """Keep this many of the newest checkpoints, delete older ones; default: all, or 1 with either setting below."""
    save_retain_interval: int | None = setting(None, FREE_OUTPUT, at_least(1))
    """Keep checkpoints whose step is a multiple of this; delete the others except the newest."""
    keep_best_n_checkpoints: int | None = setting(None, FREE_OUTPUT, at_least(1))
    """Keep this many checkpoints with the lowest validation loss; delete the others except the newest."""
    load: str | None = setting(None, FREE_OUTPUT)
    """Checkpoint to resume from: one step, or the newest valid one of a folder of steps or a run. It must exist."""
    auto_resume: bool = setting(False, FREE_OUTPUT)
    """Resume from the newest checkpoint in save; if there is none yet, start from load, or from scratch."""
    exit_interval: int | None = setting(None, FREE_STOP, at_least(1))
    """Save and stop at the next step that is a multiple of this (exit code 80)."""
    exit_duration_in_mins: float | None = setting(None, FREE_STOP, above(0))
    """Save and stop at the first step that ends this many minutes after training began (exit code 81)."""
    stop_file: str | None = setting(None, FREE_STOP)
    """Save and stop when this file appears (exit code 82), and remove it; default: {output_dir}/stop."""
    device: Literal["cpu", "cuda", "mps"] | None = setting(None, FREE_LAYOUT)
    """Device to train on; mps is the GPU of a Mac, for one process; default: cuda if available, else cpu."""
    trace_schedule: bool = setting(False, FREE_OUTPUT)
    """Time the pipeline of one step, draw it next to its prediction: {output_dir}/schedule_step_N.svg, .csv, .json."""
    trace_schedule_step: int | None = setting(
        None, FREE_OUTPUT, at_least(1), needs=equals("trace_schedule", True)
    )
    """With trace_schedule: the step to trace; default: the fifth of this run, or the last if it is shorter."""
    compile: bool = setting(False, FREE_LAYOUT)
    """torch.compile each block."""


@dataclass(frozen=True)
class GuardConfig:
    """Checks during training, and what happens when one fails."""

    force_resume: list[str] | None = setting(
        None, FREE_CHECKS, needs=differs("load", None, "without load")
    )
    """Settings to change although a resume refuses it (also: data_files, tokenizer); see --print-resume-rules."""
    check_for_nan_in_loss_and_grad: bool = setting(True, FREE_CHECKS)
    """Treat a NaN or infinite loss or gradient norm as a bad step; if off, it reaches the weights (fp16 skips it)."""
    check_for_spiky_loss: bool = setting(False, FREE_CHECKS)
    """Treat a loss above spiky_loss_factor x the median of recent good losses as a bad step."""
    spiky_loss_factor: float = setting(
        2.0, FREE_CHECKS, at_least(1), needs=equals("check_for_spiky_loss", True)
    )
    """A loss above this x the median is a spike."""
    spiky_loss_window: int = setting(
        50, FREE_CHECKS, at_least(1), needs=equals("check_for_spiky_loss", True)
    )
    """Number of recent good losses for the median; no loss counts as a spike before there are this many."""
    on_bad_step: Literal["stop", "skip", "rollback"] = setting("stop", FREE_CHECKS)
    """On a bad step: end the run (stop), do not apply the step (skip), or return to the last checkpoint and leave out
    the samples since then (rollback)."""
    max_bad_steps: int = setting(10, FREE_CHECKS, at_least(1), needs=differs("on_bad_step", "stop"))
    """With skip or rollback: end the run after this many bad steps in a row (or rollbacks to one checkpoint)."""
    check_replicas_every: int = setting(0, FREE_CHECKS, at_least(0))
    """Steps between bit-by-bit comparisons of all replicas of weights and optimizer state; 0: never."""
    log_straggler: bool = setting(True, FREE_CHECKS)
    """Report a rank that is slower than its peers for several log intervals, and what it is slow at."""
    straggler_factor: float = setting(
        1.5, FREE_CHECKS, at_least(1), needs=equals("log_straggler", True)
    )
    """A rank is a straggler if it takes more than this x the median of its peers."""
    straggler_intervals: int = setting(
        3, FREE_CHECKS, at_least(1), needs=equals("log_straggler", True)
    )
    """Log intervals in a row before a straggler is reported."""


@dataclass(frozen=True)
class Config:
    """All sections. Functions take only the section that they need."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

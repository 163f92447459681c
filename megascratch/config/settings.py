"""Every setting, as frozen records: plain values in, plain values out, no torch.

Names are Megatron-LM's, unique across the sections, so that the flag (``--kebab-case``), the YAML key
and the field are one word. ``None`` means "derived": `laws.derive` fills it, `laws.validate` checks the whole.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the Transformer."""

    num_layers: int = 12
    """Transformer blocks."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_attention_heads: int = 12
    """Query heads."""
    num_query_groups: int | None = None
    """Key/value heads (grouped-query attention); default: one per query head."""
    kv_channels: int | None = None
    """Width of one head; default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = None
    """Width of the MLP; default: 4 x hidden_size, with swiglu 8/3 x rounded up to a multiple of 64."""
    max_position_embeddings: int | None = None
    """Rows of the learned position table; default: seq_length."""
    position_embedding_type: Literal["learned_absolute", "rope", "none"] = "learned_absolute"
    """How a token knows its place."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    rotary_percent: float = 1.0
    """Part of each head that is rotated."""
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    """Which norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside the norm."""
    swiglu: bool = False
    """Gated MLP: silu(gate) * up."""
    squared_relu: bool = False
    """MLP with relu(x)^2."""
    openai_gelu: bool = False
    """GELU by its tanh approximation, as GPT-2 has it (default: exact GELU)."""
    add_bias_linear: bool = True
    """Biases on every linear layer and every LayerNorm."""
    add_qkv_bias: bool = False
    """Biases on the query/key/value projection alone."""
    untie_embeddings_and_output_weights: bool = False
    """A separate output matrix instead of the word embedding's."""
    hidden_dropout: float = 0.1
    """Dropout on the embedding and on both residual branches."""
    attention_dropout: float = 0.1
    """Dropout on the attention weights."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights; projections into the residual stream get std / sqrt(2 num_layers)."""
    vocab_size: int | None = None
    """Size of the vocabulary without padding; default: the tokenizer's."""
    make_vocab_size_divisible_by: int = 128
    """The embedding table is padded to a multiple of this times tensor_model_parallel_size, unseen by the model."""


@dataclass(frozen=True)
class ParallelConfig:
    """Where and when arithmetic happens; nothing here changes the model."""

    tensor_model_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: int = 1
    """Stages of layers."""
    data_parallel_size: int | None = None
    """Copies of the model; default: world size / (tensor x pipeline)."""
    sequence_parallel: bool = False
    """Norms, dropout and residuals are cut along the sequence over the tensor axis."""
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "dualpipe_v", "csv"] | None = (
        None
    )
    """Order of forwards and backwards; default: 1f1b, or interleaved with virtual stages, or csv with a file for it."""
    pipeline_schedule_csv: str | None = None
    """A schedule of your own: one row per stage, in the notation of torch.distributed.pipelining."""
    num_virtual_stages_per_pipeline_rank: int | None = None
    """Model chunks per rank; default: as pipeline_model_parallel_layout tells, 2 with zb_v and dualpipe_v, else 1."""
    microbatch_group_size_per_virtual_pipeline_stage: int | None = None
    """Micro-batches that run through one chunk before the next chunk; default: the number of stages."""
    decoder_first_pipeline_num_layers: int | None = None
    """Layers on the first stage; default: an even cut."""
    decoder_last_pipeline_num_layers: int | None = None
    """Layers on the last stage; default: an even cut."""
    pipeline_model_parallel_layout: list[int] | None = None
    """Explicit cut: the number of layers of each virtual stage, in model order."""
    use_distributed_optimizer: bool = False
    """ZeRO-1: fp32 master weights and moments sharded over the data-parallel ranks."""
    optimizer_cpu_offload: bool = False
    """Master weights and moments live in host memory, and the optimizer's step runs there."""
    optimizer_offload_fraction: float = 1.0
    """With optimizer_cpu_offload: about this part of them, in whole buckets."""
    overlap_grad_reduce: bool = True
    """Start each gradient bucket's reduction while backward still runs."""
    overlap_param_gather: bool = True
    """With use_distributed_optimizer: gather updated weights while the next forward already runs."""
    ddp_bucket_size: int | None = None
    """Elements per gradient bucket; default: an eighth of a rank's, see data_parallel/bucket_layout.py."""
    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of keeping it: nothing, the core of attention, or whole layers."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With full: uniform units of layers, or the first layers of each chunk as a block; default: uniform."""
    recompute_num_layers: int | None = None
    """With full: layers per unit (uniform) or per chunk (block); default: 1."""
    distributed_backend: Literal["gloo", "nccl"] | None = None
    """Communication library; default: nccl on cuda, gloo on cpu. With gloo ranks may share a CUDA device (slowly)."""
    distributed_timeout_minutes: float = 10.0
    """A communication that waits longer than this ends the run with the name of what hung."""


@dataclass(frozen=True)
class DataConfig:
    """What the model reads, and in which order."""

    data_path: list[str] | None = None
    """Prefixes of .bin/.idx pairs, or weight prefix weight prefix ..."""
    train_data_path: list[str] | None = None
    """As data_path, for training alone (then data_path and split are not given)."""
    valid_data_path: list[str] | None = None
    """As data_path, for validation alone."""
    test_data_path: list[str] | None = None
    """As data_path, for the test alone."""
    data_stages: list[str] | None = None
    """Another blend from a sample on: "SAMPLE weight prefix weight prefix ...", one text per stage, samples rising."""
    split: str | None = None
    """Shares of train, validation and test in data_path; default: 969,30,1."""
    mock_data: bool = False
    """Synthetic documents instead of files."""
    data_cache_path: str | None = None
    """Folder of the index cache; default: a folder `cache` beside the data."""
    data_order: Literal["keyed", "megatron"] = "keyed"
    """Which sample comes when: keyed depends on files and seed alone; megatron is Megatron-LM's order, which depends
    on the number of samples asked for, too (so keep train_iters when a run is moved over)."""
    packing: Literal["concatenate", "best-fit"] = "concatenate"
    """How documents become samples: laid end to end and cut, or packed whole, none cut that would fit."""
    fim_rate: float = 0.0
    """Fill-in-the-middle: part of the documents that training reads as prefix, suffix, middle; 0: none."""
    fim_spm_rate: float = 0.5
    """Part of those whose suffix comes first."""
    fim_prefix_id: int | None = None
    """Id in front of a prefix."""
    fim_middle_id: int | None = None
    """Id in front of a middle."""
    fim_suffix_id: int | None = None
    """Id in front of a suffix."""
    data_prefetch_steps: int = 2
    """Steps whose batches a background thread reads ahead; 0: none."""
    seq_length: int = 1024
    """Tokens per sample."""
    reset_position_ids: bool = False
    """Positions start again at 0 after each end of document."""
    reset_attention_mask: bool = False
    """Attention stops at document boundaries."""
    eod_mask_loss: bool = False
    """No loss where the input token is the end of a document."""
    tokenizer_type: (
        Literal[
            "SentencePieceTokenizer",
            "HuggingFaceTokenizer",
            "GPT2BPETokenizer",
            "TikTokenizer",
            "CharTokenizer",
            "GPTSentencePieceTokenizer",
            "Llama2Tokenizer",
            "ByteTokenizer",
            "NullTokenizer",
        ]
        | None
    ) = None
    """Which tokenizer; default: told by tokenizer_model's content."""
    tokenizer_model: str | None = None
    """The tokenizer's file, or a folder that holds it."""


@dataclass(frozen=True)
class OptimConfig:
    """How weights move."""

    lr: float = 3e-4
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate after warm-up."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "linear"
    """Shape of the decay."""
    lr_decay_iters: int | None = None
    """Steps until min_lr; default: train_iters."""
    lr_decay_samples: int | None = None
    """The same in samples, for runs measured in samples."""
    lr_warmup_iters: int = 0
    """Steps of linear warm-up."""
    lr_warmup_samples: int = 0
    """The same in samples."""
    lr_warmup_fraction: float | None = None
    """The same as a part of the decay length."""
    lr_warmup_init: float = 0.0
    """Learning rate at step 0 of the warm-up."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "exponential"
    """Shape of WSD's last phase."""
    lr_wsd_decay_iters: int | None = None
    """Length of WSD's last phase in steps."""
    lr_wsd_decay_samples: int | None = None
    """The same in samples."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices (never of norms and biases)."""
    adam_beta1: float = 0.9
    """First moment's memory."""
    adam_beta2: float = 0.999
    """Second moment's memory."""
    adam_eps: float = 1e-8
    """Added to the square root of the second moment."""
    clip_grad: float = 1.0
    """Highest global gradient norm; 0: no clipping."""
    bf16: bool = False
    """Weights and activations in bfloat16, masters and gradients in fp32."""
    fp16: bool = False
    """Weights and activations in float16 with a loss scale, masters and gradients in fp32."""
    fp64: bool = False
    """Everything in float64 (for proofs)."""
    loss_scale: float | None = None
    """Constant fp16 loss scale; default: dynamic."""
    initial_loss_scale: float = 2.0**32
    """Dynamic loss scale at the start."""
    min_loss_scale: float = 1.0
    """Floor of the dynamic loss scale."""
    loss_scale_window: int = 1000
    """Clean steps before the loss scale doubles."""
    hysteresis: int = 2
    """Overflowing steps before the loss scale halves."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how large, and what is kept."""

    micro_batch_size: int = 1
    """Sequences in one forward."""
    global_batch_size: int | None = None
    """Sequences in one step over all ranks; default: micro_batch_size x data parallel size."""
    rampup_batch_size: list[int] | None = None
    """start, increment, samples: the global batch grows from start by increment over that many samples."""
    train_iters: int | None = None
    """Steps to train."""
    train_samples: int | None = None
    """Samples to train, instead of train_iters."""
    seed: int = 1234
    """Decides initial weights, data order and dropout."""
    eval_interval: int = 1000
    """Steps between validations; 0: never."""
    eval_iters: int = 100
    """Global batches in one validation."""
    log_interval: int = 10
    """Steps between log lines."""
    output_dir: str = "runs/default"
    """Folder of metrics.jsonl, TensorBoard events, loss.png and summary.json."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard events; default: {output_dir}/tensorboard."""
    save: str | None = None
    """Folder of checkpoints, also in object storage (s3://bucket/run); default: {output_dir}/checkpoints."""
    save_interval: int = 0
    """Steps between checkpoints; 0: only at the end."""
    async_save: bool = True
    """Write checkpoints beside training, which then stands still only while its state is copied to host memory."""
    exit_on_save_error: bool = False
    """End the run when a checkpoint cannot be written; default: warn, go on, and try again at the next one."""
    keep_last_n_checkpoints: int | None = None
    """Delete all but the newest so many; default: keep all, or with one of the two below only the newest besides."""
    save_retain_interval: int | None = None
    """Keep the checkpoints of steps that are multiples of this, and delete the others but the newest."""
    keep_best_n_checkpoints: int | None = None
    """Keep so many with the lowest validation loss, and delete the others but the newest."""
    load: str | None = None
    """Folder of checkpoints to go on from (the newest sound step in it), or one step; a missing one is an error."""
    auto_resume: bool = False
    """Go on from the newest checkpoint in save; where there is none yet, begin as load says, or anew."""
    exit_interval: int | None = None
    """Save and stop after each multiple of so many steps (exit code 80)."""
    exit_duration_in_mins: float | None = None
    """Save and stop at the first step that ends so many minutes after training began (exit code 81)."""
    stop_file: str | None = None
    """Save and stop when this file appears (exit code 82), and remove it; default: {output_dir}/stop."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; default: cuda if there is one."""
    trace_schedule: bool = False
    """Time one step's pipeline and draw it beside its prediction: {output_dir}/schedule_step_N.svg, .csv and .json."""
    trace_schedule_step: int | None = None
    """With trace_schedule: which step; default: the fifth of this run, or its last if it is shorter."""
    compile: bool = False
    """torch.compile each block."""


@dataclass(frozen=True)
class GuardConfig:
    """What is watched, and what happens when it goes wrong."""

    force_resume: list[str] | None = None
    """Settings that may change although a resume refuses it (also: data_files, tokenizer); see --print-resume-rules."""
    check_for_nan_in_loss_and_grad: bool = True
    """A loss or gradient norm that is not finite makes a bad step; without, the weights take it (fp16 skips it)."""
    check_for_spiky_loss: bool = False
    """A loss above spiky_loss_factor x the median of the last good ones makes a bad step."""
    spiky_loss_factor: float = 2.0
    """How far above the median a loss is a spike."""
    spiky_loss_window: int = 50
    """Good losses that the median is taken of; nothing is judged before so many are there."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """A bad step ends the run, is not applied, or sends the run back to its last checkpoint and past the samples since
    then."""
    max_bad_steps: int = 10
    """So many bad steps in a row (or rollbacks to one checkpoint) end the run all the same."""
    check_replicas_every: int = 0
    """Steps between comparisons of everything that several ranks hold copies of, to the bit; 0: never."""
    log_straggler: bool = True
    """Name a rank that is slower than its peers for several log intervals, and in what."""
    straggler_factor: float = 1.5
    """How much slower than the median of its peers a rank is a straggler."""
    straggler_intervals: int = 3
    """For how many log intervals in a row."""


@dataclass(frozen=True)
class Config:
    """All sections. Functions take the section they need, never the whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

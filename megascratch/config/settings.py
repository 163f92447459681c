"""Every setting of a training run, declared once in frozen dataclasses. Needs no torch.

The names are Megatron-LM's. Each one is unique across the sections, so the flag (``--kebab-case``), the YAML key and
the field have the same name. ``None`` means "derived": `resolve.derive` fills it in, `laws.validate` checks the config.

A declaration is ``name: type = setting(default, rule of a resume, range, needs=...)``, see `declare.py`; the docstring
below it is its help text.
"""

from dataclasses import dataclass, field
from typing import Literal

from megascratch.config.declare import differs, equals, setting, unset_or
from megascratch.config.model_settings import ModelConfig as ModelConfig
from megascratch.config.ranges import above, at_least, within
from megascratch.config.resume_effects import (
    FIXED_OPTIMIZER,
    FIXED_TENSORS,
    FREE_LAYOUT,
    FREE_START,
    NOTICE_STEPS,
    NOTICE_VALIDATION_TEXT,
    REFUSED_CORPUS,
    REFUSED_ORDER,
    REFUSED_STAGES,
    REFUSED_TEXT,
    REFUSED_TOKENIZER,
)
from megascratch.config.run_settings import GuardConfig as GuardConfig
from megascratch.config.run_settings import TrainingConfig as TrainingConfig


@dataclass(frozen=True)
class ParallelConfig:
    """How the computation is distributed and ordered; nothing here changes the model."""

    tensor_model_parallel_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Ranks that share each layer."""
    pipeline_model_parallel_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Pipeline stages that the layers are divided into."""
    context_parallel_size: int = setting(1, FREE_LAYOUT, at_least(1))
    """Ranks that share each sequence."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = setting(
        "p2p", FREE_LAYOUT, needs=differs("context_parallel_size", 1)
    )
    """How ranks that share a sequence attend: p2p sends keys and values around a ring while it computes, all_gather
    collects them, a2a exchanges heads for tokens (Ulysses), a2a+p2p does both."""
    hierarchical_context_parallel_sizes: list[int] | None = setting(None, FREE_LAYOUT)
    """With a2a+p2p: ranks that exchange heads, and ranks of the ring."""
    context_parallel_order: Literal["zigzag", "documents", "contiguous"] | None = setting(
        None, FREE_LAYOUT
    )
    """Which tokens a rank has: zigzag gives each one an early and a late part, documents divides each document so,
    contiguous one part; default: contiguous with a2a, else zigzag."""
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
    pipeline_model_parallel_layout: list[int] | str | None = setting(None, FREE_LAYOUT)
    """The number of layers of each virtual stage, in model order: numbers, or a text such as 'Et*2|(tt|)*2tL'
    (E embedding, t layer, L output layer, | next stage, *N repeats)."""
    account_for_embedding_in_pipeline_split: bool = setting(False, FREE_LAYOUT)
    """Count the embedding as a layer when layers are divided among stages: the first stage gets one less."""
    account_for_loss_in_pipeline_split: bool = setting(False, FREE_LAYOUT)
    """Count the output layer as a layer when layers are divided among stages: the last stage gets one less."""
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
    """What backward recomputes instead of storing: nothing, parts of layers (selective), or whole layers (full)."""
    recompute_method: Literal["uniform", "block"] | None = setting(None, FREE_LAYOUT)
    """With full: recompute all layers in uniform groups, or only the first layers of each chunk; default: uniform."""
    recompute_num_layers: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """With full: layers per group (uniform) or per chunk (block); default: 1."""
    recompute_modules: list[str] | None = setting(
        None, FREE_LAYOUT, needs=equals("recompute_granularity", "selective")
    )
    """With selective: the parts of each layer that are recomputed: core_attn (scores, softmax and dropout), layernorm
    (what the norms before attention and feed-forward return), mlp (the feed-forward), activation (what an MLP's
    activation returns); default: core_attn."""
    offload_modules: list[str] | None = setting(None, FREE_LAYOUT)
    """Parts of each layer whose activations wait for backward in host memory; core_attn, layernorm, mlp."""
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
    fim_prefix_token: str | None = setting(None, REFUSED_TEXT)
    """The prefix's token by name, instead of fim_prefix_id."""
    fim_middle_token: str | None = setting(None, REFUSED_TEXT)
    """The middle's token by name, instead of fim_middle_id."""
    fim_suffix_token: str | None = setting(None, REFUSED_TEXT)
    """The suffix's token by name, instead of fim_suffix_id."""
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
    vocab_file: str | None = setting(None, REFUSED_TOKENIZER)
    """The vocabulary of a GPT-2 tokenizer (vocab.json), together with merge_file, instead of tokenizer_model."""
    merge_file: str | None = setting(None, REFUSED_TOKENIZER)
    """The merges of a GPT-2 tokenizer (merges.txt), together with vocab_file."""
    tiktoken_pattern: Literal["v1", "v2"] | None = setting(
        None, REFUSED_TOKENIZER, needs=unset_or("tokenizer_type", "TikTokenizer")
    )
    """How a TikTokenizer in Megatron-LM's format (a .json of ranks) splits text; default: v2."""
    tiktoken_num_special_tokens: int = setting(
        1000,
        REFUSED_TOKENIZER,
        at_least(1),
        needs=unset_or("tokenizer_type", "TikTokenizer"),
    )
    """Ids at the beginning of such a vocabulary that are for special tokens."""
    tokenizer_special_tokens: list[str] | None = setting(
        None, REFUSED_TOKENIZER, needs=unset_or("tokenizer_type", "TikTokenizer")
    )
    """The first of them by name; default: <unk> <s> </s> <mask> <pad> <cls> <sep>."""
    tokenizer_hf_no_include_special_tokens: bool = setting(False, REFUSED_TOKENIZER)
    """Leave out the ids that a tokenizer.json puts around every text, such as the beginning of text."""
    null_tokenizer_eod_id: int | None = setting(
        None, REFUSED_TOKENIZER, at_least(0), needs=equals("tokenizer_type", "NullTokenizer")
    )
    """Id that ends a document with a NullTokenizer; default: the last one of the vocabulary."""


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
    lr_schedule_unit: Literal["steps", "samples"] = setting("steps", NOTICE_STEPS)
    """What the schedule of the learning rate counts when its lengths are given in steps and the batch size changes:
    steps, or samples as in Megatron-LM (a length is then its steps x global_batch_size)."""
    lr_schedule_waits_for_overflows: bool = setting(False, NOTICE_STEPS, needs=equals("fp16", True))
    """Keep the learning rate while steps overflow, as in Megatron-LM; default: it follows the step number."""
    decoupled_lr: float | None = setting(None, NOTICE_STEPS, at_least(0))
    """Highest learning rate of the embedding and of the output layer; default: lr."""
    decoupled_min_lr: float | None = setting(
        None, NOTICE_STEPS, at_least(0), needs=differs("decoupled_lr", None, "without decoupled-lr")
    )
    """Lowest learning rate of the embedding and of the output layer; default: min_lr."""
    weight_decay: float = setting(0.01, NOTICE_STEPS, at_least(0))
    """Decoupled weight decay, applied to matrices and never to norms and biases."""
    start_weight_decay: float | None = setting(None, NOTICE_STEPS, at_least(0))
    """Weight decay at step 0; default: weight_decay."""
    end_weight_decay: float | None = setting(None, NOTICE_STEPS, at_least(0))
    """Weight decay at the end of the run; default: weight_decay."""
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = setting(
        "constant", NOTICE_STEPS
    )
    """How weight decay moves from start_weight_decay to end_weight_decay."""
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
class Config:
    """All sections. Functions take only the section that they need."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

"""The rules by which a command line means here what it means in Megatron-LM, where a flag alone does not say it.

A rule sees all options that are given and names settings, each with the reason that `--print-config` shows. A setting
that a flag gives is not changed by a rule, except where the rule is about that flag.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

from megascratch.config.fields import SETTINGS
from megascratch.config.megatron.blend_files import blends_of_files
from megascratch.config.megatron.layer_rules import (
    context_exchange,
    layers_without_rope,
    stretched_rope,
    width_of_quick_geglu,
    windows,
)
from megascratch.config.megatron.rule import Becomes as Becomes
from megascratch.config.megatron.rule import Options as Options
from megascratch.config.megatron.rule import number_of as number_of
from megascratch.config.megatron.rule import words_of as words_of


def counted_layers(options: Options) -> int | None:
    """The layers that pipeline stages share, with the ends of the model that count as layers."""
    layers = number_of(options, "num-layers") or number_of(options, "encoder-num-layers")
    if layers is None:
        return None
    ends = ("embedding", "loss")
    return layers + sum(f"account-for-{end}-in-pipeline-split" in options for end in ends)


def activation(options: Options) -> Iterator[Becomes]:
    """GELU is computed by its tanh approximation where bias and GELU are fused, which is the default, and by the
    activations of Transformer Engine. `--openai-gelu` is read by nothing there."""
    if any(name in options for name in ("swiglu", "squared-relu", "quick-geglu")):
        return
    is_exact = any(name in options for name in ("no-bias-gelu-fusion", "disable-bias-linear"))
    for name in ("use-te-activation-func", "use-transformer-engine-op-fuser"):
        if name in options:
            yield Becomes("openai_gelu", True, f"--{name}: its GELU is the tanh form")
            return
    if not is_exact:  # else there is no fusion, or no bias to be fused with
        reason = "GELU is its tanh form unless --no-bias-gelu-fusion or --disable-bias-linear"
        yield Becomes("openai_gelu", True, reason)


def norm_biases(options: Options) -> Iterator[Becomes]:
    """`--disable-bias-linear` is about linear layers: a LayerNorm keeps its bias."""
    if "disable-bias-linear" in options and words_of(options, "normalization") != ("RMSNorm",):
        yield Becomes("norm_bias", True, "--disable-bias-linear keeps the biases of norms")


def gated_width(options: Options) -> Iterator[Becomes]:
    """The width of a gated MLP is 8/3 of the hidden size, rounded down to a multiple of 64."""
    hidden = number_of(options, "hidden-size")
    if "swiglu" in options and "ffn-hidden-size" not in options and hidden:
        width = max(64, int(4 * hidden * 2 / 3) // 64 * 64)
        yield Becomes("ffn_hidden_size", width, "--swiglu: 8/3 x hidden size, rounded down to 64")


def key_value_heads(options: Options) -> Iterator[Becomes]:
    """`--num-query-groups` counts only with `--group-query-attention`, whose default is one group."""
    if "group-query-attention" not in options:
        yield Becomes("num_query_groups", None, "one per head without --group-query-attention")
    elif "num-query-groups" not in options:
        yield Becomes("num_query_groups", 1, "--group-query-attention without --num-query-groups")


def virtual_stages(options: Options) -> Iterator[Becomes]:
    """`--num-layers-per-virtual-pipeline-stage` says the number of chunks through the number of layers."""
    per_chunk = number_of(options, "num-layers-per-virtual-pipeline-stage")
    layers = counted_layers(options)
    stages = number_of(options, "pipeline-model-parallel-size") or 1
    if per_chunk and layers and layers % stages == 0 and (layers // stages) % per_chunk == 0:
        chunks = layers // stages // per_chunk
        yield Becomes(
            "num_virtual_stages_per_pipeline_rank",
            chunks,
            f"{layers} layers / {stages} stages / {per_chunk} per virtual stage",
        )


def order_of_samples(options: Options) -> Iterator[Becomes]:
    """Samples come in the order of Megatron-LM."""
    yield Becomes("data_order", "megatron", "samples in Megatron-LM's order")


def mean_of_losses(options: Options) -> Iterator[Becomes]:
    """The loss of a step is the mean of the means of micro-batches."""
    if "calculate-per-token-loss" not in options:
        reason = "mean of micro-batch means without --calculate-per-token-loss"
        yield Becomes("calculate_per_token_loss", False, reason)


def schedules(options: Options) -> Iterator[Becomes]:
    """The schedule of the learning rate counts samples, and waits while steps overflow."""
    yield Becomes("lr_schedule_unit", "samples", "the schedule counts samples")
    if "fp16" in options:
        reason = "the schedule waits while steps overflow"
        yield Becomes("lr_schedule_waits_for_overflows", True, reason)


def starting_and_stopping(options: Options) -> Iterator[Becomes]:
    """A missing checkpoint is a fresh start, and a stop that was asked for is a success."""
    if "exit-on-missing-checkpoint" not in options:
        reason = "starts fresh without a checkpoint, unless --exit-on-missing-checkpoint"
        yield Becomes("exit_on_missing_checkpoint", False, reason)
    yield Becomes("exit_zero_on_stop", True, "a stop that was asked for ends with 0")


def second_computations(options: Options) -> Iterator[Becomes]:
    """A bad step is computed again, unless that is switched off."""
    if words_of(options, "rerun-mode") != ("disabled",):
        reason = "a bad step is computed twice without --rerun-mode disabled"
        yield Becomes("rerun_bad_steps", True, reason)


def recomputation(options: Options) -> Iterator[Becomes]:
    """`--recompute-activations` is the short form of the selective granularity."""
    if "recompute-activations" in options and "recompute-granularity" not in options:
        yield Becomes("recompute_granularity", "selective", "--recompute-activations")


def intervals(options: Options) -> Iterator[Becomes]:
    """Defaults of what is measured and written."""
    if "log-interval" not in options:
        yield Becomes("log_interval", 100, "Megatron-LM's default")
    if "eval-interval" not in options:
        yield Becomes("eval_interval", 0, "no validation during training without --eval-interval")


def words_of_logs(options: Options) -> Iterator[Becomes]:
    """Console and TensorBoard have the words that Megatron-LM's parsers and dashboards read."""
    yield Becomes("log_format", "megatron", "logs in Megatron-LM's words")


def trackers(options: Options) -> Iterator[Becomes]:
    """Weights & Biases is used where it is installed."""
    if "wandb-project" not in options or importlib.util.find_spec("wandb") is None:
        return
    yield Becomes("log_to", ["tensorboard", "wandb"], "--wandb-project")
    yield Becomes("log_project", words_of(options, "wandb-project")[0], "--wandb-project")
    if "wandb-exp-name" in options:
        yield Becomes("log_run", words_of(options, "wandb-exp-name")[0], "--wandb-exp-name")


def infilling(options: Options) -> Iterator[Becomes]:
    """`--fim-data` switches the rearrangement on, with a rate of one half."""
    if "fim-data" in options and "fim-rate" not in options:
        yield Becomes("fim_rate", 0.5, "--fim-data")
    if "fim-data" in options:
        for part in ("prefix", "middle", "suffix"):
            if f"fim-{part}-token" not in options:
                yield Becomes(f"fim_{part}_token", f"<fim_{part}>", "--fim-data")


def blends_in_files(options: Options) -> Iterator[Becomes]:
    """A file may hold the words of a data path."""
    for setting, words in blends_of_files(options).settings.items():
        yield Becomes(setting, words, "the words of the file")


def told(options: Options, ours: Sequence[str]) -> list[str]:
    """One sentence for each thing that is not as in Megatron-LM, although no flag says so.

    Args:
        ours: the words of flags that only this toolkit knows.
    """
    sentences = []
    own = []
    for names in NO_DEFAULT:
        if not any(name in options for name in names) and "use-checkpoint-args" not in options:
            own.append(f"--{names[0]} {SETTINGS[names[0].replace('-', '_')].default}")
    if own:
        sentences.append(
            f"Megatron-LM needs flags that are not given, their defaults here are used: {', '.join(own)}"
        )
    rows = number_of(options, "vocab-size")
    unit = number_of(options, "make-vocab-size-divisible-by") or 128
    unit *= number_of(options, "tensor-model-parallel-size") or 1
    if not (rows and unit and rows % unit == 0) and "--padded-vocab-in-softmax" not in ours:
        sentences.append(
            "rows of padding of the vocabulary take no part in the softmax; in Megatron-LM they do: "
            "--padded-vocab-in-softmax"
        )
    return sentences


NO_DEFAULT = (
    ("num-layers", "encoder-num-layers"),
    ("hidden-size",),
    ("num-attention-heads",),
    ("seq-length", "encoder-seq-length"),
    ("micro-batch-size",),
    ("lr",),
)
"""Options of which Megatron-LM needs one each."""


def without_effect(options: Options) -> dict[str, str]:
    """Options that have no effect together with the others -> why. Their settings keep their defaults."""
    found = {}
    if "group-query-attention" not in options:
        found["num-query-groups"] = "without --group-query-attention"
    if "fim-data" not in options:
        for name in FIM:
            found[name] = "without --fim-data"
    if "use-rope-scaling" not in options:
        found["rope-scaling-factor"] = "without --use-rope-scaling"
    if "window-size" not in options:
        found["window-attn-skip-freq"] = "without --window-size"
    if words_of(options, "tokenizer-type") not in ((), ("GPT2BPETokenizer",)):
        for name in ("vocab-file", "merge-file"):
            found[name] = "with another tokenizer than GPT2BPETokenizer"
    if words_of(options, "tokenizer-type") == ("NullTokenizer",):
        found["tokenizer-model"] = "with NullTokenizer"
    if words_of(options, "optimizer") in ((), ("adam",)):
        for name in options:
            if name.startswith(OF_OTHER_OPTIMIZERS):
                found[name] = "with --optimizer adam"
    for switch, beginnings in PARTS.items():
        if switch not in options or options[switch].is_neutral:
            for name in options:
                if name.startswith(beginnings):
                    found[name] = f"without --{switch}"
    found["openai-gelu"] = "in Megatron-LM: the form of GELU follows from its fusion with the bias"
    return {name: reason for name, reason in found.items() if name in options}


FIM = (
    *("fim-rate", "fim-spm-rate", "fim-split-sample", "fim-fragment-rate", "fim-no-prefix"),
    *("fim-prefix-token", "fim-middle-token", "fim-suffix-token", "fim-pad-token", "fim-eod-token"),
)
"""The options of fill-in-the-middle."""

OF_OTHER_OPTIMIZERS = ("muon-", "lion-", "sgd-")
"""Beginnings of the names of options of optimizers that are not Adam."""

PARTS = {
    "enable-mhc-connections": ("mhc-",),
    "experimental-attention-variant": ("dsa-", "linear-"),
    "mtp-num-layers": ("mtp-loss-", "mtp-detach-", "mtp-hsm", "mtp-use-"),
    "multi-latent-attention": (
        *("q-lora-", "kv-lora-", "qk-head-", "qk-pos-", "v-head-", "mscale"),
        *("rotary-scaling-factor", "mla-"),
    ),
    "num-experts": ("moe-", "expert-tensor-parallel-size"),
    "qk-clip": ("qk-clip-",),
    "use-megatron-fsdp": (
        *("megatron-fsdp-", "fsdp-"),
        *("data-parallel-sharding-strategy", "outer-dp-sharding-strategy"),
    ),
    "use-mup": ("mup-",),
}
"""Option -> beginnings of the names of options that only say how it is done, and so have no effect without it."""

READ_BY_RULES = (
    *("no-bias-gelu-fusion", "use-te-activation-func", "use-transformer-engine-op-fuser"),
    *("group-query-attention", "fim-data"),
    *("num-layers-per-virtual-pipeline-stage", "recompute-activations", "no-position-embedding"),
    *("window-size", "window-attn-skip-freq", "no-rope-freq", "cp-comm-type"),
)
"""Options that become no setting of their own, but decide what others mean."""

RULES: tuple[Callable[[Options], Iterator[Becomes]], ...] = (
    activation,
    norm_biases,
    gated_width,
    key_value_heads,
    virtual_stages,
    order_of_samples,
    mean_of_losses,
    schedules,
    starting_and_stopping,
    second_computations,
    recomputation,
    words_of_logs,
    trackers,
    intervals,
    infilling,
    blends_in_files,
    windows,
    layers_without_rope,
    stretched_rope,
    width_of_quick_geglu,
    context_exchange,
)

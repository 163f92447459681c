"""The settings of a run: its length, validation, output and checkpoints, and its checks. See `settings.py`."""

from dataclasses import dataclass
from typing import Literal

from megascratch.config.declare import Needs, differs, equals, setting
from megascratch.config.ranges import above, at_least, within
from megascratch.config.resume_effects import (
    FREE_CHECKS,
    FREE_IMPORTS,
    FREE_LAYOUT,
    FREE_MICRO_BATCH,
    FREE_OUTPUT,
    FREE_STOP,
    FREE_VALIDATION,
    NOTICE_BATCH,
    NOTICE_LENGTH,
    NOTICE_STEPS,
    REFUSED_SEED,
)

LOGS_TO_A_TRACKER = Needs(
    "log_to",
    lambda sinks: bool({"wandb", "trackio", "otel"} & set(sinks or ())),
    "without log-to wandb, trackio or otel",
)


@dataclass(frozen=True)
class TrainingConfig:
    """Length and batch size of the run, validation, logging and checkpoints."""

    micro_batch_size: int = setting(1, FREE_MICRO_BATCH, at_least(1))
    """Sequences per forward pass."""
    global_batch_size: int | None = setting(None, NOTICE_BATCH, at_least(1))
    """Sequences per step over all ranks; default: micro_batch_size x data_parallel_size."""
    rampup_batch_size: list[int] | None = setting(None, NOTICE_BATCH)
    """START INCREMENT SAMPLES: grow the global batch from START in steps of INCREMENT over that many samples."""
    step_batch_size_schedule: str | None = setting(None, NOTICE_BATCH)
    """Global batch sizes, each with the number of tokens after which it begins: "0:256 300M:512" (5000s: after 5000
    samples). The last one is global_batch_size."""
    calculate_per_token_loss: bool = setting(True, NOTICE_STEPS)
    """Gradients are those of the mean loss over the tokens of a step; off: of the mean of its micro-batches' means,
    which is Megatron-LM's default and with masked tokens depends on micro_batch_size."""
    loss_chunk_rows: int | None = setting(None, FREE_LAYOUT, at_least(1))
    """Compute logits and loss in pieces of this many tokens, so that the logits of a micro-batch never exist as a
    whole; default: all at once."""
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
    eval_iters: int = setting(100, FREE_VALIDATION, at_least(0))
    """Batches per validation and test; 0: no validation and no test."""
    eval_global_batch_size: int | None = setting(None, FREE_VALIDATION, at_least(1))
    """Sequences per batch of validations and test; default: global_batch_size."""
    eval_micro_batch_size: int | None = setting(None, FREE_VALIDATION, at_least(1))
    """Sequences per forward pass of validations and test; default: micro_batch_size."""
    skip_train: bool = setting(False, FREE_OUTPUT)
    """Only run the validation and the test of the checkpoint that is loaded: nothing is trained or saved."""
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
    log_format: Literal["megascratch", "megatron"] = setting("megascratch", FREE_OUTPUT)
    """The words of console and TensorBoard: ours, or Megatron-LM's, so that its parsers and dashboards work."""
    timing_log_level: int = setting(
        0, FREE_OUTPUT, within("[0, 2]"), needs=equals("log_format", "megatron")
    )
    """Print the times of the parts of a step: 1: passes and update, 2: also reading; 0: none."""
    timing_log_option: Literal["minmax", "max", "all"] = setting(
        "minmax", FREE_OUTPUT, needs=differs("timing_log_level", 0, "with timing-log-level 0")
    )
    """Which of the ranks' times are printed."""
    log_params_norm: bool = setting(False, FREE_OUTPUT)
    """Measure and log the norm of all weights."""
    log_num_zeros_in_grad: bool = setting(False, FREE_OUTPUT)
    """Measure and log the number of zeros in the gradient."""
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
    """Checkpoint to resume from: one step, or the newest valid one of a folder of steps or a run."""
    exit_on_missing_checkpoint: bool = setting(True, FREE_OUTPUT)
    """Refuse to start if there is no checkpoint at load; off: start from scratch then, with a notice."""
    ckpt_step: int | None = setting(
        None, FREE_OUTPUT, at_least(0), needs=differs("load", None, "without load")
    )
    """The step to load from the folder that load names; default: the newest."""
    finetune: bool = setting(False, FREE_OUTPUT, needs=differs("load", None, "without load"))
    """Take only the weights from load, and begin a new run at step 0 with them: its own data, optimizer and seed."""
    load_optim: bool = setting(True, FREE_OUTPUT)
    """Take the state of the optimizer from load; off: its moments and counts start from zero, the rest continues."""
    save_optim: bool = setting(True, FREE_OUTPUT)
    """Store the state of the optimizer in checkpoints; off: smaller ones, to evaluate or to begin new runs with."""
    pretrained_checkpoint: str | None = setting(None, FREE_OUTPUT)
    """Checkpoint whose weights begin a new run (as with finetune), as long as there is none at load."""
    use_checkpoint_args: bool = setting(
        False, FREE_OUTPUT, needs=differs("load", None, "without load")
    )
    """Take the shape of the model and the tokenizer from the checkpoint, in place of the settings given."""
    auto_resume: bool = setting(False, FREE_OUTPUT)
    """Resume from the newest checkpoint in save; if there is none yet, start from load, or from scratch."""
    exit_interval: int | None = setting(None, FREE_STOP, at_least(1))
    """Save and stop at the next step that is a multiple of this (exit code 80)."""
    exit_duration_in_mins: float | None = setting(None, FREE_STOP, above(0))
    """Save and stop at the first step that ends this many minutes after training began (exit code 81)."""
    stop_file: str | None = setting(None, FREE_STOP)
    """Save and stop when this file appears (exit code 82), and remove it; default: {output_dir}/stop."""
    exit_zero_on_stop: bool = setting(False, FREE_STOP)
    """End with exit code 0 instead of 80, 81 or 82 when a run stops early as asked, as in Megatron-LM."""
    error_injection_rate: int = setting(0, FREE_OUTPUT, at_least(0))
    """Inject an error into about one of so many steps, chosen by the seed, to try out rerun_bad_steps; 0: never."""
    error_injection_type: Literal["correct_result", "transient_error", "persistent_error"] = (
        setting(
            "transient_error",
            FREE_OUTPUT,
            needs=differs("error_injection_rate", 0, "without error-injection-rate"),
        )
    )
    """What is injected: a check without an error, an error that a second computation lacks, or one that repeats."""
    device: Literal["cpu", "cuda", "mps"] | None = setting(None, FREE_LAYOUT)
    """Device to train on; mps is the GPU of a Mac, for one process; default: cuda if available, else cpu."""
    profile: bool = setting(False, FREE_OUTPUT)
    """Record some steps with torch.profiler, into {output_dir}/profile: a trace of each rank."""
    profile_step_start: int = setting(10, FREE_OUTPUT, at_least(1), needs=equals("profile", True))
    """The first step that is recorded."""
    profile_step_end: int = setting(12, FREE_OUTPUT, at_least(2), needs=equals("profile", True))
    """The step before which the recording ends."""
    profile_ranks: list[int] | None = setting(None, FREE_OUTPUT, needs=equals("profile", True))
    """The ranks that record; default: all."""
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
    rerun_bad_steps: bool = setting(False, FREE_CHECKS)
    """Compute a bad step a second time first: an error that does not repeat is the machine's, and the step counts."""
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

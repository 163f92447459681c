"""What the first rank says and writes when a run begins: headline, account of the wall time, folder, sinks."""

import time
import uuid
from pathlib import Path

from megascratch.config.batch_size import num_microbatches
from megascratch.config.fields import flat
from megascratch.model.flops import flops_per_token
from megascratch.runtime.run_log import RUN_LOG
from megascratch.training.report import Report
from megascratch.training.run_folder import RunStart, record_start, this_host
from megascratch.training.setup import TrainingRun
from megascratch.training.sinks.chosen import DEFAULT, chosen_sinks
from megascratch.training.sinks.sink import RunIdentity
from megascratch.training.time_split import TimeSplit, process_began
from megascratch.training.words.interface import Words
from megascratch.training.words.megascratch import OwnWords
from megascratch.training.words.megatron import MegatronWords, RunFacts


def headline(run: TrainingRun, parameters: int, peak: float) -> str:
    """The first line of the log.

    Args:
        peak: the matmul peak in FLOP/s.
    """
    mesh = run.mesh
    return (
        f"{parameters:,} parameters on {mesh.layout.name} ({mesh.world.size} ranks, "
        f"{run.config.parallel.pipeline_schedule}, {mesh.device.type}), {_tokens_a_step(run)}, "
        f"{run.total_steps} steps from step {run.state.step}, matmul peak {peak / 1e9:,.0f} GFLOP/s"
    )


def _tokens_a_step(run: TrainingRun) -> str:
    """The tokens of the next step, and of the last one if the batch size changes."""
    training = run.config.training
    sequence = run.config.data.seq_length
    copies = run.mesh.dp.size
    microbatches = num_microbatches(training, copies, run.state.consumed_samples)
    now = microbatches * training.micro_batch_size * copies * sequence
    last = training.global_batch_size * sequence
    return f"{now:,} tokens a step" + (f", later {last:,}" if last != now else "")


def nothing_updated(overflows: int, scale: float) -> str:
    """Says that a run changed no weight, because each of its steps overflowed in fp16."""
    return (
        f"no step of this run changed the weights: all {overflows} overflowed in fp16 (loss scale now {scale:g}); for "
        "a short run give a smaller --initial-loss-scale"
    )


def title(run: TrainingRun, parameters: int) -> str:
    """The title of loss.png."""
    name = Path(run.config.training.output_dir).resolve().name
    return f"{name}: {parameters:,} parameters on {run.mesh.layout.name}"


def words_of(run: TrainingRun) -> Words:
    """The words in which a run reports."""
    training = run.config.training
    if training.log_format == "megascratch":
        return OwnWords(run.total_steps)
    axes = run.mesh.layout.sizes("dense")
    flops = flops_per_token(run.config.model, run.config.data.seq_length)
    return MegatronWords(
        RunFacts(
            run.total_steps,
            run.state.step,
            run.state.consumed_samples,
            run.mesh.world.size,
            axes["tp"],
            axes["pp"],
            flops,
            training.save,
            training.timing_log_level,
            training.timing_log_option,
        )
    )


def nothing_left(run: TrainingRun) -> str:
    """The message of a run whose steps are all done."""
    training = run.config.training
    flag = "--train-iters" if training.train_iters is not None else "--train-samples"
    now = training.train_iters or training.train_samples
    step = run.state.step
    if step > run.total_steps:
        done = f"step {step} of the checkpoint is beyond the {run.total_steps} steps of this run"
    else:
        done = f"all {step} steps of {training.output_dir} are done"
    return f"{done}: nothing is left to train; to continue, raise {flag} (now {now})"


def begin_times(run: TrainingRun, report: Report | None) -> TimeSplit:
    """The account of the wall time; on the first rank it continues that of earlier processes of the run."""
    began = process_began(run.launch)
    times = TimeSplit(time.monotonic() - (time.time() - began))
    if report is not None and run.state.step < run.total_steps:
        report.note(times.resume(report.earlier, run.state.step, run.launch, began))
    return times


def begin_folder(run: TrainingRun, report: Report | None) -> None:
    """Writes how the run was started into its folder, and chooses the sinks of its report. Called by all ranks; only
    the first one writes."""
    hosts = run.mesh.control.gather(this_host())
    if report is None:
        return
    training = run.config.training
    folder = Path(training.output_dir)
    start = RunStart(
        run.command,
        run.config_text,
        run.launch,
        run.state.step,
        hosts,
        run.mesh.device.type,
    )
    RUN_LOG.info("start from step %s: %s", run.state.step, run.command or "from Python")
    ids: list[str] = []
    report.attempt(lambda: ids.append(record_start(folder, start)))
    identity = RunIdentity(
        training.log_project,
        training.log_run or folder.resolve().name,
        ids[0] if ids else uuid.uuid4().hex[:12],
        str(folder),
        training.tensorboard_dir,
        flat(run.config),
        run.config_text,
        run.state.step,
        report.words,
    )
    report.sinks = chosen_sinks(training.log_to or DEFAULT, identity, report.say)

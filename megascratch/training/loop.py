"""The training loop: steps, log rows, checkpoints, validations, and a clean stop, until the run is done.

A checkpoint is written before optional work: a validation due at the same step, the last validation and the test come
after it, and a request to stop ends them between two batches.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from megascratch.config.batch_size import evaluation_batch, num_microbatches
from megascratch.config.exit_codes import DONE, EXIT_INTERVAL, STOP_FILE, STOPS
from megascratch.config.imports import import_digests
from megascratch.data.prefetch import Prefetch
from megascratch.data.samples.batch import Batch
from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.megatron_order import validation_start
from megascratch.data.samples.views import SkipSamples
from megascratch.model.flops import parameters
from megascratch.parallel.device_kind import widest_dtype
from megascratch.parallel.pending import CommunicationError
from megascratch.parallel.side_loss import TermSum
from megascratch.pipeline.recorder import Recorder
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import doing, set_watched
from megascratch.runtime.run_log import RUN_LOG, close_log
from megascratch.training import schedule_trace
from megascratch.training.beginning import (
    begin_folder,
    begin_times,
    headline,
    nothing_left,
    nothing_updated,
    title,
    words_of,
)
from megascratch.training.checkpointing import Checkpointing
from megascratch.training.health.bad_steps import BadSteps, LossGuard
from megascratch.training.health.monitor import RunMonitor
from megascratch.training.health.nothing_to_learn import (
    STEPS_TO_JUDGE,
    NothingLearnedError,
    nothing_learned,
)
from megascratch.training.health.second_computation import SecondComputation
from megascratch.training.log_interval import LogInterval
from megascratch.training.profile import StepProfile
from megascratch.training.report import Report
from megascratch.training.setup import TrainingRun
from megascratch.training.state import next_rates
from megascratch.training.step_log import StepLog, columns
from megascratch.training.step_numbers import Announcement
from megascratch.training.stop import StopRequest, remove_stop_file
from megascratch.training.time_split import PARTS, event_row
from megascratch.training.trainer import Judge, StepResult


def train(run: TrainingRun, stop: StopRequest) -> dict[str, Any]:
    """Trains to the end, or until asked to stop, and saves. Returns: the summary, with the run's exit code."""
    loop = None
    try:
        loop = _Loop(run)
        return loop.run(stop)
    except BaseException as error:
        RUN_LOG.error("%s: %s", type(error).__name__, error)
        if loop is not None and loop.report is not None:
            loop.report.abandon()
        raise
    finally:
        close_log(run.log)
        if run.report_lease is not None:
            run.report_lease.release()


class _Loop:
    def __init__(self, run: TrainingRun):
        training = run.config.training
        self.built = run
        self.config = run.config
        self.training = training
        self.state = run.state
        self.mesh = run.mesh
        self.trainer = run.trainer
        self.splits = run.splits
        self.total_steps = run.total_steps
        self.parameters = parameters(run.config.model)
        self.report: Report | None = None
        if self.mesh.is_first:
            self.report = Report(
                training.output_dir,
                title(run, self.parameters),
                run.total_steps,
                self.state.step,
                words_of(run),
            )
        self.times = begin_times(run, self.report)
        begin_folder(run, self.report)
        self.monitor = RunMonitor(
            run.config.guard, run.trainer, timed=training.timing_log_level > 0
        )
        self.log = StepLog(run, self.report, self.times, self.monitor)
        self.checkpointing = Checkpointing(run.saver, training, self.report, self.state.step or -1)
        self.valid_loss = run.valid_loss
        self.validated = -1 if run.valid_loss is None else self.state.step  # the step of valid_loss
        self.first_step = self.state.step
        self.without_tokens = 0  # steps of this run that had nothing to learn
        self.without_tokens_in_a_row = 0
        self.first_overflow = self.state.overflow_steps
        self.first_sample = self.state.consumed_samples
        self.profile = StepProfile(training, self.mesh.world, self._say)
        self.loss_guard = LossGuard(run.config.guard, self.state)
        self.second = SecondComputation(
            run.config.guard, training, self.loss_guard.judge, self._say
        )
        assert run.splits.train is not None
        self.bad_steps = BadSteps(
            run.config.guard,
            training,
            self.mesh,
            run.trainer,
            self.state,
            run.splits.train,
            self.checkpointing.settle,
            self._say,
        )

    def run(self, stop: StopRequest) -> dict[str, Any]:
        self._say(headline(self.built, self.parameters, self.log.peak.rate))
        for notice in self.built.notices:
            self._say(f"notice: {notice}")
        trains = not self.training.skip_train
        if trains and self.state.step >= self.total_steps:
            self._say(nothing_left(self.built))
        elif self.report is not None and (begin := self.report.words.begin()):
            self._say(begin)
        self.times.lap("start")
        code = 0
        try:
            if trains:
                code = self._train(stop)
                self.profile.close(self.state.step)
            self._save_last()
            stopped_with = code
            code = self._evaluate_last(stop, code)
            if trains:
                self.checkpointing.prune()
            set_watched(on=False)
        finally:
            self.built.saver.close(
                wait=not isinstance(sys.exc_info()[1], CommunicationError | KeyboardInterrupt)
            )
        if STOP_FILE in (stopped_with, code) and self.mesh.is_first:
            remove_stop_file(self.training)
        if self.without_tokens:
            self._say(f"warning: {self._steps_without_tokens()}", always=True)
        overflows = self.state.overflow_steps - self.first_overflow
        if 0 < overflows == self.state.step - self.first_step:
            self._say(
                f"warning: {nothing_updated(overflows, self.trainer.scale.scale)}", always=True
            )
        if code != DONE and trains:
            self._say(self._how_to_resume())
        stop.code = code
        self.times.lap("other")
        if self.report is not None and self.state.step > self.first_step:
            if end := self.report.words.end(self.state.step, code != DONE):
                self._say(end)
            self._say(self.times.in_words())
            self.report.note(event_row(self.state.step, "end", self.times.take()))
        summary = self._summary(code)
        if self.report is not None:
            self.report.close(summary)
        return summary

    def _train(self, stop: StopRequest) -> int:
        """Trains until the run is done or is asked to stop.

        Returns: the exit code of the reason to stop; 0 if there is none.
        """
        code = 0
        if self._validation_missing():
            code = self._validate(stop)
        while self.state.step < self.total_steps and not code:
            with Prefetch(self._upcoming(), self.config.data.data_prefetch_steps) as upcoming:
                code = self._advance(upcoming, stop)
        if self.state.step < self.total_steps:
            self._say(
                f"stop requested ({STOPS[code]}): saving a checkpoint after step {self.state.step}"
            )
        return code

    def _advance(self, upcoming: Iterator[list[Batch]], stop: StopRequest) -> int:
        """Trains until the run is done, is asked to stop, or has rolled back and needs other batches.

        Returns: the exit code of the reason to stop; 0 if there is none.
        """
        while self.state.step < self.total_steps:
            went_back, code = self._step(upcoming, stop)
            if went_back or code:
                return code
            if self._validation_due() and self.state.step < self.total_steps:
                code = self._validate(stop)
                if code:
                    return code
        return 0

    def _save_last(self) -> None:
        """Saves the last checkpoint; this process does not train any further after it."""
        self.monitor.check_before_save(self.state.step)
        doing("the last checkpoint")
        self.times.lap("other")
        self.checkpointing.finish(self.state.step, self.trainer.saved(), self._saved_state())
        self.times.lap("checkpoints")

    def _saved_state(self) -> dict[str, Any]:
        """What a checkpoint stores in addition to its tensors: enough to resume, to evaluate and to generate."""
        self.trainer.save_scalars(self.state)
        tokenizer = self.built.tokenizer
        return {
            "train_state": self.state.to_dict(),
            "config": asdict(self.config),
            "data_files": self.built.data_files,
            "tokenizer_fingerprint": tokenizer.fingerprint if tokenizer else None,
            "imports": import_digests(),
        }

    def _evaluate_last(self, stop: StopRequest, code: int) -> int:
        """After the last checkpoint, unless a stop is requested: runs the validation that is due or final, and the test
        if the run is done. With skip_train both are run, for the checkpoint that was loaded.

        Returns: the exit code. A run whose last loss is not measured has stopped early, too.
        """
        done = self.training.skip_train or self.state.step >= self.total_steps
        measured = self.validated == self.state.step and not self.training.skip_train
        valid_is_missing = self.splits.valid is not None and not measured
        validates = valid_is_missing and (done or self._validation_due())
        tests = done and self.splits.test is not None
        if not validates and not tests:
            return DONE if done else code
        if code not in (DONE, EXIT_INTERVAL):
            if done:
                self._say(
                    f"stop requested ({STOPS[code]}): no last validation or test after step {self.state.step}"
                )
            return code
        if done:
            code = DONE
        if validates:
            asked = self._validate(stop)
            if asked:
                return max(code, asked)
        if tests:
            assert self.splits.test is not None
            code = max(code, self._evaluate("test", self.splits.test, 0, stop))
        return code

    def _step(self, upcoming: Iterator[list[Batch]], stop: StopRequest) -> tuple[bool, int]:
        """One training step, with its log line and checkpoint.

        Returns: whether the run rolled back to a checkpoint, and the exit code of the reason to stop; 0 if there is
        none.
        """
        doing("the batches of the next step")
        self.times.lap("other")
        start = time.perf_counter()
        state = self.state
        step = state.step + 1
        logged = step % self.training.log_interval == 0 or step in (1, self.total_steps)
        self.monitor.begin(logged)
        self.profile.begin(step)
        fault_point("step.begin")
        batches = next(upcoming)
        phases = self.monitor.phases
        phases.lap("data")
        self.times.lap("data")
        lr, others = next_rates(self.config.optim, self.training, state)
        recorder = (
            Recorder(self.mesh.pp, self.mesh.device) if step == self.built.traced_step else None
        )

        def announce() -> Announcement:
            return Announcement(stop.reason(step, self.mesh.is_first), self.built.saver.is_running)

        def compute(judge: Judge, is_first: bool) -> StepResult:
            traced = recorder if is_first else None
            return self.trainer.train_step(
                batches, lr, step, traced, judge, phases, announce, others
            )

        result = self.second.take(step, compute)
        samples = self._samples(len(batches))
        state.count(samples, result.overflowed)
        seconds = time.perf_counter() - start
        self.times.lap("lost" if result.skipped else "steps")
        fault_point("step.end")
        self.profile.end(step)
        self.log.add(result, samples, seconds)
        if recorder is not None:
            self._report_schedule(recorder, len(batches), seconds)
        if result.wrong and self.bad_steps.act(result, samples):
            self._went_back(step)
            return True, result.exit_code
        if not result.skipped:
            self.loss_guard.good(result.global_loss)
        self._count_tokens(result)
        if logged:
            rates = {"learning_rate": lr} | others.columns()
            self._require_tokens(self.log.write(result, rates))
        else:
            self.log.pass_on()
        self.monitor.check_due(state.step)
        self.times.lap("other")
        self.checkpointing.at_step_end(result.saving)
        if self.training.save_interval and state.step % self.training.save_interval == 0:
            self.monitor.check_before_save(state.step)
            doing("a checkpoint")
            self.checkpointing.save(state.step, self.trainer.saved(), self._saved_state())
        self.times.lap("checkpoints")
        return False, result.exit_code

    def _count_tokens(self, result: StepResult) -> None:
        """Counts steps without a learned token. All ranks know the global number of tokens, so all count the same."""
        if result.tokens:
            self.without_tokens_in_a_row = 0
            return
        self.without_tokens += 1
        self.without_tokens_in_a_row += 1

    def _went_back(self, step: int) -> None:
        """Forgets what belongs to the steps after the checkpoint that the run has rolled back to, up to `step`."""
        self.checkpointing.saved_step = self.state.step
        self.checkpointing.measured = None
        self.validated = -1  # a loss of steps that are no longer part of the run
        self.log.begin_interval()
        if self.report is not None:
            wall = self.times.undo(self.report.rows, step, self.state.step)
            self.report.go_back(self.state.step)
            self.report.note(event_row(self.state.step, "rollback", wall))

    def _upcoming(self) -> Iterator[list[Batch]]:
        """This rank's batches of each remaining step. They are read ahead of the step, so the position is kept here."""
        consumed = self.state.consumed_samples
        train: Dataset | None = self.splits.train
        assert train is not None
        if self.state.skipped_samples:
            train = SkipSamples(train, self.state.skipped_samples)
        for _ in range(self.state.step, self.total_steps):
            microbatches = num_microbatches(self.training, self.mesh.dp.size, consumed)
            size = self.training.micro_batch_size
            yield self.built.read(train, consumed, microbatches, size)
            consumed += self._samples(microbatches)

    def _samples(self, microbatches: int) -> int:
        return microbatches * self.training.micro_batch_size * self.mesh.dp.size

    def _require_tokens(self, interval: LogInterval) -> None:
        """Ends the run, with a checkpoint, if no step of a log line had a token to learn. If each step has its own log
        line, STEPS_TO_JUDGE such steps in a row end it.

        Raises: NothingLearnedError, on all ranks.
        """
        several = interval.steps > 1 or self.without_tokens_in_a_row >= STEPS_TO_JUDGE
        if not several or interval.without_tokens < interval.steps:
            return
        self._save_last()
        last = self.state.step
        without_tokens = max(interval.steps, self.without_tokens_in_a_row)
        steps = f"steps {last - without_tokens + 1} to {last}"
        raise NothingLearnedError(nothing_learned(steps, self._steps_without_tokens()))

    def _steps_without_tokens(self) -> str:
        steps = self.state.step - self.first_step
        return (
            f"{self.without_tokens:,} of {steps:,} steps had no token to learn and updated nothing"
        )

    def _report_schedule(self, recorder: Recorder, microbatches: int, seconds: float) -> None:
        trace = schedule_trace.gather(self.trainer, recorder, microbatches)
        if self.report is not None:
            folder = self.training.output_dir
            lines = schedule_trace.write(
                trace, self.config.parallel, self.state.step, seconds, folder
            )
            self.report.say(lines)

    def _validation_due(self) -> bool:
        interval = self.training.eval_interval
        return self.splits.valid is not None and interval > 0 and self.state.step % interval == 0

    def _validation_missing(self) -> bool:
        """Whether the previous run ended between a checkpoint and the validation due at its step."""
        begun = 0 < self.state.step < self.total_steps
        return begun and self._validation_due() and self.validated != self.state.step

    def _validate(self, stop: StopRequest) -> int:
        """Runs a validation. Returns: 0, or the exit code of the request to stop that ended it."""
        assert self.splits.valid is not None
        first = 0
        if self.config.data.data_order == "megatron":
            samples = self.training.eval_iters * evaluation_batch(self.training).sequences
            interval = self.training.eval_interval or self.total_steps
            first = validation_start(self.state.step, interval, samples, len(self.splits.valid))
        return self._evaluate("valid", self.splits.valid, first, stop)

    def _evaluate(self, split: str, dataset: Dataset, first: int, stop: StopRequest) -> int:
        """Reports the mean loss over eval_iters full global batches of the split, from sample `first` on, or up to the
        end of the split if that comes earlier. The samples do not depend on the layout or on a batch-size ramp-up, and
        neither the data position nor any random stream changes.

        Returns: 0, or the exit code of a request to stop that came between two batches: then there is no loss.

        Raises: NothingLearnedError on all ranks if none of the tokens is learned.
        """
        doing(f"the {split} loss")
        self.times.lap("other")
        fault_point("evaluate.begin")
        batch = evaluation_batch(self.training)
        microbatches = batch.sequences // (batch.micro * self.mesh.dp.size)
        samples_left = len(dataset) - first
        # the last one may be partial
        rounds = min(self.training.eval_iters, -(-samples_left // batch.sequences))
        terms = self.trainer.terms
        sums = self._zeros(len(terms), 2)
        for i in range(rounds):
            code = stop.agreed(self.mesh.world, self.mesh.device)
            if code:
                self._say(
                    f"stop requested ({STOPS[code]}): no {split} loss for step {self.state.step}"
                )
                return code
            fault_point("evaluate.batch")
            batches = self.built.read(
                dataset, first + i * batch.sequences, microbatches, batch.micro
            )
            sums += self.trainer.evaluate(batches)
        self.times.lap("validation")
        language_model, *side_terms = [TermSum(*pair) for pair in sums.tolist()]
        loss = language_model.loss
        if self.report is not None:
            names = [term.name for term in terms[1:]]
            row = {
                "step": self.state.step,
                "split": split,
                "loss": loss,
                "tokens": int(language_model.tokens),
                **columns(dict(zip(names, side_terms, strict=True))),
            }
            self.report.evaluation(row)
        if loss is None:
            if not self.training.skip_train:
                self._save_last()
            stop_sample = min(first + rounds * batch.sequences, len(dataset))
            samples = f"samples {first:,} to {stop_sample - 1:,}"
            raise NothingLearnedError(
                nothing_learned(f"the {split} set after step {self.state.step}", samples)
            )
        if split == "valid":
            self.valid_loss = loss
            self.validated = self.state.step
            if not self.training.skip_train:
                self.checkpointing.validated(self.state.step, loss)
        return 0

    def _summary(self, code: int) -> dict[str, Any]:
        tokens = (self.state.consumed_samples - self.first_sample) * self.config.data.seq_length
        return {
            "layout": self.mesh.layout.sizes("dense"),
            "parameters": self.parameters,
            "steps": self.state.step,
            "tokens": self.state.consumed_samples * self.config.data.seq_length,
            "seconds": round(self.log.seconds, 3),
            "loss": self.log.loss,
            **self.log.side_losses,
            "valid_loss": self.valid_loss,
            "tokens_per_second": tokens / self.log.seconds if self.log.seconds else None,
            "steps_without_tokens": self.without_tokens,
            "failed_saves": self.checkpointing.failures,
            "goodput": self.times.goodput,
            "wall_seconds": {part: round(self.times.total[part], 3) for part in PARTS},
            "stopped_early": code != DONE,
            "exit_code": code,
        }

    def _how_to_resume(self) -> str:
        more = "" if self.training.auto_resume else " with --auto-resume"
        return f"to resume, run the same command again{more}"

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=widest_dtype(self.mesh.device), device=self.mesh.device)

    def _say(self, text: str, always: bool = False) -> None:
        if self.report is not None:
            self.report.say(text, always)

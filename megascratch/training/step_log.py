"""Keeps the numbers of a run's steps and makes their rows: one for each log line, and one for each step where the words
of the log need it.
"""

import math
import time
from typing import Any

import torch

from megascratch.model.flops import flops_per_token
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.device_kind import widest_dtype
from megascratch.parallel.side_loss import TermSum
from megascratch.training.hardware import (
    Peak,
    matmul_peak,
    memory_in_use,
    parameter_dtype,
    peak_memory,
)
from megascratch.training.health.monitor import RunMonitor
from megascratch.training.log_interval import LogInterval
from megascratch.training.report import Report
from megascratch.training.setup import TrainingRun
from megascratch.training.state import next_rates
from megascratch.training.time_split import TimeSplit
from megascratch.training.trainer import StepResult
from megascratch.training.words.interface import ITERATION


class StepLog:
    """Called by all ranks with the same steps; the first one has the report."""

    def __init__(
        self, run: TrainingRun, report: Report | None, times: TimeSplit, monitor: RunMonitor
    ):
        self.config = run.config
        self.trainer = run.trainer
        self.state = run.state
        self.mesh = run.mesh
        self.report = report
        self.times = times
        self.monitor = monitor
        self.peak = Peak(
            matmul_peak(self.mesh.world, self.mesh.device, parameter_dtype(run.config.optim))
        )
        self.flops = flops_per_token(run.config.model, run.config.data.seq_length)
        self.seconds = 0.0
        """Of all steps that have a log line."""
        self.loss: float | None = None
        """Of the newest log line."""
        self.side_losses: dict[str, float | None] = {}
        self.begin_interval()

    def begin_interval(self) -> None:
        """Forgets the steps since the last log line."""
        self.interval = LogInterval(self._zero())
        self._newest: dict[str, Any] = {}
        """The row of the newest step, if the words need it."""

    def add(self, result: StepResult, samples: int, seconds: float) -> None:
        """Adds a step that the state already counts."""
        self.interval.add(result, samples, seconds)
        if self.report is not None and self.report.words.each_step:
            self._newest = self._iteration(result, samples)

    def pass_on(self) -> None:
        """Passes the row of the newest step on to the sinks, if it has no log line. It counts from now on: there was no
        rollback."""
        if self.report is not None and self._newest:
            self.report.iteration(self._newest)

    def write(self, result: StepResult, rates: dict[str, float]) -> LogInterval:
        """Writes the log line of the newest step, with the rates that it was done with. Called by all ranks.

        Returns: the steps that the line is about.
        """
        interval = self.interval
        newest = self._newest
        self.begin_interval()
        loss = self.trainer.global_loss(interval.loss)
        self.loss = loss / interval.tokens if interval.tokens else None
        self.side_losses = columns(interval.side_terms)
        shares = self.monitor.phases.shares()
        for line in self.monitor.slow_ranks():
            self._say(line)
        self.seconds += interval.seconds
        tokens_per_second = interval.samples * self.config.data.seq_length / interval.seconds
        mfu = self.peak.mfu(self.flops * tokens_per_second, self._say)
        memory = self._zero() + float(peak_memory(self.mesh.device))
        row = {
            "step": self.state.step,
            "consumed_samples": self.state.consumed_samples,
            "loss": self.loss,
            "grad_norm": result.grad_norm if result.tokens else None,
            **rates,
            **_zeros(result),
            "tokens_per_second": tokens_per_second,
            "step_seconds": interval.seconds / interval.steps,
            "mfu": mfu,
            "memory_bytes": int(all_reduce(memory, self.mesh.world).item()),
            **self.side_losses,
            **shares,
            "goodput": self.times.goodput,
            "wall": self.times.take(),
            "time": round(time.time(), 3),
        }
        if self.config.training.log_params_norm:
            row["params_norm"] = self.trainer.params_norm()
        if self.config.optim.fp16:
            row |= {"loss_scale": self.trainer.scale.scale, "skipped_steps": interval.skipped}
        if interval.without_tokens:
            row["steps_without_tokens"] = interval.without_tokens
        if self.report is not None and newest:
            newest["times"] = self.monitor.times
            self.report.iteration(newest)
            newest |= interval.in_steps()
        if self.report is not None:
            self.report.step(row, newest)
        return interval

    def _iteration(self, result: StepResult, samples: int) -> dict[str, Any]:
        """The row of the newest step."""
        optim = self.config.optim
        finite = math.isfinite(result.global_loss)
        return {
            "step": self.state.step,
            "event": ITERATION,
            "consumed_samples": self.state.consumed_samples,
            "loss": result.global_loss if finite else None,
            "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
            "next_learning_rate": next_rates(optim, self.config.training, self.state)[0],
            "batch_size": samples,
            "loss_scale": self.trainer.scale.scale if optim.fp16 else 1.0,
            "world_size": self.mesh.world.size,
            "memory": memory_in_use(self.mesh.device),
            **_zeros(result),
            **columns(result.side_terms),
        }

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), dtype=widest_dtype(self.mesh.device), device=self.mesh.device)

    def _say(self, text: str) -> None:
        if self.report is not None:
            self.report.say(text)


def columns(side_terms: dict[str, TermSum]) -> dict[str, float | None]:
    """The column of each side term in a row of the report."""
    return {f"{name}_loss": term.loss for name, term in side_terms.items()}


def _zeros(result: StepResult) -> dict[str, int]:
    """The column of the zeros in the gradient; none if they are not counted."""
    return {} if result.num_zeros is None else {"num_zeros": result.num_zeros}

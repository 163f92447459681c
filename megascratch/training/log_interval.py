"""Adds up what happens between two log lines of a run: loss, tokens, skipped steps."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from megascratch.parallel.side_loss import TermSum
from megascratch.training.trainer import StepResult


@dataclass
class LogInterval:
    """What has happened since the last log line."""

    loss: torch.Tensor  # this rank's part of the sum over the learned tokens
    side_terms: dict[str, TermSum] = field(default_factory=dict)
    tokens: int = 0  # learned ones
    steps: int = 0
    skipped: int = 0
    without_tokens: int = 0  # steps that had nothing to learn
    samples: int = 0
    seconds: float = 0.0
    mean_losses: float = 0.0  # sum of the losses of the steps that were applied
    applied: int = 0
    not_finite: int = 0  # skipped steps whose loss is not finite

    def add(self, result: StepResult, samples: int, seconds: float) -> None:
        """Adds a step. The loss of a bad step does not count; a step without a learned token has none."""
        if not result.tokens:
            self.without_tokens += 1
        elif result.skipped:
            self.skipped += 1
            self.not_finite += not math.isfinite(result.global_loss)
        else:
            self.applied += 1
            self.mean_losses += result.global_loss
        if result.tokens and not result.wrong:
            self.loss = self.loss + result.loss * result.tokens
            self.tokens += result.tokens
            for name, more in result.side_terms.items():
                so_far = self.side_terms.get(name, TermSum(0.0, 0.0))
                self.side_terms[name] = so_far.plus(more)
        self.steps += 1
        self.samples += samples
        self.seconds += seconds

    def in_steps(self) -> dict[str, Any]:
        """The same where each step counts equally, whatever its tokens: the mean loss of the steps that were applied,
        and the numbers of the others."""
        return {
            "mean_loss": self.mean_losses / self.applied if self.applied else None,
            "skipped": self.skipped,
            "not_finite": self.not_finite,
        }

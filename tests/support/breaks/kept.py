"""Breaks of what no gradient moves: frozen weights, and the state that layers keep; each with the law that notices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megascratch.data_parallel import base
from megascratch.data_parallel.base import DataParallel
from megascratch.training.trainer import Trainer
from tests.support import metered
from tests.support.frozen import FROZEN, a_frozen_weight_stays
from tests.support.metered import kept_state_changes_only_with_a_step, kept_state_is_plain, resumes

Broken = tuple[list[tuple[Any, str, Any]], Callable[[Path, Callable], None]]


# ---- the laws, each of them one object -------------------------------------------------------------------------


def frozen(folder: Path, run: Callable) -> None:
    a_frozen_weight_stays(FROZEN["column-parallel"], run)


def bad_steps(folder: Path, run: Callable) -> None:
    kept_state_changes_only_with_a_step("a bad step", run)


def evaluations(folder: Path, run: Callable) -> None:
    kept_state_changes_only_with_a_step("an evaluation", run)


def layouts(folder: Path, run: Callable) -> None:
    kept_state_is_plain(run)


def resumed(folder: Path, run: Callable) -> None:
    resumes(folder, run)


# ---- replacements ----------------------------------------------------------------------------------------------


@torch.no_grad()
def all_weights_decay(self, lr, *others):
    plain_step(self, lr, *others)
    for chunk in self.modules:
        for parameter in chunk.parameters():
            if not parameter.requires_grad:
                parameter.mul_(1 - lr * 0.1)


def changed_after_every_step(self, *args):
    update = plain_update(self, *args)
    if update.wrong:
        self._change_kept_state()
    return update


def evaluated_is_taken(self, batches):
    result = plain_evaluate(self, batches)
    self._change_kept_state()
    return result


def added_in_forward(x, amount, total):
    if torch.is_grad_enabled():
        total.add_(amount.detach())
    return x


def into_copies(*args):
    boxes = plain_boxes(*args)
    for name, held in boxes.items():
        if name.startswith("buffer."):
            boxes[name] = [replace(box, tensor=box.tensor.clone()) for box in held]
    return boxes


def own_counts(x, axis, *rest):
    return x


plain_step, plain_update, plain_evaluate = DataParallel.step, Trainer._update, Trainer.evaluate
plain_boxes = base.boxes_without_gradient

KEPT: dict[str, Broken] = {
    "weight decay moves a frozen weight": ([(DataParallel, "step", all_weights_decay)], frozen),
    "kept state changes on a bad step": (
        [(Trainer, "_update", changed_after_every_step)],
        bad_steps,
    ),
    "kept state changes in an evaluation": (
        [(Trainer, "evaluate", evaluated_is_taken)],
        evaluations,
    ),
    "what is recomputed is counted twice": ([(metered, "counted", added_in_forward)], layouts),
    "each rank changes kept state by its own samples": (
        [(metered, "all_reduce", own_counts)],
        layouts,
    ),
    "kept state is not loaded": ([(base, "boxes_without_gradient", into_copies)], resumed),
}

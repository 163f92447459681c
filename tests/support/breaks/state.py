"""Breaks of what survives: checkpoints, the position of a run, evaluation on the way.

Here each rank runs the real loop: two steps on another layout, a checkpoint, the rest on the layout of the config, and
an evaluation after every step. The law: that is the same run in one process.
"""

import shutil
import tempfile
from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.distributed as dist

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.optimizer_shard import OptimizerShard
from megascratch.data_parallel.sharded_optimizer import ShardedOptimizer
from megascratch.optim.lr_schedule import learning_rate
from megascratch.optim.schedules import NO_OTHERS
from megascratch.parallel.collectives import all_gather_objects
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.training import loop, step_log
from megascratch.training.loop import _Loop
from megascratch.training.state import TrainState
from megascratch.training.stop import StopRequest
from megascratch.training.trainer import Trainer
from megascratch.training.words.interface import Words
from megascratch.verification.run_layout import RankTrace, one_process
from tests.support.breaks.replacing import DP2, DROPOUT, PP2, TP2, ZERO1, Break, nothing
from tests.support.layout_runs import built_run, world_of

BEFORE = 2  # steps on the other layout
RUN = {
    "lr_decay_style": "cosine",
    "lr_warmup_iters": 3,
    "min_lr": 1e-3,
    "eval_interval": 1,
    "eval_iters": 2,
    "global_batch_size": 4,
    "device": "cpu",
}


class Rows:
    """Instead of a report: keeps the rows of the training steps."""

    def __init__(self, folder: str, title: str, total_steps: int, first_step: int, words: Words):
        self.words = words
        self.rows: list[dict] = []

    def step(self, row: dict, more: dict) -> None:
        self.rows.append(row)

    earlier: tuple = ()
    attempt = say = iteration = evaluation = event = note = close = abandon = nothing


def resumed(config: Config, steps: int) -> RankTrace:
    """On a rank: the interrupted run, with all it holds in the end."""
    folder = _shared_folder()
    told = {"output_dir": folder, "save": folder, "log_interval": 1}
    elsewhere = with_fields(
        one_process(config), {**told, "tensor_model_parallel_size": world_of(config)}
    )
    before, _ = _part(with_fields(resolve(elsewhere, world_of(config)), {"train_iters": BEFORE}))
    after, held = _part(with_fields(config, {**told, "train_iters": steps, "load": folder}))
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.rmtree(folder)
    rows = [*before, *after]
    return RankTrace(
        [row["loss"] for row in rows],
        [row["grad_norm"] for row in rows],
        [[] for _ in rows],
        held,
        [],
    )


def _shared_folder() -> str:
    folder = [
        tempfile.mkdtemp(prefix="resumed-")
        if not dist.is_initialized() or dist.get_rank() == 0
        else ""
    ]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    return folder[0]


def _part(config: Config) -> tuple[list[dict], list[ShardedTensor]]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "Report", Rows))
        stack.enter_context(patch.object(step_log, "matmul_peak", lambda *args: 1.0))
        run = built_run(config)
        stack.callback(run.mesh.close)
        looping = _Loop(run)
        looping.run(stack.enter_context(StopRequest(config.training)))
        rows = all_gather_objects(looping.report.rows if looping.report else None, run.mesh.world)[
            0
        ]
        return rows, run.trainer.held()


# ---- replacements ----------------------------------------------------------------------------------------------


def rate_from_the_first_step(self, upcoming, stop):
    """As if the schedule began where the run went on."""
    samples = self.first_sample
    steps = samples // self.training.global_batch_size

    def rates_since(optim, training, state):
        step = state.step - steps
        lr = learning_rate(optim, step, state.consumed_samples - samples)
        return lr, NO_OTHERS

    with patch.object(loop, "next_rates", rates_since):
        return plain_step(self, upcoming, stop)


def from_the_first_sample(cls, saved):
    return cls(**{**saved, "consumed_samples": 0})


def evaluated_samples_count(self, *told):
    self.state.consumed_samples += self.training.eval_iters
    return plain_evaluate(self, *told)


def never_back_to_training(self, training):
    plain_set_training(self, False)


def one_element_later(self, name, place, flat, owned, piece):
    """The boxes of the checkpoint, not the norm's, where the second rank's range has room for it."""
    shift = name.startswith("optim") and owned.start > 0 and place.stop < owned.stop
    return plain_held(self, name, place._replace(start=place.start + shift), flat, owned, piece)


def moments_alone(self):
    return {
        name: flat for name, flat in plain_kinds.fget(self).items() if name != "optim.exp_avg"
    } | {"optim.exp_avg": torch.zeros_like(self.state["exp_avg"])}


def one_state_left_out(self):
    kinds = plain_kinds.fget(self)
    return {name: flat for name, flat in kinds.items() if name != "optim.exp_avg_sq"}


def states_swapped(self, masters=True):
    """Each tensor is filled with what was saved of the other one."""
    for owned in self.owned:
        first, second = owned.state.values()
        kept = first.clone()
        first.copy_(second.abs())
        second.copy_(kept.abs())
    plain_loaded(self, masters)


def steps_of_what_is_on_the_device(self, taken):
    self.optimizer.steps = taken


plain_loaded = DataParallel.loaded
plain_step, plain_evaluate, plain_set_training = _Loop._step, _Loop._evaluate, Trainer._set_training
plain_held, plain_kinds = DataParallel._held, OptimizerShard.kinds

BREAKS: dict[str, Break] = {
    name: Break({**RUN, **settings}, replacements, resumed)
    for name, (settings, replacements) in {
        "learning rate starts anew after a resume": (
            PP2,
            [(_Loop, "_step", rate_from_the_first_step)],
        ),
        "samples start anew after a resume": (
            DP2,
            [(TrainState, "from_dict", classmethod(from_the_first_sample))],
        ),
        "Adam's count of steps lost in a resume": (TP2, [(DataParallel, "load_scalars", nothing)]),
        "first moments lost in a resume": (
            TP2,
            [(OptimizerShard, "kinds", property(moments_alone))],
        ),
        "a state of the optimizer is not in the checkpoint": (
            PP2,
            [(OptimizerShard, "kinds", property(one_state_left_out))],
        ),
        "two states of the optimizer swapped in a resume": (
            DP2,
            [(DataParallel, "loaded", states_swapped)],
        ),
        "count of steps lost in a resume where the state is in host memory": (
            {**DP2, "optimizer_cpu_offload": True},
            [
                (
                    ShardedOptimizer,
                    "steps",
                    ShardedOptimizer.steps.setter(steps_of_what_is_on_the_device),
                )
            ],
        ),
        "loaded weights not gathered under ZeRO-1": (ZERO1, [(DataParallel, "loaded", nothing)]),
        "moments loaded one element beside their place under ZeRO-1": (
            ZERO1,
            [(DataParallel, "_held", one_element_later)],
        ),
        "evaluation moves the data position": (
            DP2,
            [(_Loop, "_evaluate", evaluated_samples_count)],
        ),
        "evaluation leaves dropout off": (
            {**PP2, **DROPOUT},
            [(Trainer, "_set_training", never_back_to_training)],
        ),
    }.items()
}

"""Breaks that are the same on every layout, and are in one process, too, so that the layout law is blind to them; each
with the law that must notice. What is random, what becomes of a bad step, what is awaited."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from megascratch.checkpoint.async_saver import AsyncSaver
from megascratch.checkpoint.backend.direct_writer import DirectWriter
from megascratch.config.batch_size import num_microbatches
from megascratch.data.samples import microbatches
from megascratch.data_parallel.base import DataParallel
from megascratch.layers.kernels import dropout
from megascratch.model import chunk
from megascratch.parallel.gloo import DirectGather
from megascratch.parallel.random import mix64, mixed
from megascratch.pipeline import runtime
from megascratch.pipeline.runtime import _Player
from megascratch.training.checkpointing import Checkpointing
from megascratch.training.health import bad_steps, replicas
from megascratch.training.health.bad_steps import BadSteps, LossGuard
from megascratch.training.loop import _Loop
from megascratch.training.trainer import Trainer
from tests.support.awaited import (
    a_long_gather_awaits_its_messages,
    a_save_under_way_is_finished_when_a_run_fails,
    a_stream_awaits_each_room,
    every_transfer_is_awaited,
    the_last_save_is_made_again_where_it_failed,
    whoever_reads_weights_awaits_them,
)
from tests.support.breaks import (
    axes,
    groups,
    hangs,
    imagined,
    memory,
    numbers,
    own,
    read,
    starts,
    tables,
)
from tests.support.breaks.cuts import CUTS
from tests.support.breaks.initial import INITIAL
from tests.support.breaks.kept import KEPT
from tests.support.breaks.models import MODELS
from tests.support.breaks.rates import RATES
from tests.support.breaks.replacing import after, nothing
from tests.support.breaks.ropes import ROPES
from tests.support.never_seen import the_run_is_its_plan
from tests.support.random_sites import no_mask_is_drawn_twice
from tests.support.rank_pool import on_ranks


class Alike(NamedTuple):
    """Replacements (where, attribute, new value), and the law: `law(folder, on_ranks)` raises AssertionError."""

    replacements: list[tuple[Any, str, Any]]
    law: Callable[[Path, Callable], None]


@contextmanager
def in_force(name: str):
    """With the break of that name."""
    with ExitStack() as stack:
        for target, attribute, value in ALIKE[name].replacements:
            stack.enter_context(patch.object(target, attribute, value))
        yield


def run_in_force(name: str, function: Callable, *args: Any) -> Any:
    """On a rank."""
    with in_force(name):
        return function(*args)


def on_broken_ranks(name: str) -> Callable:
    """As `on_ranks`, with the break of that name on each."""
    return lambda world, function, *args: on_ranks(world, run_in_force, name, function, *args)


# ---- the laws, each of them one object -------------------------------------------------------------------------

Law = Callable[[Path, Callable], None]


def masks(folder: Path, run: Callable) -> None:
    no_mask_is_drawn_twice()


@cache
def plan(case: str) -> Law:
    return lambda folder, run: the_run_is_its_plan(case)


@cache
def reads(name: str) -> Law:
    return lambda folder, run: whoever_reads_weights_awaits_them(name, run)


@cache
def sends(schedule: str, tells: bool = False) -> Law:
    return lambda folder, run: every_transfer_is_awaited(schedule, tells, run)


def gathers(folder: Path, run: Callable) -> None:
    a_long_gather_awaits_its_messages(run)


def streams(folder: Path, run: Callable) -> None:
    a_stream_awaits_each_room(folder)


def failing_runs(folder: Path, run: Callable) -> None:
    a_save_under_way_is_finished_when_a_run_fails(folder)


def last_saves(folder: Path, run: Callable) -> None:
    the_last_save_is_made_again_where_it_failed(folder)


@cache
def initial(law: Callable[[], None]) -> Law:
    return lambda folder, run: law()


# ---- what is random --------------------------------------------------------------------------------------------


def sites(change: Callable) -> list:
    """Blocks whose dropouts `change(block, layer)` has moved to other sites."""
    plain = chunk.Block.__init__

    def __init__(self, spec, layer, *rest, **named):
        plain(self, spec, layer, *rest, **named)
        change(self, layer)

    return [(chunk.Block, "__init__", __init__)]


def second_is_first(block, layer):
    block.dropout2.site = block.dropout1.site


def of_the_layer_before(block, layer):
    for module in (block.attention.dropout, block.dropout1, block.dropout2):
        module.site -= 4 * (layer % 2)


def attention_is_residual(block, layer):
    block.attention.dropout.site = block.dropout1.site


def embedding_is_first_layer(self):
    self.dropout.site = 5


def seeds_added(seed, site, samples):
    return mix64(mix64(samples + seed) + site)


def sites_added(seed, site, samples):
    return mix64(samples + mixed(seed) + site)


def numbered_in_the_step(samples, numbers, *args, **options):
    return loader_collate(samples, [number % 4 for number in numbers], *args, **options)


loader_collate = microbatches.collate

RANDOM = {
    "second dropout of a block at the first one's site": sites(second_is_first),
    "neighbouring layers share masks": sites(of_the_layer_before),
    "attention's dropout at the residual stream's site": sites(attention_is_residual),
    "embedding's dropout at the first layer's site": [
        (chunk.Embedding, "__init__", after(chunk.Embedding.__init__, embedding_is_first_layer))
    ],
    "seed and sample added up": [(dropout, "sample_keys", seeds_added)],
    "site and sample added up": [(dropout, "sample_keys", sites_added)],
    "samples numbered anew in each step": [(microbatches, "collate", numbered_in_the_step)],
}


# ---- what becomes of a bad step --------------------------------------------------------------------------------


def adam_counts_on(self, *args):
    moved = plain_update(self, *args)
    self.data_parallel.update.steps += bool(moved.overflowed or moved.wrong)
    return moved


def wrong_is_overflow(self, *args):
    moved = plain_update(self, *args)
    return moved._replace(overflowed=moved.overflowed or bool(moved.wrong), wrong="")


def wrong_is_clean(self, *args, **options):
    result = plain_train_step(self, *args, **options)
    if result.wrong:
        self.scale = self.scale.after(False, self.config.optim)
    return result


def spikes_are_remembered(self, loss, grad_norm):
    wrong = plain_judge(self, loss, grad_norm)
    if wrong:
        self.state.recent_losses = [*self.state.recent_losses, loss][
            -self.guard.spiky_loss_window :
        ]
    return wrong


def into_copies(path, held, world):
    return plain_load(path, [replace(box, tensor=box.tensor.clone()) for box in held], world)


def keeping(read: Callable, write: Callable) -> list:
    """A rollback that keeps something as it was."""

    def roll_back(self, wrong):
        before = read(self)
        plain_roll_back(self, wrong)
        write(self, before)

    return [(BadSteps, "_roll_back", roll_back)]


def live_position(self):
    consumed, train = self.state.consumed_samples, self.splits.train
    for _ in range(self.state.step, self.total_steps):
        now = self.state.consumed_samples
        microbatches = num_microbatches(self.training, self.mesh.dp.size, now)
        yield self.built.read(train, consumed, microbatches, self.training.micro_batch_size)
        consumed += self._samples(microbatches)


def ramp_from_here(self):
    first = consumed = self.state.consumed_samples
    size = self.training.micro_batch_size
    for _ in range(self.state.step, self.total_steps):
        microbatches = num_microbatches(self.training, self.mesh.dp.size, consumed - first)
        yield self.built.read(self.splits.train, consumed, microbatches, size)
        consumed += self._samples(microbatches)


plain_update, plain_train_step, plain_judge = Trainer._update, Trainer.train_step, LossGuard.judge
plain_load, plain_roll_back = bad_steps.load, BadSteps._roll_back
count_on = [(Trainer, "_update", adam_counts_on)]

STATE = {
    "Adam's count rises on a step that is skipped": ("a step without numbers is skipped", count_on),
    "Adam's count rises on a step that overflows": ("a step overflows", count_on),
    "a spike is remembered among the good losses": (
        "two spikes in a row are skipped",
        [(LossGuard, "judge", spikes_are_remembered)],
    ),
    "the loss scale falls on a spike": (
        "a spike is skipped in fp16",
        [(Trainer, "_update", wrong_is_overflow)],
    ),
    "a step that is left out counts as a clean one": (
        "a spike is skipped in fp16",
        [(Trainer, "train_step", wrong_is_clean)],
    ),
    "a rollback leaves weights and moments as they are": (
        "back over good steps",
        [(bad_steps, "load", into_copies)],
    ),
    "a rollback keeps the loss scale": (
        "back over a spike, with the loss scale of then",
        keeping(lambda it: it.trainer.scale, lambda it, scale: setattr(it.trainer, "scale", scale)),
    ),
    "a rollback keeps Adam's count": (
        "back over good steps",
        keeping(
            lambda it: it.trainer.data_parallel.scalars(),
            lambda it, count: it.trainer.data_parallel.load_scalars(count),
        ),
    ),
    "a rollback keeps the losses remembered": (
        "back over good steps",
        keeping(
            lambda it: it.state.recent_losses,
            lambda it, losses: setattr(it.state, "recent_losses", losses),
        ),
    ),
    "a rollback does not wait for the save under way": (
        "back while the checkpoint is still being written",
        [
            (
                BadSteps,
                "__init__",
                after(BadSteps.__init__, lambda it: setattr(it, "settle", nothing)),
            )
        ],
    ),
    "reading ahead takes the live position": (
        "a batch that grows",
        [(_Loop, "_upcoming", live_position)],
    ),
    "a batch that grows begins anew after a resume": (
        "a batch that grows in a run that is resumed",
        [(_Loop, "_upcoming", ramp_from_here)],
    ),
}


# ---- what is awaited -------------------------------------------------------------------------------------------


def without(method: Callable, attribute: str) -> Callable:
    """The method, in which calls of another one of the object do nothing."""

    def changed(self, *args, **options):
        with patch.object(self, attribute, nothing):
            return method(self, *args, **options)

    return changed


def step_at_once(self, *args):
    """Only the first call, of what is left from the step before, does nothing."""
    calls, plain = [], self.await_weights
    with patch.object(self, "await_weights", lambda: plain() if calls else calls.append(1)):
        plain_step(self, *args)


def compared_at_once(trainer):
    with patch.object(trainer.data_parallel, "await_weights", nothing):
        yield from plain_blocks(trainer)


def last_sends_forgotten(self, order):
    def actions():
        yield from order
        self.sends.clear()

    return plain_play(self, actions())


def forgetting(method: Callable, op: str) -> Callable:
    """The method, in which waits for transfers of this kind do nothing."""

    def changed(self, *args):
        wait = self._wait
        with patch.object(
            self, "_wait", lambda it: it.tensor if it.action.op.startswith(op) else wait(it)
        ):
            return method(self, *args)

    return changed


class AtOnce:
    """Work whose wait does nothing."""

    def __init__(self, work):
        self.work = work

    def wait(self):
        return None


def open_at_once(links, device):
    start = runtime._start
    with patch.object(runtime, "_start", lambda *args: AtOnce(start(*args))):
        plain_connect(links, device)


def closed_at_once(self, wait=True):
    plain_close(self, wait=False)


def finished_at_once(self, *args):
    """The first of its two waits asks and does not wait."""
    calls, wait = [], self.saver.wait
    with patch.object(
        self.saver, "wait", lambda: wait() if calls else calls.append(1) or self.saver.poll(True)
    ):
        plain_finish(self, *args)


plain_step, plain_blocks, plain_play = DataParallel.step, replicas._blocks, _Player.play
plain_connect, plain_close, plain_finish = runtime.connect, AsyncSaver.close, Checkpointing.finish


AWAITED = {
    "a step does not await the weights of the one before": Alike(
        [(DataParallel, "step", step_at_once)], reads("the next step, without a forward between")
    ),
    "the state is handed out before its weights are here": Alike(
        [(Trainer, "held", lambda self: self._held)], reads("the state for a checkpoint")
    ),
    "replicas are compared before their weights are here": Alike(
        [(replicas, "_blocks", compared_at_once)], reads("the comparison of replicas")
    ),
    "the last sends of a step are not awaited": Alike(
        [(_Player, "play", last_sends_forgotten)], sends("1f1b")
    ),
    "a send whose gradient is here is not awaited": Alike(
        [(_Player, "_output_grad", forgetting(_Player._output_grad, "SF"))], sends("interleaved")
    ),
    "a send that is over is dropped": Alike(
        [(_Player, "_send", forgetting(_Player._send, "S"))], sends("1f1b", True)
    ),
    "the first message of a link is not awaited": Alike(
        [(runtime, "connect", open_at_once)], sends("1f1b")
    ),
    "the messages of a long gather are not awaited": Alike(
        [(DirectGather, "wait", nothing)], gathers
    ),
    "a room is filled again while it is being written": Alike(
        [(DirectWriter, "_send", without(DirectWriter._send, "_wait"))], streams
    ),
    "a file is cut before its last room is written": Alike(
        [(DirectWriter, "finish", without(DirectWriter.finish, "_wait"))], streams
    ),
    "a run that fails gives up the save under way": Alike(
        [(AsyncSaver, "close", closed_at_once)], failing_runs
    ),
    "how the last save has ended is not awaited": Alike(
        [(Checkpointing, "finish", finished_at_once)], last_saves
    ),
}

ROOMS = [room.BREAKS for room in (axes, numbers, hangs, imagined, tables, memory, own, read)]
ROOMS += [starts.STARTS, groups.GROUPS, CUTS, MODELS, RATES, ROPES]
ALIKE: dict[str, Alike] = {
    **{name: Alike(replaced, initial(law)) for name, (law, replaced) in INITIAL.items()},
    **{name: Alike(replaced, masks) for name, replaced in RANDOM.items()},
    **{name: Alike(replaced, plan(case)) for name, (case, replaced) in STATE.items()},
    **{name: Alike(replaced, law) for name, (replaced, law) in KEPT.items()},
    **AWAITED,
    **{name: Alike(*broken) for breaks in ROOMS for name, broken in breaks.items()},
}

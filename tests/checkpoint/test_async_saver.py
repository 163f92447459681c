"""A save beside training is the state of its moment, and whatever becomes of it all ranks hear at the same step."""

import threading
import time
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist

from megascratch import checkpoint
from megascratch.checkpoint import AsyncSaver, async_saver
from megascratch.checkpoint.format.file_format import arrange, split_box
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.staging import Staging
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.runtime.faults import armed
from tests.support.random_shards import names_that_differ, shards_of_rank, world
from tests.support.rank_pool import on_ranks


def saver_of(folder, ranks, **how):
    rank = dist.get_rank() if ranks > 1 else 0
    own = world(ranks, rank, dist.new_group() if ranks > 1 else None)
    return AsyncSaver(folder, own, **how)


def running_anywhere(saver) -> bool:
    """What a step of training finds out in its sum over all ranks."""
    running = torch.tensor(float(saver.is_running))
    if dist.is_initialized():
        dist.all_reduce(running)
    return running.item() > 0


def polled(saver, limit=30_000):
    """Steps until something has ended, and what."""
    for step in range(limit):
        if ended := saver.poll(running_anywhere(saver)):
            return step, ended
        time.sleep(0.02)
    raise AssertionError("nothing has ended")


@contextmanager
def held_up():
    """Saves begun here write nothing before the event that is given is set."""
    go_on, write = threading.Event(), async_saver.write_step

    def written(*args):
        go_on.wait()
        return write(*args)

    try:
        with patch.object(async_saver, "write_step", written):
            yield go_on
    finally:
        go_on.set()


def save_while_training(folder):
    saver = saver_of(folder, 2)
    held = shards_of_rank(saver.own.rank, 2, 0, filled=True)
    with held_up() as go_on:
        saver.start(5, held, {"lr": 0.1})
        for item in held:  # the next step
            item.tensor.fill_(3)
        early = saver.poll(running_anywhere(saver))
        go_on.set()
        _, (outcome,) = polled(saver)
    again = shards_of_rank(saver.own.rank, 2, 0, filled=False)
    state = checkpoint.load(folder, again, saver.own)
    return early, outcome.path, outcome.error, names_that_differ(again), state


def test_a_save_is_the_state_of_its_moment_whatever_training_does_meanwhile(tmp_path):
    first, second = on_ranks(2, save_while_training, tmp_path)
    assert first == second == ([], tmp_path / "step_00000005", None, [], {"lr": 0.1})


def save_twice_at_once(folder):
    saver = saver_of(folder, 2)
    held = shards_of_rank(saver.own.rank, 2, 0, filled=True)
    join = saver._join
    with held_up() as go_on, patch.object(saver, "_join", lambda: (go_on.set(), join())):
        saver.start(1, held, {})
        go_on.clear()
        memory = saver._staging.buffer.data_ptr()
        saver.start(2, held, {})
        ended_before = [outcome.step for outcome in saver._ended]
        steps = [outcome.step for outcome in saver.wait()]
    return ended_before, steps, memory == saver._staging.buffer.data_ptr()


def test_never_two_saves_are_under_way_and_the_memory_is_kept(tmp_path):
    for ended_before, steps, same_memory in on_ranks(2, save_twice_at_once, tmp_path):
        assert (ended_before, steps, same_memory) == ([1], [1, 2], True)
    assert [path.name for path in checkpoint.list_steps(tmp_path)] == [
        "step_00000002",
        "step_00000001",
    ]


FAULTS = {
    "save.begin:1:1:raise": "CheckpointError: rank 1: FaultError",
    "save.before_write:1:1:enospc": "DiskError: rank 1: {}.partial/00001.safetensors cannot be written: No space left",
    "save.write:0:1:enospc": "DiskError: rank 0: {}.partial/00000.safetensors cannot be written: No space left",
    "save.write:1:1:eio": "DiskError: rank 1: {}.partial/00001.safetensors cannot be written: Input/output error",
    "save.write:*:1:raise": "CheckpointError: rank 0: FaultError: fault point save.write",
    "save.after_write:1:1:raise": "CheckpointError: rank 1: FaultError",
    "save.before_commit:0:1:enospc": "DiskError: rank 0: {}step_00000001 cannot be written: No space left",
}


def save_with_faults(folder, faults):
    saver, answers = saver_of(folder, 2), []
    held = shards_of_rank(saver.own.rank, 2, 0, filled=True)
    for number, fault in enumerate(faults):
        here = folder / str(number)
        saver.folder = here
        here.mkdir(exist_ok=True)
        with armed(fault, rank=saver.own.rank):
            saver.start(1, held, {})
            step, (failed,) = polled(saver)
        saver.start(2, held, {})
        (good,) = saver.wait()
        told = f"{type(failed.error).__name__}: {failed.error}"
        answers.append(
            (step, told, failed.path, good.error, sorted(path.name for path in here.iterdir()))
        )
    return answers


def test_an_error_of_any_rank_reaches_all_at_the_same_step_and_the_next_save_works(tmp_path):
    faults = list(FAULTS)
    first, second = on_ranks(2, save_with_faults, tmp_path, faults)
    assert first == second
    for fault, (_, told, path, next_error, left) in zip(faults, first, strict=True):
        start, _, end = FAULTS[fault].partition("{}")
        assert told.startswith(start) and end in told, told
        assert path is None and next_error is None and left == ["step_00000002"]


def test_one_process_needs_no_group_and_a_save_without_background_ends_where_it_starts(tmp_path):
    held = shards_of_rank(0, 1, 0, filled=True)
    for asynchronous in (True, False):
        saver = saver_of(tmp_path, 1, asynchronous=asynchronous)
        saver.start(int(asynchronous), held, {})
        (outcome,) = saver.wait() if asynchronous else saver.poll(saver.is_running)
        assert outcome.error is None and (asynchronous or outcome.stall_seconds == outcome.seconds)
        again = shards_of_rank(0, 1, 4, filled=False)
        checkpoint.load(outcome.path, again, world())
        assert names_that_differ(again) == []


def test_staged_bytes_are_the_tensors_in_the_order_of_the_file():
    """Also where neighbours are copied in one piece, and where a box is a part of a row."""
    flat = torch.arange(60.0)
    pieces = [flat[0:10], flat[10:30].view(4, 5), flat[30:54].view(4, 6)[:, 1:3], flat[54:59]]
    held = [
        ShardedTensor(f"w{i}", tuple(p.shape), Box((0,) * p.dim(), tuple(p.shape)), p, 0)
        for i, p in enumerate(pieces)
    ]
    layout = arrange(
        slot for item in [*held, *shards_of_rank(0, 1, 0, filled=True)] for slot in split_box(item)
    )
    staging = Staging(layout)
    staging.copy()
    for index, slot in enumerate(layout.slots):
        assert bytes(staging.raw(index)) == bytes(raw_bytes(slot.tensor))
    assert len(staging._runs) < len(layout.slots)

"""A communication that does not end is named although `wait` has returned, and one that ends late is not."""

import gc
import os
import subprocess
import sys
import weakref

import torch

from megascratch.parallel.collectives import start_all_gather
from megascratch.runtime.heartbeat import FOLDER, read
from megascratch.runtime.launches import MOST, Launches
from tests.support.hangs import (
    DeviceMark,
    Rank,
    a_hang_is_named_by_its_oldest_launch,
    a_transfer_that_does_not_end_is_named,
    axis_of,
    what_ends_late_is_no_hang,
    whichever_hangs_in_a_step_is_named,
)
from tests.support.layout_runs import config_of


def test_the_oldest_launch_is_named_with_its_action():
    a_hang_is_named_by_its_oldest_launch()


def test_a_communication_that_ends_late_is_not_named():
    what_ends_late_is_no_hang()


def test_a_transfer_is_named_with_its_micro_batch():
    a_transfer_that_does_not_end_is_named()


def test_whichever_communication_of_a_step_hangs_is_named():
    layout = {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "sequence_parallel": True,
        "use_distributed_optimizer": True,
        "num_layers": 2,
        "global_batch_size": 4,
    }
    named = whichever_hangs_in_a_step_is_named(config_of(**layout), 5)
    assert named >= {
        "all_gather over tp",
        "reduce_scatter over tp",
        "all_reduce over data",
        "reduce_scatter over data",
        "all_gather over data",
        "all_reduce over world",
        "send to rank 1",
        "receive from rank 1",
    }


def test_no_tensor_is_kept_for_a_launch_that_was_awaited():
    axis = axis_of("tp", 0, 1)
    with Rank() as rank:
        whole = start_all_gather(torch.ones(3), axis).wait()
        kept = weakref.ref(whole)
        del whole
        gc.collect()
        assert kept() is None and rank.launches.oldest() is not None


def test_what_is_remembered_is_bounded_and_what_has_ended_is_forgotten():
    launches, marks = Launches(), [DeviceMark() for _ in range(MOST + 100)]
    first, *_ = [
        launches.add("dp", "all_reduce over dp", number, (0, 1), mark)
        for number, mark in enumerate(marks)
    ]
    assert len(launches._of_line["dp"]) == MOST and launches.oldest() is first
    for mark in marks:
        mark.yes = True
    assert launches.oldest() is None and len(launches._of_line["dp"]) == 0


HANGS = """
import time
from megascratch.runtime.heartbeat import at_step, doing, set_watched
from megascratch.runtime.launches import own_launches
from megascratch.supervision.hang_watch import HangWatch

class Never:
    def is_completed(self):
        return False

set_watched(), at_step(7), doing("F3 (micro-batch 3, chunk 0)")
own_launches().add("tp", "all_gather over tp", 17, (2, 3), Never())
doing("the numbers of the step")
with HangWatch(0.2, look_every=0.02):
    time.sleep(600)
"""


def test_a_rank_whose_main_thread_is_blocked_ends_and_says_why(tmp_path):
    environment = {**os.environ, FOLDER: str(tmp_path), "RANK": "3"}
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env=environment, capture_output=True, text=True
    )
    (where,) = read(tmp_path)
    launched = "all_gather over tp number 17 (ranks 2 3), launched in F3 (micro-batch 3, chunk 0) of step 7"
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"megascratch pretrain: rank 3: {launched}, timed out: it has not ended for"
    )
    assert (where.ended, where.code, where.step) == (True, 1, 7)
    assert where.error.startswith(f"{launched}, timed out")
    assert where.waits and where.waits_for == where.launched == launched

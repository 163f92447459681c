"""The user's own schedule is judged whole before any worker starts: complete, free of deadlock, of this run's size."""

import subprocess
import sys

import pytest

from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.pipeline.csv_schedule import write_table
from megascratch.pipeline.passes import compile_order
from megascratch.pipeline.schedule import Placement
from megascratch.training.start.inputs import own_schedule
from tests.support.layout_runs import config_of
from tests.support.refused_starts import MODEL, SHOW_TORCH

PP2 = {"pipeline_model_parallel_size": 2, "global_batch_size": 4}
WRONG = {  # what is taken from 1F1B of 2 stages and 4 micro-batches (and what is put there), settings, complaint
    "a receive is missing": (
        "1RECV_F2",
        "",
        {},
        "rank 1 runs F2 without its input: no RF2 before it",
    ),
    "a send is missing": ("0SEND_F1", "", {}, "rank 1 waits forever at RF1: rank 0 never sends it"),
    "a backward is missing": ("1B3", "", {}, "rank 1 lacks B3"),
    "a forward runs twice": ("1F3", "1F3,1F3", {}, "rank 1 runs F3 more than once"),
    "other chunks": (
        "",
        "",
        {"num_virtual_stages_per_pipeline_rank": 2},
        "has 2 ranks of 1 stages, but pipeline-model-parallel-size is 2 and num-virtual-stages",
    ),
    "other stages": ("", "", {"pipeline_model_parallel_size": 4}, "make them 2 and 1"),
    "other micro-batches": (
        "",
        "",
        {"global_batch_size": 6},
        "is a schedule of 4 micro-batches, but a step has 6: set global-",
    ),
    "other micro-batches after all": (
        "",
        "",
        {"micro_batch_size": 2},
        "is a schedule of 4 micro-batches, but a step has 2",
    ),
}


def file_of(folder, cell: str = "", instead: str = "") -> str:
    text = write_table(compile_order("1f1b", 2, 4), Placement(2))
    assert cell in text
    path = folder / "own.csv"
    path.write_text(text.replace(cell, instead) if cell else text)
    return str(path)


@pytest.mark.parametrize("name", WRONG)
def test_an_own_schedule_that_cannot_work_is_refused_with_the_action_or_the_sizes(name, tmp_path):
    cell, instead, settings, message = WRONG[name]
    config = config_of(**PP2 | settings, pipeline_schedule_csv=file_of(tmp_path, cell, instead))
    with pytest.raises(UserError) as caught:
        own_schedule(flat(config))
    assert message in str(caught.value) and "own.csv" in str(caught.value)


def test_an_own_schedule_that_fits_is_read_and_no_file_is_none(tmp_path):
    table = own_schedule(flat(config_of(**PP2, pipeline_schedule_csv=file_of(tmp_path))))
    assert table is not None and table.microbatches == 4
    assert own_schedule(flat(config_of(**PP2))) is None


def test_a_launch_with_a_missing_receive_ends_before_torch_is_imported(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    flags = [
        "--mock-data",
        "--vocab-size",
        "50",
        "--global-batch-size",
        "4",
        "--pipeline-model-parallel-size",
        "2",
        "--pipeline-schedule-csv",
        file_of(tmp_path, "1RECV_F2"),
        "--nproc-per-node",
        "2",
    ]
    command = [sys.executable, "-c", SHOW_TORCH, "pretrain", *MODEL, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work)
    assert (done.returncode, "without its input: no RF2" in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr and not list(work.iterdir())

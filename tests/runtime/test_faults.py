"""A fault strikes where, when and on whom the variable says, and nowhere else; the table of points is the code's."""

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megascratch.config.errors import UserError
from megascratch.runtime.faults import (
    ANY,
    EXIT_CODE,
    POINTS,
    VARIABLE,
    Fault,
    FaultError,
    armed,
    fault_point,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]


def points_in_the_code() -> set[str]:
    """The first argument of every call of `fault_point` in the package."""
    found = set()
    for file in (ROOT / "megascratch").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fault_point":
                assert isinstance(node.args[0], ast.Constant), (
                    f"{file}:{node.lineno}: write the point's name out"
                )
                found.add(node.args[0].value)
    return found


def test_the_table_holds_the_points_of_the_code_and_no_others():
    assert points_in_the_code() == set(POINTS)


def test_the_variable_names_point_rank_passage_action_and_attempt():
    assert parse("step.begin:2:7:kill, step.end:*:*:slow=0.3:*,gradient.reduce:0:1:corrupt:1") == [
        Fault("step.begin", 2, 7, "kill"),
        Fault("step.end", ANY, ANY, "slow", 0.3, ANY),
        Fault("gradient.reduce", 0, 1, "corrupt", attempt=1),
    ]


WRONG = {
    "": "is empty",
    "step.begin": "must be POINT:RANK:NTH:ACTION",
    "step.begn:0:1:kill": "did you mean step.begin?",
    "step.begin:x:1:kill": "RANK (x) must be a number of at least 0, or *",
    "step.begin:0:0:kill": "NTH (0) must be a number of at least 1",
    "step.begin:0:1:explode": "unknown action: explode; use kill, exit",
    "step.begin:0:1:slow": "use kill, exit",
    "step.begin:0:1:slow=nan": "must be a number of seconds",
    "step.begin:0:1:kill:-1": "ATTEMPT (-1)",
    "step.begin:0:1:corrupt": "has no data to corrupt; points with data: gradient.reduce",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_bad_value_is_refused_with_the_law(text):
    with pytest.raises(UserError) as refusal:
        parse(text)
    assert WRONG[text] in str(refusal.value) and VARIABLE in str(refusal.value)


def test_all_that_is_wrong_is_told_before_any_work_starts():
    command = [sys.executable, "-m", "megascratch", "pretrain", "--mock-data"]
    environment = {**os.environ, VARIABLE: "nowhere:0:1:kill,step.begin:0:1:nothing"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = "megascratch pretrain: error: 2 problems\n  MEGASCRATCH_FAULT: nowhere:0:1:kill: unknown fault point"
    assert done.returncode == 2 and done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


def test_a_fault_strikes_at_its_passage_rank_and_attempt_only():
    with armed("step.begin:1:3:raise:2", rank=1, attempt=2):
        fault_point("step.begin")
        fault_point("step.end")
        fault_point("step.begin")
        with pytest.raises(FaultError, match=r"step\.begin, passage 3"):
            fault_point("step.begin")
        fault_point("step.begin")
    for who in ({"rank": 0, "attempt": 2}, {"rank": 1, "attempt": 0}):
        with armed("step.begin:1:1:raise:2", **who):
            fault_point("step.begin")


@pytest.mark.parametrize(("action", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_an_error_of_the_disk_looks_like_the_disk_s(action, number):
    with armed(f"index.write:*:1:{action}"), pytest.raises(OSError) as error:
        fault_point("index.write")
    assert error.value.errno == number and os.strerror(number) in str(error.value)


def test_corruption_flips_one_bit(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(bytes(9))
    numbers, buffer = torch.zeros(3, dtype=torch.bfloat16), bytearray(8)
    with armed("gradient.reduce:*:*:corrupt"):
        for data in (file, numbers, buffer):
            fault_point("gradient.reduce", data)
    assert file.read_bytes() == bytes(4) + b"\1" + bytes(4)
    assert numbers.view(torch.uint8).tolist() == [0, 0, 0, 1, 0, 0]
    assert buffer == bytes(4) + b"\1" + bytes(3)


ENDS = {"kill": -signal.SIGKILL, "exit": EXIT_CODE}
HERE = "from megascratch.runtime.faults import fault_point; fault_point('step.begin'); print('went on')"


@pytest.mark.parametrize("action", ENDS)
def test_a_process_ends_as_the_action_says(action):
    environment = {**os.environ, VARIABLE: f"step.begin:3:1:{action}", "RANK": "3"}
    done = subprocess.run(
        [sys.executable, "-c", HERE], capture_output=True, text=True, env=environment, timeout=300
    )
    assert (done.returncode, done.stdout) == (ENDS[action], "")
    assert done.stderr == f"fault point step.begin, passage 1 of rank 3: {action}\n"


def test_a_stopped_process_waits_and_goes_on_when_it_is_told_to():
    environment = {**os.environ, VARIABLE: "step.begin:0:1:stop"}
    with subprocess.Popen(
        [sys.executable, "-c", HERE], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=300)[0] == "went on\n"

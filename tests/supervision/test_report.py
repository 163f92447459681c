"""Of all that is wrong at once, the report names what began it; a rank's file says what it was doing."""

import os
import subprocess
import sys
import time

import pytest

from megascratch.parallel.whereabouts import ENDED, FOLDER, JUDGED, WAITS, Whereabouts, read
from megascratch.supervision.nodes import _judge
from megascratch.supervision.report import LOST, Seen, culprits, hangs, headline, table
from megascratch.supervision.watch import end, look, state_of

ECHO = "all_reduce over tp failed on rank 0 of 2: another rank has ended; its own message tells why"
LATE = "all_reduce over dp failed on rank 1 of 2: Timed out waiting 4998ms for recv operation to complete"


def rank(number, code=None, state="S", still=0.0, flags=JUDGED, action="F3", awaited="", error="", step=7):
    where = Whereabouts(number, 1000 + number, flags, 0.0, step, code or 0, action, awaited, "", error)
    return Seen(number, code, state, still, where)


WAITING = rank(0, flags=JUDGED | WAITS, still=5.1, awaited="all_reduce over tp number 17 (ranks 0 1)")
CASES = {
    "a signal before its echoes": ([rank(0, 1, error=ECHO), rank(1, -9)], [1], "was killed by SIGKILL"),
    "death without a word": ([rank(0, 1, error=ECHO), rank(1, LOST)], [1], "died without a word"),
    "an error of its own before its echo": (
        [rank(0, 1, error=ECHO), rank(1, 1, error="OSError: no space")], [1], "exit code 1: OSError: no space"),
    "a stopped rank before those that it kept waiting": (
        [rank(0, 1, error=LATE), rank(1, state="T", still=5.3)], [1], "is stopped (SIGSTOP)"),
    "a rank at work before those that wait for it": (
        [WAITING, rank(1, still=5.2)], [1], "hangs in its own code"),
    "two at once": ([rank(0, -9), rank(1, -15), rank(2, 1, error=ECHO)], [0, 1], "was killed by SIGTERM"),
    "nobody but the longest waiting": (
        [WAITING, rank(1, flags=JUDGED | WAITS, still=5.3, awaited="x")], [1], "has waited longest"),
    "only echoes": ([rank(0, 1, error=ECHO)], [0], "ended with exit code 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_report_blames_what_began_it(case):
    seen, blamed, words = CASES[case]
    assert [number for number, _ in culprits(seen)] == blamed
    assert words in headline(seen) and "at step 7, in F3" in headline(seen)
    assert [line.startswith("->") for line in table(seen)] == [one.rank in blamed for one in seen]


def test_a_rank_hangs_only_where_others_wait_for_it_and_it_lives():
    assert hangs([rank(0, still=5.1)], 5.0) and not hangs([rank(0, still=4.9)], 5.0)
    assert not hangs([rank(0, still=9.0, flags=0)], 5.0), "before it meets the others it may take its time"
    assert not hangs([rank(0, still=9.0, flags=JUDGED | ENDED)], 5.0) and not hangs([rank(0, 0, still=9.0)], 5.0)


@pytest.mark.parametrize(("agent", "ranks", "code"), [
    (0, [0, 0], 0), (0, [83, 83], 83), (0, [82, 81], 82), (1, [1, None], 1), (1, [0, 0], 1), (1, [], 1),
    (1, [83, 83], 83),  # a batch system's SIGTERM went to torchrun, too
    (1, [83, None], 1), (1, [83, 1], 1), (-9, [130, 130], 130),
])  # fmt: skip
def test_ranks_that_have_saved_know_the_exit_code_better_than_torchrun(agent, ranks, code):
    ended = [rank(number, one, flags=ENDED if one is not None else JUDGED).where for number, one in enumerate(ranks)]
    assert _judge(agent, ended) == code


NOTES = """
import sys, threading, time
from megascratch.parallel import whereabouts as here
here.judge(), here.at_step(7), here.doing("F3 (micro-batch 3, chunk 0)")
with here.waiting("all_reduce over tp", here.numbered("tp"), (0, 2)):
    with here.waiting("transfer", ranks=()): pass
assert here.numbered("tp") == 2 and here.numbered("dp") == 1
save, reduce = here.waiting("all_gather over save"), here.waiting("all_reduce over dp", here.numbered("dp"), range(20))
background = threading.Thread(target=save.__enter__)
background.start(), background.join()
reduce.__enter__()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_rank_that_does_nothing_more_can_be_read_from_outside(tmp_path):
    environment = {**os.environ, FOLDER: str(tmp_path), "RANK": "3"}
    process = subprocess.Popen([sys.executable, "-c", NOTES], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        (where,) = read(tmp_path)
        assert (where.rank, where.pid, where.step) == (3, process.pid, 7)
        assert where.judged and where.waits and not where.ended and 0 <= time.monotonic() - where.moved < 20
        assert where.action == "F3 (micro-batch 3, chunk 0)" and where.background == "all_gather over save"
        assert where.awaited == f"all_reduce over dp number 2 (ranks {' '.join(map(str, range(16)))} ...)"
        process.send_signal(19)
        while state_of(process.pid) != "T":
            time.sleep(0.01)
        (seen,) = look(tmp_path, {3: None})
        assert seen.stopped
    finally:
        end([process.pid])
        process.wait()
        process.stdout.close()
    (seen,) = look(tmp_path, {3: -9})
    assert seen.code == -9 and seen.state == ""

"""Of all that is wrong at once, the report names what began it; a rank's file says what it was doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from psutil import STATUS_SLEEPING, STATUS_STOPPED, STATUS_ZOMBIE

from megascratch.runtime.heartbeat import ENDED, FOLDER, WAITS, WATCHED, Heartbeat, read
from megascratch.supervision import multi_node
from megascratch.supervision.multi_node import _exit_code
from megascratch.supervision.observe import is_alive, kill, observe, state_of
from megascratch.supervision.report import (
    LOST,
    RankStatus,
    cause_is_known,
    headline,
    hung_for,
    may_still_report,
    refused,
    root_causes,
    table,
)

ECHO = (
    "all_reduce over tp failed on rank 0 of 2: another rank has ended; see the message of that rank"
)
LATE = "all_reduce over dp failed on rank 1 of 2: Timed out waiting 4998ms for recv operation to complete"


def rank(
    number,
    code=None,
    state=STATUS_SLEEPING,
    still=0.0,
    flags=WATCHED,
    action="F3",
    awaited="",
    error="",
    step=7,
    launched="",
):
    where = Heartbeat(
        number, 1000 + number, flags, 0.0, step, code or 0, action, awaited, "", error, launched
    )
    return RankStatus(number, code, state, still, where)


WAITING = rank(
    0, flags=WATCHED | WAITS, still=5.1, awaited="all_reduce over tp number 17 (ranks 0 1)"
)
LAUNCHED = rank(
    0, still=5.1, launched="all_reduce over dp number 4 (ranks 0 1), launched in B2 of step 7"
)
CASES = {
    "a rank at work before those whose device waits for it": (
        [LAUNCHED, rank(1, still=5.2)],
        [1],
        "hangs in its own code",
    ),
    "a signal before its echoes": (
        [rank(0, 1, error=ECHO), rank(1, -9)],
        [1],
        "was killed by SIGKILL",
    ),
    "death without a word": (
        [rank(0, 1, error=ECHO), rank(1, LOST)],
        [1],
        "died without reporting an exit code",
    ),
    "an error of its own before its echo": (
        [rank(0, 1, error=ECHO), rank(1, 1, error="OSError: no space")],
        [1],
        "exit code 1: OSError: no space",
    ),
    "a stopped rank before those that it kept waiting": (
        [rank(0, 1, error=LATE), rank(1, state=STATUS_STOPPED, still=5.3)],
        [1],
        "is stopped (SIGSTOP)",
    ),
    "a rank at work before those that wait for it": (
        [WAITING, rank(1, still=5.2)],
        [1],
        "hangs in its own code",
    ),
    "two at once": (
        [rank(0, -9), rank(1, -15), rank(2, 1, error=ECHO)],
        [0, 1],
        "was killed by SIGTERM",
    ),
    "nobody but the longest waiting": (
        [WAITING, rank(1, flags=WATCHED | WAITS, still=5.3, awaited="x")],
        [1],
        "has waited longest",
    ),
    "only echoes": ([rank(0, 1, error=ECHO)], [0], "ended with exit code 1"),
}


def test_a_process_is_alive_until_it_has_ended_even_if_it_is_stopped():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert is_alive(process.pid)
        process.send_signal(signal.SIGSTOP)
        while state_of(process.pid) != STATUS_STOPPED:
            time.sleep(0.01)
        assert is_alive(process.pid)
    finally:
        kill([process.pid])
    while state_of(process.pid) != STATUS_ZOMBIE:
        # its parent, this process, has not asked for its exit code
        time.sleep(0.01)
    assert not is_alive(process.pid)
    process.wait()
    assert state_of(process.pid) == "" and not is_alive(process.pid)


@pytest.mark.parametrize("case", CASES)
def test_the_report_blames_what_began_it(case):
    seen, blamed, words = CASES[case]
    assert [number for number, _ in root_causes(seen)] == blamed
    assert words in headline(seen) and "at step 7, in F3" in headline(seen)
    assert [line.startswith("->") for line in table(seen)] == [one.rank in blamed for one in seen]


SLOW = rank(1, flags=0, action="")
REFUSED = rank(0, 2, error="UserError: no room")
REFUSALS = {
    "before any step, the other is slow": ([rank(0, 2, step=0), rank(1, step=0)], True),
    "before any step, the other was killed": ([rank(0, 2, step=0), rank(1, -9, step=0)], True),
    "it has said so, and its process is still there": (
        [
            rank(0, None, step=0)._replace(where=rank(0, 2, flags=ENDED, step=0).where),
            rank(1, step=0),
        ],
        True,
    ),
    "at step 7, the other is slow": ([REFUSED, SLOW], True),
    "at step 7, all": ([REFUSED, rank(1, 2)], True),
    "at step 7, the other found it gone": ([REFUSED, rank(1, 1, error=ECHO)], True),
    "at step 7, the other was killed": ([REFUSED, rank(1, -9)], False),
    "at step 7, the other failed by itself": (
        [REFUSED, rank(1, 1, error="OSError: no space")],
        False,
    ),
    "nobody refused": ([rank(0, 1, step=0), rank(1, step=0)], False),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_ranks_said_decides_whether_a_new_start_could_mend_it(case):
    seen, no_use = REFUSALS[case]
    assert refused(seen) == no_use


SEEN_SO_FAR = {
    "only one that lost another": ([rank(0, 1, error=ECHO), rank(1)], False),
    "the one that was killed, too": ([rank(0, 1, error=ECHO), rank(1, -9)], True),
    "one that is about to end with an error of its own": (
        [
            rank(0, 1, error=ECHO),
            rank(1)._replace(where=rank(1, 1, flags=ENDED, error="OSError: no space").where),
        ],
        True,
    ),
    "one that is stopped": ([rank(0, 1, error=LATE), rank(1, state=STATUS_STOPPED)], True),
    "one that stands still and waits for nobody": (
        [rank(0, 1, error=LATE), rank(1, still=5.0)],
        True,
    ),
    "one that moved just now": ([rank(0, 1, error=LATE), rank(1, still=0.1)], False),
    "a hang": ([WAITING, rank(1, still=0.1)], True),
}


@pytest.mark.parametrize("case", SEEN_SO_FAR)
def test_the_report_waits_for_the_rank_that_began_it(case):
    seen, known = SEEN_SO_FAR[case]
    assert cause_is_known(seen) == known


def test_a_rank_hangs_only_where_others_wait_for_it_and_it_lives():
    assert hung_for([rank(0, still=5.1)], 5.0) == 5.0 and not hung_for([rank(0, still=4.9)], 5.0)
    assert not hung_for([rank(0, still=9.0, flags=0)], 5.0), (
        "before it meets the others it may take its time"
    )
    assert not hung_for([rank(0, still=9.0, flags=WATCHED | ENDED)], 5.0) and not hung_for(
        [rank(0, 0, still=9.0)], 5.0
    )


def test_a_rank_that_loads_may_take_as_long_as_it_said_until_its_next_step(tmp_path):
    code = (
        "import os, sys; from megascratch.runtime import heartbeat as here; here.set_watched();"
        "here.may_take(9.5); sys.argv[1] == 'steps' and here.at_step(3)"
    )
    for then, allowed in (("loads", 9.5), ("steps", 5.0)):
        environment = {**os.environ, FOLDER: str(tmp_path / then), "RANK": "0"}
        subprocess.run([sys.executable, "-c", code, then], env=environment, check=True)
        (where,) = read(tmp_path / then)
        for idle in (4.9, 5.1, 9.4, 9.6):
            seen = [RankStatus(0, None, STATUS_SLEEPING, idle, where)]
            assert hung_for(seen, 5.0) == (allowed if idle > allowed else 0.0)


@pytest.mark.parametrize(
    ("agent", "ranks", "code"),
    [
        (0, [0, 0], 0),
        (0, [83, 83], 83),
        (0, [82, 81], 82),
        (1, [1, None], 1),
        (1, [0, 0], 1),
        (1, [], 1),
        (1, [83, 83], 83),  # a batch system's SIGTERM went to torchrun, too
        (1, [2, 2], 2),
        (-9, [2, 2], 2),  # refused: torchrun would only start them again
        (1, [83, None], 1),
        (1, [83, 1], 1),
        (-9, [130, 130], 130),
    ],
)
def test_ranks_that_have_saved_know_the_exit_code_better_than_torchrun(agent, ranks, code):
    ended = [
        rank(number, one, flags=ENDED if one is not None else WATCHED).where
        for number, one in enumerate(ranks)
    ]
    assert _exit_code(agent, ended) == code


NOTES = """
import sys, threading, time
from megascratch.runtime import heartbeat as here
here.set_watched(), here.at_step(7), here.doing("F3 (micro-batch 3, chunk 0)")
with here.waiting("all_reduce over tp", here.next_number("tp"), (0, 2)):
    with here.waiting("transfer", ranks=()): pass
assert here.next_number("tp") == 2 and here.next_number("dp") == 1
save = here.waiting("all_gather over save")
reduce = here.waiting("all_reduce over dp", here.next_number("dp"), range(20))
background = threading.Thread(target=save.__enter__)
background.start(), background.join()
reduce.__enter__()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_rank_that_does_nothing_more_can_be_read_from_outside(tmp_path):
    environment = {**os.environ, FOLDER: str(tmp_path), "RANK": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", NOTES], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        (where,) = read(tmp_path)
        assert (where.rank, where.pid, where.step) == (3, process.pid, 7)
        assert (
            where.watched
            and where.waits
            and not where.ended
            and 0 <= time.monotonic() - where.moved < 600
        )
        assert (
            where.action == "F3 (micro-batch 3, chunk 0)"
            and where.background == "all_gather over save"
        )
        assert (
            where.awaited
            == f"all_reduce over dp number 2 (ranks {' '.join(map(str, range(16)))} ...)"
        )
        process.send_signal(19)
        while state_of(process.pid) != STATUS_STOPPED:
            time.sleep(0.01)
        (seen,) = observe(tmp_path, {3: None})
        assert seen.stopped
    finally:
        kill([process.pid])
        process.wait()
        process.stdout.close()
    (seen,) = observe(tmp_path, {3: -9})
    assert seen.code == -9 and seen.state == ""


def nodes_of(nnodes: str) -> multi_node.Nodes:
    """The arguments of a node that has one rank."""
    log = Path("runs/x/log.txt")
    return multi_node.Nodes(nnodes, 1, 0, "a:29500", "run", None, None, [], "megascratch", log)


@pytest.mark.parametrize(
    ("nnodes", "told"),
    [
        ("2", "waiting for 1 of 2 nodes at a:29500, for 10 s"),
        ("3:8", "waiting for up to 2 of 3 nodes at a:29500, for 10 s"),
        ("1:2", "waiting for another node at a:29500, for 10 s"),
    ],
)
def test_a_node_that_is_alone_says_so_after_ten_seconds_and_then_ever_more_seldom(
    monkeypatch, capsys, nnodes, told
):
    clock = [1000.0]
    monkeypatch.setattr(multi_node.time, "monotonic", lambda: clock[0])
    waiting = multi_node._Waiting(nodes_of(nnodes))
    for _ in range(150):
        clock[0] += 1
        waiting.look(meets=True)
    waiting.look(meets=False)
    clock[0] += 9
    waiting.look(meets=True)
    said = capsys.readouterr().err.splitlines()
    waits = [told.replace("10 s", f"{seconds} s") for seconds in (10, 20, 40, 80, 140)]
    assert said == [f"megascratch supervisor: {text}" for text in waits]


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ([0, 1], []),
        ([4], ["rank 4 runs here"]),
        ([3, 2], ["ranks 2 to 3 run here"]),
    ],
)  # fmt: skip
def test_a_node_without_the_first_rank_says_where_the_log_is(capsys, ranks, told):
    beats = [rank(number).where for number in ranks]
    multi_node._say_where_the_log_is(beats, nodes_of("2"))
    where = "the log of the run is printed on the node of rank 0, and is in runs/x/log.txt there"
    lines = [f"megascratch supervisor: {text}; {where}" for text in told]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        (None, None),
        ("a=1", None),
        ("is_host=0", False),
        ("a=1,is_host=1", True),
        (" is_host = True ", True),
    ],
)
def test_who_opens_the_store_is_what_the_settings_say(settings, hosts):
    assert multi_node._hosts(settings) is hosts


@pytest.mark.parametrize(
    ("seen", "waits"),
    [
        ([rank(0, -9), rank(1, still=0.1)], True),
        ([rank(0, -9), rank(1, still=5.0)], False),  # it stands still
        (
            [rank(0, -9), rank(1)._replace(where=rank(1, 1, flags=ENDED).where)],
            True,
        ),  # it may be printing why
        ([rank(0, -9), rank(1, state=STATUS_STOPPED)], False),
        ([rank(0, -9), WAITING._replace(rank=1)], False),  # for the dead one, perhaps without end
        ([rank(0, -9), rank(1, 1)], False),
        ([rank(0), rank(1)], False),  # none has failed: this is a hang
    ],
)
def test_ranks_at_work_are_heard_after_another_has_failed(seen, waits):
    assert may_still_report(seen) == waits

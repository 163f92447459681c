"""Ranks that die, hang or stand still are named, ended and started again, and the weights are those of a run that
nothing disturbed; a run that ends says by its code what to do next.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from psutil import STATUS_STOPPED

from megascratch.commands import main
from megascratch.config import exit_codes
from megascratch.runtime.faults import VARIABLE
from megascratch.runtime.heartbeat import STORE, at_step, doing, ended, set_watched, waiting
from megascratch.supervision import launch as launch_module
from megascratch.supervision.launch import GRACE, LaunchConfig, launch
from megascratch.supervision.observe import state_of
from tests.support.supervised_runs import DP2, SMALL, weights


def train(folder: Path, *words: str) -> int:
    return main(["pretrain", *SMALL, "--output-dir", str(folder), *words])


# each in the attempt of its place: (where, what the report says)
FAULTS = {
    "forward.begin:1:3:kill": "rank 1 was killed by SIGKILL, at step 2, in F",
    "step.begin:0:2:raise": "rank 0 ended with exit code 1: FaultError: fault point step.begin",
    "gradient.finish:0:3:hang": "rank 0 hangs in its own code, not in a communication, at step ",
    "optimizer.step:1:2:stop": "rank 1 is stopped (SIGSTOP), at step ",
    "collective.wait:1:9:exit": "rank 1 ended with exit code 70",
}


def fail_and_go_on(folder: Path, monkeypatch, faults: list[str], seconds: float) -> None:
    """The run fails in every attempt as `faults` says, is reported so, and ends with the weights of a calm one."""
    assert train(folder / "calm", *DP2) == 0
    assert not (folder / "calm" / "faults").exists()
    monkeypatch.setenv(
        VARIABLE, ",".join(f"{fault}:{attempt}" for attempt, fault in enumerate(faults))
    )
    restarts = [
        "--max-restarts",
        str(len(faults)),
        "--distributed-timeout-minutes",
        str(seconds / 60),
    ]
    assert train(folder / "wild", *DP2, *restarts) == 0
    for attempt, fault in enumerate(faults):
        report = (folder / "wild" / "faults" / f"attempt_{attempt}.txt").read_text()
        assert report.startswith(FAULTS[fault]), f"attempt {attempt}: {report[:300]}"
        if "hangs" in FAULTS[fault]:
            assert "in fault_point" in report and "in finish" in report, (
                "the stack of the rank that hangs"
            )
    assert weights(folder / "wild") == weights(folder / "calm") != {}


def test_a_run_whose_ranks_die_ends_with_the_weights_of_the_undisturbed_one(tmp_path, monkeypatch):
    fail_and_go_on(tmp_path, monkeypatch, list(FAULTS)[:2], 60)


@pytest.mark.deep
def test_a_run_that_fails_in_every_way_ends_with_the_weights_of_the_undisturbed_one(
    tmp_path, monkeypatch
):
    fail_and_go_on(tmp_path, monkeypatch, list(FAULTS), 15)


def test_without_restarts_a_failure_is_code_1_and_bad_input_is_never_tried_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, "step.begin:0:1:kill:*")
    assert train(tmp_path, *DP2) == exit_codes.FAILED
    (tmp_path / "blocked").write_text("a file where the checkpoints should be")
    monkeypatch.delenv(VARIABLE)
    assert (
        train(tmp_path / "other", *DP2, "--max-restarts", "3", "--load", str(tmp_path / "blocked"))
        == 2
    )
    assert not (tmp_path / "other" / "faults").exists()


def test_a_rank_that_hangs_before_all_have_met_is_a_failure_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "run.meet:1:1:hang")
    # rank 0 alone ends, and no cause will show
    monkeypatch.setattr("megascratch.supervision.observe.CAUSE_SHOWS", 1.0)
    assert train(tmp_path, *DP2, "--distributed-timeout-minutes", "0.05") == exit_codes.FAILED
    assert (
        (tmp_path / "faults" / "attempt_0.txt")
        .read_text()
        .startswith("rank 1 hangs in its own code")
    )


def test_a_run_goes_on_with_fewer_ranks_and_the_same_batch(tmp_path, capfd):
    batch = SMALL.index("--global-batch-size")
    free = SMALL[:batch] + SMALL[batch + 2 :]
    run = partial(main, ["pretrain", *free, "--output-dir", str(tmp_path), "--auto-resume"])
    assert train(tmp_path, *DP2, "--exit-interval", "4") == exit_codes.EXIT_INTERVAL
    assert run() == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["consumed_samples"] for row in rows if "loss" in row] == [
        4 * step for step in range(1, 9)
    ]
    capfd.readouterr()
    assert (
        main(
            [
                "pretrain",
                *free,
                "--output-dir",
                str(tmp_path),
                "--auto-resume",
                "--micro-batch-size",
                "3",
            ]
        )
        == 2
    )
    assert "global-batch-size (4) must be divisible by" in capfd.readouterr().err


# ---- the launcher alone, with ranks that only pretend ----------------------------------------------------------


def pretend(codes: list[int], folder: str) -> int:
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    Path(folder, f"{rank}.attempt {attempt}").touch()
    return codes[rank]


def obey(number: int, code: int, folder: str) -> int:
    """Ends with `code` at the first signal `number`."""
    came = threading.Event()
    signal.signal(number, lambda *_: came.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    Path(folder, os.environ["RANK"]).touch()
    came.wait(600)
    return code


def refuse(slow: int, step: int, folder: str) -> int:
    """One rank refuses its input at a step. The other is slower: it never comes to that."""
    Path(folder, f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
    at_step(step)
    if os.environ["RANK"] == str(slow):
        time.sleep(600)
    ended(exit_codes.BAD_INPUT, "DiskError: no room")
    return exit_codes.BAD_INPUT


def deaf(folder: str) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    Path(folder, os.environ["RANK"]).touch()
    time.sleep(600)
    return 0


def wait_for_the_other(action: str, folder: str) -> int:
    """Rank 0 waits in a communication, as soon as rank 1 stands still and will not come."""
    still = Path(folder, "rank 1")
    if os.environ["RANK"] == "0":
        while not still.exists() or (
            action == "stop" and state_of(int(still.read_text())) != STATUS_STOPPED
        ):
            time.sleep(0.02)
        at_step(7)
        with waiting("all_reduce over dp", 3, (0, 1)):
            set_watched()  # only now, so that on a busy machine no hang is seen before this one
            time.sleep(600)
    at_step(7), doing("F3")
    (Path(folder) / "making").write_text(str(os.getpid()))
    (Path(folder) / "making").rename(still)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
    return 0


def note_where_to_meet(folder: str) -> int:
    store = Path(os.environ[STORE])
    mode = store.parent.stat().st_mode & 0o777
    Path(folder, f"meets.{os.environ['RANK']}").write_text(
        f"{store} {mode:o} {os.environ.get('MASTER_PORT')}"
    )
    return 0


def diverge(steps: list[int], words: list[str], folder: str) -> int:
    """All ranks end alike; step and words by attempt."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    at_step(steps[attempt])
    ended(exit_codes.FAILED, words[attempt])
    Path(folder, f"{attempt}.{os.environ['RANK']}").touch()
    while len(list(Path(folder).glob(f"{attempt}.*"))) < 2:
        time.sleep(0.02)  # until both have spoken: the end of the first one is the end of both
    return exit_codes.FAILED


def plan(target, tmp_path: Path, max_restarts: int = 0, limit: float = 60.0) -> LaunchConfig:
    return LaunchConfig(
        target, ranks=2, max_restarts=max_restarts, limit=limit, reports=tmp_path / "faults"
    )


@pytest.mark.parametrize(
    ("steps", "words", "attempts"),
    [
        ([7, 7, 7, 7], ["nan"] * 4, 2),
        ([7, 8, 8, 9], ["nan"] * 4, 3),
        ([7] * 4, ["nan", "lost", "nan", "lost"], 4),
    ],
    ids=["the same at once", "the same later", "never the same"],
)
def test_an_end_that_comes_back_is_not_tried_a_third_time(tmp_path, capfd, steps, words, attempts):
    target = partial(diverge, steps, words, str(tmp_path))
    assert launch(plan(target, tmp_path, max_restarts=3)) == exit_codes.FAILED
    assert len(list(tmp_path.glob("*.0"))) == attempts
    assert ("failed twice with the same error" in capfd.readouterr().err) == (attempts < 4)


def test_ranks_that_have_all_failed_before_anyone_looks_are_reported(tmp_path, monkeypatch):
    def look_late(attempt, seconds):
        for process in attempt.processes:
            process.join()

    monkeypatch.setattr(launch_module._Attempt, "_pause", look_late)
    assert (
        launch(plan(partial(diverge, [7], ["nan"], str(tmp_path)), tmp_path)) == exit_codes.FAILED
    )
    report = (tmp_path / "faults" / "attempt_0.txt").read_text()
    assert all(f"rank {rank}: at step 7, ended with exit code 1: nan" in report for rank in (0, 1))


@pytest.mark.parametrize(
    ("action", "told"),
    [("stop", "is stopped (SIGSTOP)"), ("hang", "hangs in its own code, not in a communication")],
)
def test_a_rank_that_keeps_others_waiting_is_named_with_its_action_and_all_are_ended(
    tmp_path, action, told
):
    assert (
        launch(plan(partial(wait_for_the_other, action, str(tmp_path)), tmp_path, limit=1.0))
        == exit_codes.FAILED
    )
    report = (tmp_path / "faults" / "attempt_0.txt").read_text()
    assert report.startswith(f"rank 1 {told}, at step 7, in F3 (no progress for 1 s)")
    assert "   rank 0: at step 7, waits for all_reduce over dp number 3 (ranks 0 1), for " in report
    assert report.count("in wait_for_the_other") == (1 if action == "stop" else 2), (
        "stacks of all that answer"
    )


@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [
        ([0, 0], 0, 1),
        ([83, 83], 83, 1),
        ([82, 82], 82, 1),
        ([0, 1], 1, 3),
        ([2, 2], 2, 1),
        ([0, 70], 1, 3),
    ],
)
def test_the_ranks_codes_decide_the_run_s_code_and_whether_it_starts_again(
    tmp_path, codes, code, starts
):
    assert launch(plan(partial(pretend, codes, str(tmp_path)), tmp_path, max_restarts=2)) == code
    assert len({path.suffix for path in tmp_path.glob("*.attempt *")}) == starts


@pytest.mark.parametrize("step", [0, 9])
@pytest.mark.parametrize("slow", [0, 1])
def test_what_a_rank_refuses_is_code_2_and_not_tried_again_however_slow_the_others_are(
    tmp_path, monkeypatch, step, slow
):
    # the slow one does not come, however long one waits
    monkeypatch.setattr("megascratch.supervision.report.HANGS_AFTER", 0.2)
    assert (
        launch(plan(partial(refuse, slow, step, str(tmp_path)), tmp_path, max_restarts=2))
        == exit_codes.BAD_INPUT
    )
    assert [path.name for path in tmp_path.glob("attempt *")] == ["attempt 0"]
    assert not (tmp_path / "faults").exists()


def test_ranks_of_one_machine_meet_in_a_folder_of_their_users_alone_and_at_no_port(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert launch(plan(partial(note_where_to_meet, str(tmp_path)), tmp_path)) == 0
    told = [(tmp_path / f"meets.{rank}").read_text().split() for rank in (0, 1)]
    assert told[0] == told[1] and told[0][1:] == ["700", "None"]
    assert not Path(told[0][0]).parent.exists(), "it is deleted after the run"


def after_all_listen(folder: Path, *signals: int, pause: float = 0.0) -> threading.Thread:
    def send() -> None:
        ends = time.monotonic() + 120
        while (
            time.monotonic() < ends
            and len([path for path in folder.iterdir() if path.name.isdigit()]) < 2
        ):
            time.sleep(0.02)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(pause)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_request_reaches_every_rank_once_and_is_never_a_reason_to_start_again(
    tmp_path, monkeypatch, number
):
    monkeypatch.setattr(launch_module, "SAME_SIGNAL", 600.0)  # however long the second signal takes
    sender = after_all_listen(tmp_path, number, number)
    assert launch(plan(partial(obey, number, 83, str(tmp_path)), tmp_path, max_restarts=5)) == 83
    sender.join()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name
)
def test_a_request_to_all_processes_of_a_job_at_once_reaches_the_ranks_like_one_to_the_launcher(
    tmp_path, number
):
    code = (
        "import sys, functools, pathlib, tests.supervision.test_launch as t; p = pathlib.Path(sys.argv[1]);"
        f"sys.exit(t.launch(t.plan(functools.partial(t.obey, {int(number)}, 83, str(p)), p)))"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    try:
        ends = time.monotonic() + 120
        while len(list(tmp_path.glob("[01]"))) < 2 and time.monotonic() < ends:
            time.sleep(0.02)
        os.killpg(job.pid, number)
        assert job.wait(300) == 83
    finally:
        job.kill()


def test_a_second_request_ends_ranks_that_do_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(launch_module, "GRACE", 0.5)
    sender = after_all_listen(tmp_path, signal.SIGTERM, signal.SIGINT, pause=0.1)
    assert (
        launch(plan(partial(deaf, str(tmp_path)), tmp_path, max_restarts=5)) == 128 + signal.SIGINT
    )
    sender.join()
    assert GRACE < 5 and not (tmp_path / "faults").exists()

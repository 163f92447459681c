"""No rank outlives whoever started it, however that was killed; nothing of it stays in memory; the next start of the
same command meets nothing of the old one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.bench_orphans import PATIENCE, measure
from megascratch.config import exit_codes
from megascratch.config.errors import UserError
from megascratch.runtime.heartbeat import FOLDER
from megascratch.runtime.processes import identity, is_gone
from megascratch.supervision import folders, torchrun_watcher

ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """A folder of its own in place of the shared memory; other runs use that at the same time."""
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr(folders, "memory_folder", lambda: str(place))
    return place


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen]]:
    """What a test starts is ended with it."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def pretend(*words: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.pretenders", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, **streams)


def pids(folder: Path, ranks: int) -> list[psutil.Process]:
    """Of ranks that stay, once all have come."""
    files = [folder / str(rank) for rank in range(ranks)]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return [psutil.Process(int(file.read_text())) for file in files]


@pytest.mark.parametrize("stopped", [False, True], ids=["", "while the fork server is stopped"])
def test_ranks_and_fork_server_end_with_a_killed_launcher_and_the_next_one_starts(
    tmp_path, begun, stopped
):
    for _ in range(2):
        launcher = pretend("launch", str(tmp_path), "0")
        begun.append(launcher)
        ranks = pids(tmp_path, 2)
        server = ranks[0].parent()
        assert server.ppid() == launcher.pid
        if stopped:
            server.suspend()
        launcher.kill()
        until(lambda: not any(map(lives, [*ranks, server])))  # noqa: B023 - called at once
        for rank in range(2):
            (tmp_path / str(rank)).unlink()


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_fork_server_is_said_and_its_ranks_start_again(tmp_path, begun, restarts):
    launcher = pretend("launch", str(tmp_path), str(restarts))
    begun.append(launcher)
    for _ in range(restarts + 1):
        ranks = pids(tmp_path, 2)
        for rank in range(2):
            (tmp_path / str(rank)).unlink()
        ranks[0].parent().kill()
        until(lambda: not any(map(lives, ranks)))  # noqa: B023 - called at once
    assert launcher.wait(300) == exit_codes.FAILED
    said = launcher.stderr.read()
    assert said.count("the fork server was killed, and all ranks ended with it") == restarts + 1
    assert said.count("restarting all ranks") == restarts


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_rank_of_torchrun_ends_with_its_agent(tmp_path, begun, system):
    agent = pretend("torchrun", str(tmp_path), system)
    begun.append(agent)
    ranks = pids(tmp_path, 1)
    assert ranks[0].ppid() == agent.pid
    agent.kill()
    until(lambda: not lives(ranks[0]))


@pytest.mark.deep
@pytest.mark.parametrize("way", ["launcher", "fork-server", "torchrun", "node", "node-agent"])
def test_a_real_run_ends_with_whoever_is_killed_and_the_same_command_trains_on(tmp_path, way):
    gone, again = measure(way, tmp_path)
    assert gone < PATIENCE and again < PATIENCE


def test_folders_of_processes_that_are_gone_are_deleted_and_no_others(memory):
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine, its = identity(os.getpid()), identity(gone.pid)
    namespace, pid, start = mine.split(".")
    kept = [
        f"megascratch-ranks-{mine}-a",
        f"megascratch-ranks-{int(namespace) + 1}.{its.split('.', 1)[1]}-another-container",
        "megascratch-ranks-unknown",
        f"others-{its}-b",
    ]
    stale = [
        f"megascratch-ranks-{its}-a",
        f"megascratch-node-{its}-b",
        f"megascratch-ranks-{namespace}.{pid}.1-reused",
    ]
    for name in [*kept, *stale]:
        (memory / name / "inside").mkdir(parents=True)
    assert not is_gone(its)
    gone.communicate(b"\n")
    assert is_gone(its) and not is_gone(mine) and start != "1"
    new = folders.new_folder("ranks")
    assert sorted(path.name for path in memory.iterdir()) == sorted([*kept, new.name])
    assert new.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_another_user_made_is_refused(memory, monkeypatch):
    made = folders.shared_folder(str(memory), os.getpid(), "29500-0")
    assert folders.shared_folder(str(memory), os.getpid(), "29500-0") == made
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(UserError, match="belongs to another user"):
        folders.shared_folder(str(memory), os.getpid(), "29500-0")


@pytest.mark.parametrize("slow", [0, 1])
def test_a_refused_start_is_told_once_whichever_rank_comes_first(tmp_path, begun, slow):
    """As torchrun does it: the end of the first rank is SIGTERM for the others."""
    ranks = []
    for rank in range(3):
        waits_for = "never" if rank == slow else ""
        where = {"RANK": str(rank), "WORLD_SIZE": "3", FOLDER: str(tmp_path)}
        ranks.append(pretend("refuse", str(tmp_path), waits_for, **where))
    begun.extend(ranks)
    until(lambda: len(list(tmp_path.glob("*.told"))) == 2)
    until((tmp_path / f"{slow}.ready").exists)
    ranks[slow].send_signal(signal.SIGTERM)
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert "".join(said) == "megascratch pretrain: error: lr (-1) must be above 0\n"


def test_the_watcher_ends_with_an_agent_whose_parent_reads_its_output_to_the_end(tmp_path, begun):
    """The agent stays a zombie until the pipe closes, which the watcher holds too."""
    agent = subprocess.Popen([sys.executable, "-c", ""])
    begun.append(agent)
    until(lambda: psutil.Process(agent.pid).status() == psutil.STATUS_ZOMBIE)
    words = [str(tmp_path / "ranks"), str(agent.pid), "60", os.devnull]
    watcher = subprocess.Popen([sys.executable, "-m", torchrun_watcher.__name__, *words])
    begun.append(watcher)
    until(lambda: watcher.poll() is not None)
    assert watcher.returncode == 0

"""Two runs never both write into one folder: the second is refused, and one that was taken over cannot commit."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from megascratch import checkpoint
from megascratch.checkpoint import Lease, LeaseLostError
from megascratch.checkpoint.backend import local_lease
from megascratch.config.errors import UserError
from megascratch.verification.pool import CONTEXT
from tests.support.random_shards import write


def hold(folder, connection, start=0.0):
    """Another process that holds the folder and is in the middle of a save, or is refused."""
    time.sleep(max(0.0, start - time.time()))
    try:
        mine = Lease.acquire(folder)
    except UserError as error:
        connection.send(str(error))
        return
    (mine.inside / ".step_00000009.x.partial").mkdir()
    connection.send(mine.number)
    time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path, there), daemon=True)
    process.start()
    process.number = here.recv()
    yield process
    process.kill()
    process.join()


def test_a_second_writer_is_refused_by_the_first_ones_beat_and_with_its_name(
    tmp_path, holder, monkeypatch
):
    monkeypatch.setattr(local_lease, "STALE_SECONDS", 1e9)  # no time decides
    with pytest.raises(
        UserError, match=rf"is being written by process {holder.pid} on .*: end that run first"
    ):
        Lease.acquire(tmp_path)
    assert (tmp_path / f".writer.{holder.number}" / ".step_00000009.x.partial").is_dir()


def test_a_dead_writers_folder_is_taken_over_and_what_it_left_is_deleted(tmp_path, holder):
    (tmp_path / ".step_00000003.abc.deleting").mkdir()
    holder.kill()
    holder.join()
    mine = Lease.acquire(tmp_path)
    assert mine.number > holder.number
    assert [path.name for path in tmp_path.iterdir()] == [f".writer.{mine.number}"]
    assert write(mine, 4) == tmp_path / "step_00000004"
    mine.release()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_a_writer_that_was_taken_over_stays_so_when_the_newer_one_has_ended(tmp_path, monkeypatch):
    """No trace of either is left, and still a third writer does not lend its folder to the first one."""
    monkeypatch.setattr(local_lease, "_require_gone", lambda *whoever: None)
    old = Lease.acquire(tmp_path)
    Lease.acquire(tmp_path).release()
    assert list(tmp_path.iterdir()) == []
    third = Lease.acquire(tmp_path)
    with pytest.raises(LeaseLostError):
        old.require()
    with pytest.raises(LeaseLostError):
        write(old, 4)
    old.release()
    third.require()
    third.release()


def test_a_stopped_writer_is_taken_over_after_a_while(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(local_lease, "STALE_SECONDS", 1.5)  # four beats give no warning yet
    os.kill(holder.pid, signal.SIGSTOP)
    mine = Lease.acquire(tmp_path)
    os.kill(holder.pid, signal.SIGCONT)
    time.sleep(1.2)  # two of its beats
    assert mine.number > holder.number and not (tmp_path / f".writer.{holder.number}").exists()
    mine.require()
    mine.release()


def test_who_was_taken_over_in_the_middle_of_a_save_cannot_commit(tmp_path, monkeypatch):
    """The newer claim comes just before the rename, behind every check that could be made."""
    old, newer = Lease.acquire(tmp_path), []
    rename = os.rename

    def late(source, target):
        if not newer and Path(target).name == "step_00000004":
            monkeypatch.setattr(local_lease, "_require_gone", lambda *whoever: None)
            newer.append(Lease.acquire(tmp_path))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(
        LeaseLostError, match="step_00000004 was not written: another writer has taken"
    ):
        write(old, 4)
    with pytest.raises(
        LeaseLostError, match=f"another writer has taken .* over: process {os.getpid()}"
    ):
        old.require()
    with pytest.raises(LeaseLostError, match="taken"):
        write(old, 5)
    assert checkpoint.list_steps(tmp_path) == []
    assert write(newer[0], 5) == tmp_path / "step_00000005"
    old.release()
    newer[0].require()
    newer[0].release()


def test_a_deleted_folder_is_called_deleted_not_taken_over(tmp_path):
    folder = tmp_path / "checkpoints"
    mine = Lease.acquire(folder)
    shutil.rmtree(folder)
    for loses in (mine.require, lambda: write(mine, 4)):
        with pytest.raises(LeaseLostError) as loss:
            loses()
        assert f"{folder} is gone: it was deleted or moved" in str(loss.value)
        assert "another writer" not in str(loss.value)
    mine.release()


def test_a_holder_that_ends_while_it_is_looked_at_is_taken_over_at_once(
    tmp_path, holder, monkeypatch
):
    """It was alive at the first look: stopped, so that no beat is seen, and killed at the second."""
    monkeypatch.setattr(local_lease, "STALE_SECONDS", 600.0)
    os.kill(holder.pid, signal.SIGSTOP)
    beat_of = local_lease._beat_of

    def dies_meanwhile(inside):
        holder.kill()
        holder.join()
        return beat_of(inside)

    monkeypatch.setattr(local_lease, "_beat_of", dies_meanwhile)
    mine = Lease.acquire(tmp_path)
    assert mine.number > holder.number
    mine.release()


def test_a_restart_by_the_same_launcher_does_not_wait(tmp_path, holder, monkeypatch):
    """Its number is in the environment of both; here of the claimant, and put into the holder's record."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r1")
    record = tmp_path / f".writer.{holder.number}" / "holder.json"
    record.write_text(record.read_text().replace('"run": ""', '"run": "r1"'))
    mine = Lease.acquire(tmp_path)
    assert mine.number > holder.number
    mine.release()


def test_of_many_claimants_at_once_one_wins(tmp_path):
    here, there = CONTEXT.Pipe()
    claimants = [
        CONTEXT.Process(target=hold, args=(tmp_path, there, time.time() + 1.5), daemon=True)
        for _ in range(6)
    ]
    for claimant in claimants:
        claimant.start()
    answers = [here.recv() for _ in claimants]
    for claimant in claimants:
        claimant.kill()
        claimant.join()
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum("is being written by process" in str(answer) for answer in answers) == 5

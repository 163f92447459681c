"""Two runs never both write into one folder of a store: the second is refused, and one that was taken over commits
nothing."""

import os
import signal
import threading

import fsspec
import pytest

from megascratch import checkpoint
from megascratch.checkpoint import LeaseLostError, acquire
from megascratch.checkpoint.backend import remote_lease, remote_writer
from megascratch.checkpoint.backend.lease_owner import LeaseOwner
from megascratch.checkpoint.backend.remote_writer import RemoteStepWriter
from megascratch.checkpoint.format.manifest import FILE
from megascratch.checkpoint.open_checkpoint import problems
from megascratch.config.errors import UserError
from megascratch.runtime.faults import armed
from megascratch.storage.path import storage_path
from megascratch.storage.store import Store, StoreError
from megascratch.verification.pool import CONTEXT
from tests.support import s3_server
from tests.support.random_shards import write


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.setattr(remote_lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(remote_lease, "STALE_SECONDS", 600.0)  # no time decides who is alive
    yield storage_path("memory://bucket/run")
    fsspec.filesystem("memory").store.clear()


def leave(folder, number, beat="3", **changes):
    """The lease of a process that beats no more."""
    record = LeaseOwner(**(vars(LeaseOwner.this_process()) | {"pid": 1} | changes)).to_text()
    for name, text in (("json", record), ("beat", beat)):
        url = (folder / ".writer" / f"{number:08d}.{name}").url
        Store(url).put(url, text.encode())


def take_over(folder, monkeypatch):
    """By somebody who believes that the holder is gone."""
    with monkeypatch.context() as patch:
        patch.setattr(remote_lease, "_require_gone", lambda *whoever: None)
        return acquire(folder)


def test_a_second_writer_is_refused_with_the_holders_name(folder):
    mine = acquire(folder)
    with pytest.raises(
        UserError, match=rf"is being written by process {os.getpid()} on .*: end that run first"
    ):
        acquire(folder)
    mine.require()
    mine.release()


def test_what_is_released_is_free_at_once_and_numbers_only_grow(folder):
    for number in (1, 2, 3):
        mine = acquire(folder)
        assert (mine.number, Store(folder.url).names(f"{folder}/.writer")[:1]) == (
            number,
            [f"{number:08d}.json"],
        )
        mine.release()


@pytest.mark.parametrize(
    "left",
    [
        {"started": "1"},  # another process has its number now
        {"host": "elsewhere", "run": "r1"},  # of the same launcher: a restart
    ],
)
def test_who_has_ended_is_taken_over_without_waiting(folder, monkeypatch, left):
    monkeypatch.setattr(remote_lease, "STALE_SECONDS", 1000)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r1")
    leave(folder, 4, **left)
    mine = acquire(folder)
    assert mine.number == 5 and write(mine, 1) == folder / "step_00000001"
    mine.release()


def test_who_gives_no_sign_of_life_is_taken_over_after_a_while(folder, monkeypatch):
    monkeypatch.setattr(remote_lease, "STALE_SECONDS", 0.4)
    leave(folder, 4, host="elsewhere")
    with pytest.warns(UserWarning, match="sends no heartbeat: this run takes over in"):
        mine = acquire(folder)
    assert mine.number == 5
    mine.release()


MOMENTS = {
    "while it sends": (RemoteStepWriter, "_require_files", ""),
    "before the last look": (remote_writer, "fault_point", "save.before_commit"),
    "behind the last look": (Store, "create", FILE),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_was_taken_over_in_the_middle_of_a_save_commits_nothing(folder, monkeypatch, moment):
    old, newer, created = acquire(folder), [], []
    where, name, told = MOMENTS[moment]
    original, create = getattr(where, name), Store.create
    monkeypatch.setattr(
        Store, "create", lambda self, *given: created.append(given[0]) or create(self, *given)
    )

    def late(*given):
        if not newer and any(str(word).endswith(told) for word in given):
            newer.append(take_over(folder, monkeypatch))
        return original(*given)

    monkeypatch.setattr(where, name, late)
    with pytest.raises(
        LeaseLostError, match=f"another writer has taken .* over: process {os.getpid()}"
    ):
        write(old, 4)
    assert checkpoint.list_steps(folder) == [] and not any(url.endswith(FILE) for url in created)
    with pytest.raises(LeaseLostError, match="taken"):
        old.require()
    old.release()
    newer[0].require()
    assert write(newer[0], 4) == folder / "step_00000004"
    newer[0].release()


def test_of_two_claimants_of_one_number_one_wins(folder, monkeypatch):
    """Both saw the folder free; the store lets one create the record."""
    numbers, first = remote_lease._numbers, []

    def seen_long_ago(home):
        now = numbers(home)
        if not first:
            first.append(None)
            first[0] = acquire(folder)
        return now

    monkeypatch.setattr(remote_lease, "_numbers", seen_long_ago)
    with pytest.raises(UserError, match="is being written by process"):
        acquire(folder)
    first[0].require()
    first[0].release()


def test_a_beat_that_the_store_refuses_does_not_end_the_others(folder, monkeypatch):
    put, refused, heard = Store.put, [], threading.Event()

    def sometimes(self, url, raw):
        if url.endswith(".beat") and not refused:
            refused.append(url)
            raise StoreError("503")
        put(self, url, raw)
        if url.endswith(".beat"):
            heard.set()

    monkeypatch.setattr(Store, "put", sometimes)
    mine = acquire(folder)
    assert heard.wait(300) and refused
    mine.release()


def die(url, address, fault):
    """A process of its own: a whole step, and then its end in the middle of the next."""
    s3_server.speak_to(address)
    lease = acquire(storage_path(url))
    write(lease, 1)
    with armed(fault):
        write(lease, 2)


DEEP = [
    pytest.param(point, marks=pytest.mark.deep)
    for point in ("save.before_commit", "save.after_commit")
]


@pytest.mark.parametrize("point", ["save.write", *DEEP])
def test_a_writer_that_is_killed_leaves_only_whole_steps_and_the_next_one_comes_at_once(point):
    with s3_server.server() as address:
        s3_server.speak_to(address)
        s3_server.emptied()
        folder = storage_path(f"{s3_server.BUCKET}/run")
        process = CONTEXT.Process(
            target=die, args=(str(folder), address, f"{point}:0:1:kill"), daemon=True
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        whole = [2, 1] if point == "save.after_commit" else [1]
        assert [int(step.name[-1]) for step in checkpoint.list_steps(folder)] == whole
        mine = acquire(folder)
        assert sorted(Store(folder.url).names(folder.url))[1:] == [
            f"step_0000000{number}" for number in whole[::-1]
        ]
        assert [list(problems(step)) for step in checkpoint.list_steps(folder)] == [[]] * len(whole)
        write(mine, 3)
        mine.release()
    s3_server.be_silent()

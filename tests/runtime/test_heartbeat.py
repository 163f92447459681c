"""What a rank notes can be read at any moment, also in the middle of a note."""

import os
import subprocess
import sys
import time

from megascratch.runtime.heartbeat import FOLDER, listed, read

NOTES = "from megascratch.runtime import heartbeat as w\nw.set_watched()\nwhile True: w.at_step(3); w.doing('F0')"


def test_a_clock_that_is_being_written_never_reads_as_that_of_a_rank_that_hangs(tmp_path):
    began = time.monotonic()
    rank = subprocess.Popen(
        [sys.executable, "-c", NOTES], env={**os.environ, FOLDER: str(tmp_path), "RANK": "0"}
    )
    try:
        while not (tmp_path / "0.rank").exists() or not any(one.watched for one in read(tmp_path)):
            assert rank.poll() is None
            time.sleep(0.01)
        looks = [one for _ in range(20_000) for one in read(tmp_path)]
    finally:
        rank.kill()
        rank.wait()
    assert len(looks) == 20_000
    assert [one.moved for one in looks if one.moved < began] == []
    assert all(one.watched and one.step in (0, 3) for one in looks)


def test_a_thousand_billion_ranks_are_listed_as_fast_as_seventeen():
    """A rank that waits reads no more of them than it lists."""
    first = "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"
    assert listed(range(10**12)) == listed(range(17)) == f" (ranks {first} ...)"
    assert listed(range(16)) == f" (ranks {first})"
    assert listed(()) == ""

"""On a disk that is really full nothing sound is lost: training warns and goes on, or stops by setting, and saves again
when there is room; indices, preprocessing and files say so and leave nothing half-written. Two file systems are mounted
for it: one in memory, and ext4, where saves go past the system's memory.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megascratch.checkpoint.backend.direct_writer import DirectWriter
from megascratch.checkpoint.steps import list_steps, problem_of, step_number
from tests.support import corpora

pytestmark = pytest.mark.deep
SIZE = 24 << 20
SMALL = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --vocab-size 500 --seq-length 16 "
    "--global-batch-size 8 --train-iters 100000 --lr 0.01 --lr-decay-iters 1000 "
    "--save-interval 10 --keep-last-n-checkpoints 2 --log-interval 10 --eval-interval 0 "
    "--device cpu --mock-data"
).split()


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request, tmp_path) -> Iterator[Path]:
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    commands = [["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]]
    if request.param == "ext4":
        image.write_bytes(bytes(SIZE))
        commands = [
            ["mkfs.ext4", "-q", str(image)],
            ["mount", "-o", "loop", str(image), str(place)],
        ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(
            f"a small {request.param} needs the right to mount it: {getattr(error, 'stderr', error)}"
        )
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """A file that takes all the room but `left` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            os.fsync(file.fileno())
            file.truncate(max(file.tell() - left, 0))
    return filler


def megascratch(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "megascratch", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def until(condition, seconds: float = 60.0) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)


def sound(folder: Path) -> list[int]:
    """The steps, newest first, while none is written or deleted; there is no other than can be loaded."""
    found = list_steps(folder)
    assert not any(map(problem_of, found))
    return [step_number(step) for step in found]


class Run:
    """Training that saves on a small disk, and may have its whole folder there."""

    def __init__(self, disk: Path, folder: Path, *words: str):
        self.folder, self.out, self.saved = folder, folder.parent / "out.txt", disk / "checkpoints"
        if disk in folder.parents:
            self.out = disk.parent / "out.txt"
        command = [sys.executable, "-m", "megascratch", "pretrain", *SMALL, *words]
        command += ["--save", str(self.saved), "--output-dir", str(folder)]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self.out.read_text()

    def saves(self) -> list[dict]:
        rows = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row.get("event") == "save"]


def test_training_warns_goes_on_and_saves_again_when_there_is_room(disk, tmp_path):
    run = Run(disk, tmp_path / "run")
    until(lambda: len(list_steps(run.saved)) >= 2)
    filler = fill(disk)
    until(lambda: run.said().count("; training continues") >= 2)
    kept = sound(run.saved)
    assert kept
    filler.unlink()
    until(lambda: step_number(list_steps(run.saved)[0]) > kept[0] + 20)
    (run.folder / "stop").touch()
    assert run.process.wait(60) == 82
    assert "free space: make room" in run.said() or "No space left on device" in run.said()
    assert sound(run.saved)[0] == json.loads((run.folder / "summary.json").read_text())["steps"]
    assert len({bool(row.get("error")) for row in run.saves()}) == 2
    assert not list(run.saved.glob(".writer.*")), "what failed is gone"


def test_its_report_lies_on_the_full_disk_and_has_every_row_in_the_end(disk, tmp_path):
    run = Run(disk, disk / "run")
    until(lambda: len(list_steps(run.saved)) >= 2)
    filler = fill(disk)
    until(lambda: "warning: the report of the run cannot be written: " in run.said())
    until(lambda: run.said().count("; training continues") >= 3)
    filler.unlink()
    later = run.said().count("\nstep ")
    until(lambda: run.said().count("\nstep ") > later + 5)
    (run.folder / "stop").touch()
    assert run.process.wait(60) == 82, run.said()
    assert run.said().count("the report of the run cannot") <= 4, "not told with each row"
    rows = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    logged = [row["step"] for row in rows if "grad_norm" in row]
    last = json.loads((run.folder / "summary.json").read_text())["steps"]
    assert logged == [1, *range(10, last + 1, 10)]


def test_with_exit_on_save_error_it_stops_and_the_last_checkpoint_is_sound(disk, tmp_path):
    run = Run(disk, tmp_path / "run", "--exit-on-save-error")
    until(lambda: len(list_steps(run.saved)) >= 2)
    fill(disk)
    assert run.process.wait(60) == 2
    assert "space" in run.said() and "Traceback" not in run.said()
    assert sound(run.saved)


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_training(disk, tmp_path):
    fill(disk, left=1 << 16)
    run = Run(disk, tmp_path / "run")
    assert run.process.wait(60) == 2
    assert "a checkpoint needs" in run.said() and "free space: make room" in run.said()
    assert "step     10/" not in run.said()


def test_a_stream_that_meets_the_end_of_the_disk_says_so(disk):
    with pytest.raises(OSError, match="No space left"), DirectWriter(disk / "file") as stream:
        for _ in range(32):
            stream.put(memoryview(bytes(1 << 20)))
        stream.finish()


def test_indices_that_find_no_room_are_built_when_there_is_some(disk, tmp_path):
    prefix = corpora.write(tmp_path / "corpus", [[1, 2, 3]] * 200_000)
    filler = fill(disk, left=1 << 16)
    words = [
        "pretrain",
        *SMALL[:-1],
        "--exit-interval",
        "10",
        "--data-path",
        prefix,
        "--split",
        "1,0,0",
    ]
    words += ["--data-cache-path", str(disk / "cache"), "--output-dir", str(tmp_path / "run")]
    done = megascratch(*words)
    assert done.returncode == 2, done.stderr
    assert f"the cache {disk / 'cache'}" in done.stderr and "--data-cache-path" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(disk.rglob("*partial*")), "nothing half-written is left"
    filler.unlink()
    assert megascratch(*words).returncode == 80


def test_preprocessing_stops_with_its_shards_and_goes_on_when_there_is_room(disk, tmp_path):
    text = tmp_path / "text.jsonl"
    draw = random.Random(5)
    lines = ["".join(draw.choices("abcdefgh ", k=4000)) for _ in range(500)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    words = [
        "preprocess",
        "--input",
        str(text),
        "--tokenizer-type",
        "ByteTokenizer",
        "--append-eod",
    ]
    words += ["--shard-bytes", "100000"]
    assert megascratch(*words, "--output-prefix", str(tmp_path / "calm")).returncode == 0
    filler = fill(disk, left=1 << 20)
    done = megascratch(*words, "--output-prefix", str(disk / "out"))
    assert (
        done.returncode == 2
        and "No space left on device" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not list(disk.glob("out_*")), "nothing under the final name"
    filler.unlink()
    assert megascratch(*words, "--output-prefix", str(disk / "out")).returncode == 0
    for kind in ("bin", "idx"):
        there, calm = disk / f"out_text_document.{kind}", tmp_path / f"calm_text_document.{kind}"
        assert there.read_bytes() == calm.read_bytes()

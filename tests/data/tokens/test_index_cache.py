"""The index cache builds once for all processes, survives damage, and says where it cannot write."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.data.tokens.index_cache import BlockwiseArray, load_or_build

KEY = {"a": 1}


def arrays(value=1):
    return {"x": np.arange(5) + value, "empty": np.zeros((0, 2), dtype=np.int64)}


def test_what_is_built_is_mapped_back(tmp_path):
    for _ in range(2):
        back = load_or_build(tmp_path, KEY, arrays)
        assert isinstance(back["x"], np.memmap) and back["x"].tolist() == [1, 2, 3, 4, 5]
        assert back["empty"].shape == (0, 2)


def test_another_key_is_another_entry(tmp_path):
    load_or_build(tmp_path, KEY, arrays)
    assert load_or_build(tmp_path, {"a": 2}, lambda: arrays(7))["x"][0] == 7
    assert load_or_build(tmp_path, KEY, lambda: arrays(7))["x"][0] == 1


@pytest.mark.parametrize("name", ["x.npy", "key.json"])
@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_entry_is_built_again(tmp_path, name, keep):
    load_or_build(tmp_path, KEY, arrays)
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:keep][:-9])
    assert load_or_build(tmp_path, KEY, lambda: arrays(3))["x"].tolist() == [3, 4, 5, 6, 7]


def test_a_build_that_fails_leaves_no_entry(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load_or_build(tmp_path, KEY, lambda: {"x": np.array(1 // 0)})
    assert not list(tmp_path.glob("*/key.json"))
    assert load_or_build(tmp_path, KEY, arrays)["x"][0] == 1


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path):
    def blocks():
        yield np.zeros(3)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; choose another place"):
        load_or_build(tmp_path, KEY, lambda: {"x": BlockwiseArray(np.dtype(float), (6,), blocks())})
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(("age", "stays"), [(10, True), (100_000, False)])
def test_what_a_killed_build_left_goes_when_it_is_old(tmp_path, age, stays):
    load_or_build(tmp_path, KEY, arrays)
    (home,) = (path.parent for path in tmp_path.glob("*/key.json"))
    left = home.with_name(f"{home.name}.123.partial")
    home.rename(left)
    os.utime(left, (time.time() - age,) * 2)
    load_or_build(tmp_path, KEY, arrays)
    assert left.exists() == stays


def test_many_processes_build_once(tmp_path):
    code = (
        "import sys, time, pathlib, numpy as np\n"
        "from megascratch.data.tokens.index_cache import load_or_build\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def build():\n"
        "    with (folder / 'builds').open('a') as log: log.write('x')\n"
        "    time.sleep(0.3)\n"
        "    return {'x': np.arange(9)}\n"
        "assert load_or_build(folder, {'k': 1}, build)['x'][8] == 8"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert (tmp_path / "builds").read_text() == "x"


def test_the_key_can_be_read_in_words(tmp_path):
    load_or_build(tmp_path, KEY, arrays)
    (file,) = tmp_path.glob("*/key.json")
    told = json.loads(file.read_text())
    assert (list(told["arrays"]), told["key"]) == (["x", "empty"], KEY)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache cannot be written.*--data-cache-path"):
        load_or_build(tmp_path / "file" / "cache", KEY, arrays)

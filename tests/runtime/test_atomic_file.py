import os
import subprocess
import sys

import pytest

from megascratch.config.errors import UserError
from megascratch.runtime.atomic_file import (
    atomic_file,
    explain_write_errors,
    flush_to_disk,
    fsync_folder,
    move_into_place,
    partial_path,
    write_atomically,
)


@pytest.fixture
def path(tmp_path):
    """A file with old content, alone in its folder."""
    path = tmp_path / "a.json"
    path.write_text("old")
    return path


def names(path):
    """Everything in the file's folder."""
    return sorted(entry.name for entry in path.parent.iterdir())


@pytest.mark.parametrize("content", ["new ü\r\n", "new ü\r\n".encode()])
def test_text_and_bytes_are_written_as_they_are(path, content):
    write_atomically(path, content)
    assert path.read_bytes() == "new ü\r\n".encode()
    assert names(path) == ["a.json"]


def test_text_mode_is_utf8_and_keeps_line_ends(path):
    with atomic_file(path, "w") as file:
        file.write("ü\r\n")
    assert path.read_bytes() == "ü\r\n".encode()


def test_until_the_block_ends_readers_see_the_old_file(path):
    with atomic_file(str(path)) as file:
        file.write(b"new")
        flush_to_disk(file)
        assert path.read_text() == "old"
        assert partial_path(path).read_text() == "new"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "error", [ValueError("bad record"), OSError(28, "No space left"), KeyboardInterrupt()]
)
def test_an_error_keeps_the_old_file_and_no_partial_one(path, error):
    with pytest.raises(type(error)) as raised, atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert raised.value is error
    assert path.read_text() == "old"
    assert names(path) == ["a.json"]


def test_a_failed_rename_keeps_no_partial_file(tmp_path):
    folder = tmp_path / "folder"
    (folder / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_atomically(folder, "x")
    assert names(folder) == ["folder"]


def test_a_crash_in_between_leaves_the_old_file(path):
    code = (
        "import os, sys; from megascratch.runtime.atomic_file import atomic_file, flush_to_disk\n"
        "with atomic_file(sys.argv[1]) as file: file.write(b'new'); flush_to_disk(file); os._exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 7
    assert path.read_text() == "old"
    assert [name.endswith(".partial") for name in names(path)] == [False, True]


def test_the_content_is_on_the_disk_before_the_rename_and_the_folder_after_it(path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def traced_replace(source, target):
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_atomically(path, "new")
    assert done == [f"sync a.json.{os.getpid()}.partial", "rename", f"sync {path.parent.name}"]


def test_another_temporary_file_can_be_named(path, tmp_path):
    (tmp_path / "private").mkdir()
    with atomic_file(path, partial=tmp_path / "private" / "x") as file:
        file.write(b"new")
        assert names(path) == ["a.json", "private"]
    assert path.read_text() == "new"
    assert list((tmp_path / "private").iterdir()) == []


def test_the_parts_do_the_same(path):
    partial = partial_path(path)
    assert partial == path.with_name(f"a.json.{os.getpid()}.partial")
    partial.write_text("new")
    move_into_place(partial, path)
    assert (path.read_text(), names(path)) == ("new", ["a.json"])


def test_a_folder_that_is_missing_cannot_be_synced(tmp_path):
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "missing")


@pytest.mark.parametrize(
    ("folder", "reason"), [("missing", "No such file or directory"), ("a.json", "Not a directory")]
)
def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(path, folder, reason):
    target = path.parent / folder / "b.json"
    with (
        pytest.raises(UserError) as raised,
        explain_write_errors(f"--output {target}", "; choose another"),
    ):
        write_atomically(target, "x")
    assert str(raised.value) == f"--output {target} cannot be written: {reason}; choose another"
    assert isinstance(raised.value.__cause__, OSError)
    assert names(path) == ["a.json"]


def test_only_errors_of_the_file_system_are_explained(path):
    with pytest.raises(KeyError), explain_write_errors(path):
        raise KeyError("x")

"""Runs the mistakes of the table and their fixes in one process, and prints the answers as JSON.

python -m tests.support.mistakes.judge WORLD [--torch] [--real]

WORLD is the folder of `world.make_world`, made if it is missing (that needs torch). Without --torch the rows are
judged that need no torch, and nothing may import it; with --torch the others. A fix that trains ends before its first
step; with --real every fix of the table is run to its end.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from megascratch.commands import main as megascratch
from tests.support.mistakes.row import Mistake
from tests.support.mistakes.world import make_world
from tests.support.remedies import followed

LAUNCH_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
    changed: list[str]
    """Files and folders that were made, changed or deleted, without the index cache."""
    wall: float
    cpu: float


class Judge:
    """Answers the rows of the table, each in a copy of the world."""

    def __init__(self, world: Path, with_torch: bool, real: bool):
        self.world = world
        self.with_torch = with_torch
        self.real = real
        self._fixes: dict[str, Answer] = {}
        """Fixes that were run in the world as it was made."""

    def answers(self, row: Mistake) -> dict[str, Any]:
        """The answer to the mistake, whether torch was imported for it, and the answer to the fix."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "place")
            shutil.copytree(self.world, place)
            with in_folder(place):
                write_files(row.files)
                if row.prepare is not None:
                    row.prepare()
                without_torch = "torch" not in sys.modules
                # what is not refused must not train here
                stops = (
                    contextlib.nullcontext() if self.with_torch else checks_alone(with_torch=False)
                )
                with row.during(), stops:
                    mistake = answer(row.words, row.env, row.absent)
                answers = {
                    "mistake": mistake._asdict(),
                    "imports_torch": without_torch and "torch" in sys.modules,
                }
                answers["followed"] = {} if self.with_torch else self._followed(row, mistake)
                runs_now = self.real or not row.fix_is_slow
                if runs_now and (self.with_torch or not row.fix_needs_torch):
                    answers["fix"] = self._fix(row, mistake)._asdict()
        return answers

    def _followed(self, row: Mistake, mistake: Answer) -> dict[str, str]:
        """Each command that the message proposes -> what it says if it is refused, else ''."""
        said = {}
        for command in followed(row.words, mistake.err):
            with checks_alone(with_torch=False):
                found = answer(command)
            said[command] = found.err if found.code else ""
        return said

    def _fix(self, row: Mistake, mistake: Answer) -> Answer:
        write_files(row.fixed_files)
        if row.repair is not None:
            row.repair()
        as_made = not (mistake.changed or row.files or row.prepare or row.fixed_files or row.repair)
        if not as_made:
            return self._run(row)
        if row.fix not in self._fixes:
            self._fixes[row.fix] = self._run(row)
        return self._fixes[row.fix]

    def _run(self, row: Mistake) -> Answer:
        """The answer to a fix. The steps of a run are left out where only what comes before them is of interest."""
        if self.real and "--nproc-per-node" in row.fix:
            return answer_of_process(row.fix)
        if self.real or row.code != 2:
            return answer(row.fix)
        with checks_alone(self.with_torch):
            return answer(row.fix)


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Runs in another current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def write_files(files: Mapping[str, str | bytes]) -> None:
    """Writes files in the current folder, with the folders that they need."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def answer(
    words: str, env: Mapping[str, str] | None = None, absent: tuple[str, ...] = ()
) -> Answer:
    """Runs one command in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    before = listing()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with (
        environment(env or {}),
        without_libraries(absent),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("sys.stdin", io.StringIO()),
    ):
        try:
            code = megascratch(shlex.split(words))
        except SystemExit as stop:  # of argparse
            code = stop.code if isinstance(stop.code, int) else 1
        except Exception:
            code = 1
            err.write(traceback.format_exc())
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    after = listing()
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return Answer(code, out.getvalue(), err.getvalue(), changed, wall, cpu)


def answer_of_process(words: str) -> Answer:
    """Runs one command in the current folder, as a process of its own."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "megascratch", *shlex.split(words)], capture_output=True, text=True
    )
    wall = time.perf_counter() - begin
    return Answer(done.returncode, done.stdout, done.stderr, [], wall, 0.0)


def listing() -> dict[str, str]:
    """Every file with its size and time, every folder; the index cache may come and go."""
    found = {}
    for path in Path().rglob("*"):
        if path.parts[0] == "cache":
            continue
        state = path.lstat()
        found[str(path)] = "folder" if path.is_dir() else f"{state.st_size} {state.st_mtime_ns}"
    return found


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for one command, and unsets those of a launcher."""
    kept = dict(os.environ)
    for name in LAUNCH_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def without_libraries(names: tuple[str, ...]) -> Iterator[None]:
    """Importing these libraries fails, in this process and in those that it starts."""
    if not names:
        yield
        return
    hidden: dict[str, Any] = dict.fromkeys(names)
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in names:
            hidden[loaded] = None
    with tempfile.TemporaryDirectory() as folder, replaced_modules(hidden):
        for name in names:
            Path(folder, f"{name}.py").write_text("raise ModuleNotFoundError(__name__)")
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        with (
            mock.patch.dict(os.environ, {"PYTHONPATH": path}),
            mock.patch.object(sys, "path", [folder, *sys.path]),
        ):
            yield


@contextlib.contextmanager
def replaced_modules(modules: Mapping[str, Any]) -> Iterator[None]:
    """Puts modules into `sys.modules`; others that are imported meanwhile stay."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


@contextlib.contextmanager
def checks_alone(with_torch: bool) -> Iterator[None]:
    """A run that passes its checks ends before its first step. Without torch it ends before torch would be imported."""
    from megascratch.commands import pretrain

    with contextlib.ExitStack() as stack:
        for name in ("launch", "launch_node"):
            stack.enter_context(mock.patch.object(pretrain, name, lambda *inputs: 0))
        if with_torch:
            from megascratch.training import pretrain as training

            stack.enter_context(mock.patch.object(training, "train", lambda *run: {"exit_code": 0}))
        else:
            module = ModuleType("megascratch.training.pretrain")
            module.pretrain = lambda *inputs: 0  # type: ignore[attr-defined]
            stack.enter_context(replaced_modules({module.__name__: module}))
        yield


def make_once(world: Path, with_run: bool) -> None:
    """Makes the world unless it exists."""
    if not world.exists():
        world.mkdir()
        with in_folder(world), contextlib.redirect_stdout(sys.stderr):
            make_world(with_run)


def main() -> None:
    from tests.support.mistakes.table import TABLE

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--real", action="store_true")
    options = parser.parse_args()
    make_once(options.world, with_run=True)
    judge = Judge(options.world, options.torch, options.real)
    answers = {}
    for row in TABLE:
        if options.real or row.torch == options.torch or (options.torch and row.fix_needs_torch):
            answers[row.name] = judge.answers(row)
    print(f"\n{json.dumps(answers)}")  # the ranks of a run print to the same output


if __name__ == "__main__":
    main()

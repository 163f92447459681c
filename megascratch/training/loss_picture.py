"""Keeps the picture of a run's curves current while it trains: `LossPicture`.

    first rank --{"rows": ..., "picture": ..., "title": ...}--> child process (training/curves.py, nice 19)
               <--------- what went wrong, or nothing ---------

Importing matplotlib takes as long as the first steps of a small run, so the child does it at the side, and training
waits for nothing but the last picture. A process that has matplotlib loaded anyway, such as a notebook, draws itself.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import megascratch
from megascratch.training import curves

DRAW_EVERY = 30.0  # seconds between two pictures of a run
PATIENCE = 60.0  # seconds to wait for the last one


class LossPicture:
    """Draws {folder}/loss.png from {folder}/metrics.jsonl.

    Raises, in each method: OSError if the picture cannot be drawn; the run is not affected.
    """

    def __init__(self, folder: Path, title: str):
        request = {
            "rows": str(folder / "metrics.jsonl"),
            "picture": str(folder / "loss.png"),
            "title": title,
        }
        self._request = json.dumps(request)
        self._drawn = time.monotonic()
        self._pending = 0  # requests without an answer
        self._child: subprocess.Popen | None = None
        if "matplotlib.figure" not in sys.modules:
            self._child = _child()

    def look(self) -> None:
        """Called after each row: has the picture drawn again if the last one is older than DRAW_EVERY. Never waits for
        the child."""
        if time.monotonic() - self._drawn < DRAW_EVERY:
            return
        self._take_answers()
        if self._pending == 0:
            self._ask()

    def finish(self) -> None:
        """Draws the last picture, and waits for it."""
        try:
            self._take_answers()
            self._ask()
            ends = time.monotonic() + PATIENCE
            while self._pending and time.monotonic() < ends:
                time.sleep(0.01)
                self._take_answers()
            if self._pending:
                raise OSError(f"it was not drawn within {PATIENCE:g} s")
        finally:
            self.close()

    def close(self) -> None:
        """Ends the child. It draws nothing after that."""
        child = self._child
        self._child = None
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()  # it ends when it has drawn what it was asked for
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _ask(self) -> None:
        self._drawn = time.monotonic()
        if self._child is None:
            self._require_none(curves.answer(self._request))
            return
        assert self._child.stdin is not None
        self._child.stdin.write(self._request.encode() + b"\n")
        self._pending += 1

    def _take_answers(self) -> None:
        """Reads the answers that have come. Raises: OSError with one that says what went wrong."""
        if self._child is None or not self._pending:
            return
        assert self._child.stdout is not None
        came = self._child.stdout.read()  # does not wait: None if nothing has come
        if came == b"":
            self._pending = 0
            raise OSError("the process that draws it has ended")
        for complaint in (came or b"").decode(errors="replace").splitlines():
            self._pending -= 1
            self._require_none(complaint)

    def _require_none(self, complaint: str) -> None:
        if complaint:
            raise OSError(complaint)


def _child() -> subprocess.Popen:
    """A process that draws, in a session of its own: Ctrl-C is for the run."""
    paths = [str(Path(megascratch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os; os.nice(19); from {curves.__name__} import main; main()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,
    )
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    return child

"""Fault injection: makes a named point of the code fail on a given rank, as an environment variable says.

    MEGASCRATCH_FAULT=POINT:RANK:NTH:ACTION[:ATTEMPT][,...]
    MEGASCRATCH_FAULT=step.begin:2:7:kill megascratch pretrain ...    # rank 2 dies when it begins its 7th step

RANK is a number or `*`. NTH says which time the rank reaches the point, counted from 1; `*` is every time. ATTEMPT is
the number of restarts so far (0 if not given, so that a restart does not fail again), or `*`. The first fault that
matches is carried out.

    kill     SIGKILL                        exit          exits at once with code 70
    raise    raises a FaultError            hang          sleeps forever
    stop     SIGSTOP                        slow=SECONDS  sleeps, then continues
    enospc   no space left on the device    eio           input/output error
    corrupt  one bit of the point's data is flipped

If the variable is not set, a point costs one function call. `python -m megascratch.runtime.faults` lists all points.
"""

import difflib
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from megascratch.config.errors import UserError
from megascratch.runtime.launch_environment import launch_environment

VARIABLE = "MEGASCRATCH_FAULT"
EXIT_CODE = 70
ANY = -1

POINTS = {
    "run.begin": "a rank has its settings, nothing is open yet",
    "run.meet": "before the ranks join their process groups",
    "run.built": "model, data and checkpoint are ready for the first step",
    "run.end": "the summary is written and the exit code is decided",
    "step.begin": "before a step reads its batches",
    "step.end": "weights are updated, nothing is logged or saved yet",
    "forward.begin": "before the forward of a micro-batch on a chunk",
    "forward.end": "after it",
    "backward.begin": "before the backward (or input gradient) of a micro-batch on a chunk",
    "backward.end": "after it",
    "weight.begin": "before the deferred weight gradients of a micro-batch on a chunk",
    "transfer.send": "before an output or a gradient is sent to another stage",
    "transfer.receive": "before a receive from another stage is posted",
    "transfer.wait": "before a transfer is waited for",
    "collective.start": "before any collective starts",
    "collective.wait": "before a started collective is waited for",
    "gradient.finish": "before the gradients of a step are complete",
    "gradient.reduce": "before a gradient bucket's reduction starts; data: the bucket's gradients",
    "gradient.norm": "before the global gradient norm",
    "optimizer.step": "before the weights are updated",
    "weights.share": "after a rank has updated its weights, before the other ranks get them",
    "evaluate.begin": "before a validation",
    "evaluate.batch": "before each batch of a validation",
    "save.begin": "before a checkpoint's tensors are copied to host memory",
    "save.thread": "the copy is made, training continues, the writing thread begins",
    "save.before_write": "before a rank creates its file",
    "save.write": "before each write of some chunks",
    "save.after_write": "a rank's file is on the disk; data: the file",
    "save.before_commit": "before the folder of a step gets its final name; data: the manifest",
    "save.after_commit": "after it",
    "save.before_delete": "before the folder of an older step is renamed for deletion",
    "save.mid_delete": "after it, before its files are deleted",
    "index.build": "before the index arrays of a data set are built",
    "index.write": "before an index array is written",
    "index.commit": "before the index arrays get their final name",
    "preprocess.read": "a batch of the input has been read",
    "preprocess.write": "before encoded documents are written to a shard",
    "preprocess.commit": "before a shard gets its final name",
    "preprocess.merge": "before a shard is appended to the corpus",
    "preprocess.place": "before the corpus gets its final name",
}
"""Every point and when the code reaches it; those whose text says `data:` can be corrupted."""

ACTIONS = ("kill", "exit", "raise", "hang", "stop", "slow", "enospc", "eio", "corrupt")


class FaultError(RuntimeError):
    """The error that the action `raise` raises."""


@dataclass
class Fault:
    """One requested fault."""

    point: str
    rank: int  # or ANY
    nth: int  # or ANY
    action: str
    seconds: float = 0.0
    attempt: int = 0  # or ANY
    passed: int = field(default=0, compare=False)


def fault_point(point: str, data: Any = None) -> None:
    """Fails here if the variable asks for it.

    Args:
        point: a name of POINTS, as a literal (a test compares the table with the code).
        data: what `corrupt` may change: a writable buffer, a tensor, the path of a file, or an object with a method
            `flip_a_bit`.
    """
    armed = _holder().armed
    if armed is not None:
        armed.reach(point, data)


def check() -> None:
    """Reads the variable as it is now and validates it, before any work starts. Raises: UserError."""
    _holder.cache_clear()
    _holder()


@contextmanager
def armed(text: str, rank: int = 0, attempt: int = 0) -> Iterator[None]:
    """Injects the faults of `text` (in the format of the variable) in this process while the block runs."""
    holder = _holder()
    before = holder.armed
    holder.armed = _Armed(parse(text), rank, attempt)
    try:
        yield
    finally:
        holder.armed = before


def parse(text: str) -> list[Fault]:
    """Parses the variable's text. Raises: UserError that lists every problem."""
    faults: list[Fault] = []
    problems: list[str] = []
    for part in map(str.strip, text.split(",")):
        if not part:
            continue
        try:
            faults.append(_fault(part))
        except ValueError as error:
            problems.append(f"{VARIABLE}: {part}: {error}")
    if not faults and not problems:
        problems = [f"{VARIABLE} is empty: unset it, or give POINT:RANK:NTH:ACTION"]
    if problems:
        raise UserError("\n".join(problems))
    return faults


def _fault(part: str) -> Fault:
    words = part.split(":")
    if len(words) == 4:
        words.append("0")
    if len(words) != 5:
        raise ValueError(
            "must be POINT:RANK:NTH:ACTION or POINT:RANK:NTH:ACTION:ATTEMPT, e.g. step.begin:0:3:kill"
        )
    point, rank, nth, action, attempt = words
    if point not in POINTS:
        near = difflib.get_close_matches(point, POINTS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"unknown fault point; {hint}`python -m megascratch.runtime.faults` lists all points"
        )
    name, seconds = _action(action)
    if name == "corrupt" and "data:" not in POINTS[point]:
        legal = ", ".join(point for point, text in POINTS.items() if "data:" in text)
        raise ValueError(f"{point} has no data to corrupt; points with data: {legal}")
    return Fault(
        point,
        rank=_number("RANK", rank, 0),
        nth=_number("NTH", nth, 1),
        action=name,
        seconds=seconds,
        attempt=_number("ATTEMPT", attempt, 0),
    )


def _action(word: str) -> tuple[str, float]:
    name, equals, amount = word.partition("=")
    if name not in ACTIONS or bool(equals) != (name == "slow"):
        raise ValueError(f"unknown action: {word}; use {', '.join(ACTIONS)} (slow=SECONDS)")
    try:
        seconds = float(amount) if equals else 0.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"slow={amount}: must be a number of seconds, e.g. slow=0.3")
    return name, seconds


def _number(what: str, word: str, least: int) -> int:
    if word == "*":
        return ANY
    if not word.isascii() or not word.isdigit() or int(word) < least:
        raise ValueError(f"{what} ({word}) must be a number of at least {least}, or *")
    return int(word)


@dataclass
class _Armed:
    """The faults of this process."""

    faults: list[Fault]
    rank: int
    attempt: int

    def reach(self, point: str, data: Any) -> None:
        due = None
        for fault in self.faults:
            if (
                fault.point == point
                and fault.rank in (ANY, self.rank)
                and fault.attempt in (ANY, self.attempt)
            ):
                fault.passed += 1
                if due is None and fault.nth in (ANY, fault.passed):
                    due = fault
        if due is not None:
            self._strike(due, data)

    def _strike(self, fault: Fault, data: Any) -> None:
        print(
            f"fault point {fault.point}, passage {fault.passed} of rank {self.rank}: {fault.action}",
            file=sys.stderr,
            flush=True,
        )
        if fault.action == "slow":
            time.sleep(fault.seconds)
        elif fault.action == "corrupt":
            _flip_a_bit(data)
        elif fault.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            _fail(fault)


def _fail(fault: Fault) -> NoReturn:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "exit":
        os._exit(EXIT_CODE)
    if fault.action == "enospc":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (fault point {fault.point})")
    if fault.action == "eio":
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (fault point {fault.point})")
    if fault.action == "raise":
        raise FaultError(f"fault point {fault.point}, passage {fault.passed}")
    while True:  # hang; and kill, which may take a moment
        time.sleep(3600)


def _flip_a_bit(data: Any) -> None:
    """Flips the lowest bit of the middle byte."""
    if isinstance(data, str | Path):
        middle = Path(data).stat().st_size // 2
        with open(data, "r+b") as file:
            file.seek(middle)
            byte = file.read(1)[0]
            file.seek(middle)
            file.write(bytes([byte ^ 1]))
    elif hasattr(data, "flip_a_bit"):  # an object in an object store
        data.flip_a_bit()
    elif hasattr(data, "detach"):  # a tensor, on any device; this module loads no torch
        flat = data.detach().view(-1).view(sys.modules["torch"].uint8)
        flat[len(flat) // 2] ^= 1
    else:
        flat = memoryview(data).cast("B")
        flat[len(flat) // 2] ^= 1


@dataclass
class _Holder:
    armed: _Armed | None


@lru_cache(maxsize=1)
def _holder() -> _Holder:
    """Reads the environment once, and again after each `check`."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return _Holder(None)
    environment = launch_environment()
    return _Holder(_Armed(parse(text), environment.rank, environment.attempt))


if __name__ == "__main__":
    print("\n".join(f"{point:<20}{text}" for point, text in POINTS.items()))

"""Run in a process of its own: reads every hostile file under an audit hook and a memory cap, and prints what happened.

python -m tests.support.read_hostile_files FOLDER
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from megascratch.config.errors import UserError
from tests.support.hostile_files import HOSTILE, Hostile, cached, file, hugging_face, index, step

ROOM = 600 << 20  # bytes of address space beside what is there
FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "ctypes.dlopen",
    "socket.connect",
    "exec",
)


class Hook:
    """Notes forbidden events, and files that are opened outside of the folders, while `folder` is set."""

    def __init__(self):
        self.folder: Path | None = None
        self.events: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in FORBIDDEN:
            self.events.append(f"{event} {str(args)[:80]}")
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path = Path(os.path.abspath(os.fsdecode(args[0])))
            real = Path(os.path.realpath(path.parent)) / path.name
            if not real.is_relative_to(self.folder) and str(path) not in ("/dev/zero", "/dev/null"):
                self.events.append(f"open {path}")


def warm_up(folder: Path) -> None:
    """Sound files first, so that every library is loaded."""
    folder.mkdir()
    sound = {
        "checkpoint": step(lambda path: None),
        "corpus": index(1, 2, b"\3\0\0\0" + b"\0" * 16 + b"\1" + b"\0" * 7),
        "tokenizer": hugging_face(),
        "config": file("c.yaml", "lr: 1"),
        "cache": cached('{"arrays": ["x"]}'),
        "schedule": file("s.csv", "0F0,0B0"),
        "skipped samples": lambda here: here,
    }
    for hostile in HOSTILE:
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        with contextlib.suppress(Exception):
            hostile.read(sound[hostile.name.split(":")[0]](place))
        (place / "again").mkdir()
        with contextlib.suppress(BaseException):  # what an error needs, too
            hostile.read(hostile.make(place / "again"))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(hostile: Hostile, folder: Path, hook: Hook) -> dict:
    folder.mkdir()
    path = hostile.make(folder)
    hook.events, before, begin = [], peak(), time.monotonic()
    hook.folder = folder.resolve()
    try:
        told = f"read: {hostile.read(path)!r}"[:300]
    except UserError as error:
        told = f"refused: {error}"
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
    finally:
        hook.folder = None
    return {
        "name": hostile.name,
        "told": told[:300],
        "events": hook.events,
        "grown": peak() - before,
        "seconds": time.monotonic() - begin,
    }


def main(folder: Path) -> None:
    os.chdir(folder)
    warm_up(folder / "warm")
    hook = Hook()
    sys.addaudithook(hook)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    found = [outcome(hostile, folder / str(number), hook) for number, hostile in enumerate(HOSTILE)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

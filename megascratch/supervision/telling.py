"""What all ranks of a machine would say is said once, by whichever of them comes first, and before any of them ends.

torchrun ends all ranks with SIGTERM as soon as one has ended. If the first rank spoke for the others, the fastest of
them could end before the first rank has said a word.
"""

import fcntl
import hashlib
import os
import sys
from pathlib import Path

from megascratch.runtime.heartbeat import FOLDER
from megascratch.supervision.torchrun_watcher import join_torchrun, start_watching, started_by_torchrun

FILE = "told"


def tell_once(text: str) -> None:
    """To the error stream, once for all ranks of this machine and this start that call it with the same text; when it
    returns the text is there. Ranks that nobody watches have no way to agree: then the first rank of all speaks."""
    if started_by_torchrun() and FOLDER not in os.environ:
        join_torchrun()
    if FOLDER not in os.environ:
        if os.environ.get("RANK", "0") == "0":
            print(text, file=sys.stderr, flush=True)
        return
    try:
        file = Path(os.environ[FOLDER], FILE).open("a+")  # noqa: SIM115 - closed below
    except OSError:  # better told twice than not at all
        print(text, file=sys.stderr, flush=True)
        return
    digest = hashlib.sha256(text.encode()).hexdigest()
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of a rank that is killed meanwhile the system opens it
        file.seek(0)
        told = file.read().split()
        if digest not in told:
            print(text, file=sys.stderr, flush=True)
            file.write(f"{digest}\n")
        if not told and started_by_torchrun():
            start_watching()  # it deletes the folder

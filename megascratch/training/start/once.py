"""What one rank reads at a start for many: at 10,000 ranks a file system cannot answer each of them.

    what                                        is read by one rank of     the others compare
    whole indices, parts of ids, the package    each machine               the state of each file
    which checkpoint is the newest valid one    the run                    the names of the steps (one rank per machine)
    the manifest of that checkpoint             each machine               the state of the file

The first rank that asks a question answers it through the store of the rendezvous; the others wait. A rank reads by
itself what differs for it, and everything if no answer comes: so a file that is another one on one machine is still
found by the preflight check, and a rank that died with a question does not silence those that wait for it.
"""

import hashlib
import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import megascratch
from megascratch.checkpoint.format.manifest import FILE
from megascratch.config.resolve import Values
from megascratch.data.tokens.file_digests import FileState, KnownDigests
from megascratch.data.tokens.fingerprint import digests_to_share
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.storage.path import Place, storage_path
from megascratch.training.start.files import named_corpora
from megascratch.training.start.resume import Resume, find_checkpoint, newest_valid

BOOT = Path("/proc/sys/kernel/random/boot_id")
PATIENCE = (
    0.25  # of the time-out: the ranks that waited in vain still come to the comparison in time
)


def found_once(meeting: Rendezvous | None, question: str, find: Callable[[], Any]) -> Any:
    """What `find` returns on the first rank that asks, as JSON expresses it.

    Returns: None where that rank failed or did not answer in time.

    Raises: on the rank that answers, what `find` raises.
    """
    if meeting is None:
        return find()
    if meeting.store.add(f"{question}/asked", 1) == 1:
        answer = "null"
        try:
            found = find()
            answer = json.dumps(found)
        finally:
            meeting.store.set(f"{question}/answer", answer)
        return found
    try:
        meeting.store.wait([f"{question}/answer"], meeting.timeout * PATIENCE)
    except RuntimeError:  # a file store raises no more specific error on a timeout
        return None
    return json.loads(meeting.store.get(f"{question}/answer"))


def machine() -> str:
    """Names this machine as it has been since it booted: within one name, device and inode identify a file."""
    booted = BOOT.read_text().strip() if BOOT.exists() else ""
    return f"{socket.gethostname()} {booted}".strip()


class MachineDigests(NamedTuple):
    """Digests that one rank of this machine has computed for all of them."""

    files: KnownDigests
    """Of the corpora."""
    code: str
    """Of the package: the first 16 hex digits of the sha256 of every source and compiled file."""


def shared_digests(meeting: Rendezvous | None, settings: Values) -> MachineDigests:
    """The digests of the package and of the corpora that the settings name."""
    if meeting is None:
        return MachineDigests(KnownDigests(), code_digest())  # each file is read once anyway
    corpora = named_corpora(settings)

    def find() -> dict[str, Any]:
        return {"code": [code_state(), code_digest()], "files": digests_to_share(corpora)}

    told = found_once(meeting, f"digests on {machine()}", find)
    if told is None:
        return MachineDigests(KnownDigests(), code_digest())
    state, code = told["code"]
    return MachineDigests(
        KnownDigests(told["files"]), code if state == code_state() else code_digest()
    )


def code_digest() -> str:
    """sha256 (the first 16 hex digits) of every source and compiled file of the installed package."""
    root = Path(megascratch.__file__).parent
    digest = hashlib.sha256()
    for file in _code_files():
        content = file.read_bytes()
        header = f"{file.relative_to(root).as_posix()} {len(content)}\n"
        digest.update(header.encode() + content)
    return digest.hexdigest()[:16]


def code_state() -> str:
    """sha256 of the name and the state of the same files, none of which is read."""
    digest = hashlib.sha256()
    for file in _code_files():
        digest.update(f"{file} {FileState.of(file)}\n".encode())
    return digest.hexdigest()


def _code_files() -> list[Path]:
    root = Path(megascratch.__file__).parent
    return sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so"))


def shared_checkpoint(
    meeting: Rendezvous | None, settings: Values, batch_is_given: bool
) -> Resume | None:
    """As `find_checkpoint`, whose arguments and errors these are: one rank of the run proves which step is valid, and
    one rank of each machine reads its manifest."""
    if meeting is None:
        return find_checkpoint(settings, batch_is_given)
    proved = found_once(meeting, "newest valid checkpoint", partial(newest_valid, settings))

    def find() -> dict[str, Any]:
        resume = find_checkpoint(settings, batch_is_given, proved)
        if resume is None:
            return {"resume": None}
        start, *rest = resume
        return {"resume": [str(start), *rest], "state": manifest_state(start)}

    told = found_once(meeting, f"checkpoint on {machine()}", find)
    if told is not None and told["resume"] is None:
        return None
    if told is not None:
        start, *rest = told["resume"]
        place = storage_path(start)
        if told["state"] == manifest_state(place):
            return Resume(place, *rest)
    return find_checkpoint(settings, batch_is_given, proved)


def manifest_state(start: Place) -> list[int] | None:
    """What this process sees of the manifest without reading it; None in object storage, or if it is not there."""
    if not isinstance(start, Path):
        return None
    try:
        return list(FileState.of(start / FILE))
    except OSError:
        return None

"""The working folder of a preprocessing run: its lock, its plan, and whether an interrupted run can be resumed.

{prefix}.shards/
  lock           held by the one process that merges, shared by those that only encode (--shard)
  plan.json      everything that determines the output
  ...            shards (output_shards.py) and the merged files (merge.py)
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.json_record import parse_json
from megascratch.data.preprocess.merge import read_state
from megascratch.data.tokens.digests import digests_path
from megascratch.data.tokens.manifest import manifest_path, stored_manifest
from megascratch.data.tokens.token_files import bin_path, idx_path
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically

# removed last: else a kill in between would look like a new run
STATE_FILES = (
    "merged.json",
    "lock",
)


@contextmanager
def locked(folder: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Creates the folder and locks it for this process; with `shard` (i of n), processes of other shards may share it.

    The system frees the lock of a process that dies. Raises: UserError naming the process that holds the lock.
    """
    with explain_write_errors(folder, "; choose another output prefix"):
        folder.mkdir(parents=True, exist_ok=True)
    held = [_lock(folder, "lock", fcntl.LOCK_SH if shard else fcntl.LOCK_EX)]
    try:
        if shard:
            held.append(_lock(folder, f"lock.{shard[0]}-of-{shard[1]}", fcntl.LOCK_EX))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _lock(folder: Path, name: str, kind: int) -> int:
    path = folder / name
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                f"{folder.with_suffix('')} is being written by another process ({holder})"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            if kind == fcntl.LOCK_EX:
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0
                )
            return descriptor
        os.close(descriptor)


class Refused(UserError):
    """Raised where the folder or the output belongs to another run."""


class RunSpec(NamedTuple):
    """What identifies a run; stored in plan.json."""

    deciding: dict[str, Any]
    """All settings that determine the output and the cut into shards, by name."""
    cut_packed: bool
    """Whether large compressed files are cut into many shards: the first process decides, later ones follow it."""
    can_go_on: bool
    """Whether the run can be resumed: its input can be read again."""


def plan_digest(plan: RunSpec) -> str:
    """A digest that differs for runs with different results."""
    return hashlib.sha256(json.dumps(plan.deciding, sort_keys=True).encode()).hexdigest()


def resume_or_start(
    folder: Path, plan: RunSpec, prefixes: Sequence[str], overwrite: bool, alone: bool
) -> RunSpec | None:
    """Resumes the run with the same plan, or starts a new one; None: everything is encoded and merged already.

    `alone`: no other process works in the folder.
    Raises: Refused where the folder or the output belongs to another run, unless `overwrite`.
    """
    old = _stored(folder)
    if old and old.deciding == plan.deciding and plan.can_go_on:
        if alone:
            _sweep(folder)
        return None if read_state(folder, len(prefixes)).complete else old
    if old and old.deciding != plan.deciding and not (overwrite and alone):
        differing = [
            name for name, value in plan.deciding.items() if old.deciding.get(name) != value
        ]
        different = ", ".join(differing)
        raise Refused(
            f"{folder} holds the shards of an interrupted run with another {different}; finish that run with its own "
            f"options, or start again with --overwrite"
        )
    if alone:
        clear(folder)
    if not overwrite and _is_there(prefixes, plan):
        return None
    write_atomically(folder / "plan.json", json.dumps(plan._asdict(), sort_keys=True, indent=1))
    return plan


def _stored(folder: Path) -> RunSpec | None:
    try:
        return RunSpec(**parse_json((folder / "plan.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _sweep(folder: Path) -> None:
    """Removes unfinished files of a killed process."""
    for pattern in ("*.partial", "input.*"):
        for path in folder.glob(pattern):
            path.unlink()


def _is_there(prefixes: Sequence[str], plan: RunSpec) -> bool:
    """Whether the output is complete and from this plan. Raises: Refused where other files have its names."""
    pairs: list[Path] = []
    records: list[Path] = []
    for prefix in prefixes:
        pairs += [bin_path(prefix), idx_path(prefix)]
        records += [manifest_path(prefix), digests_path(prefix)]
    plans = {_plan_of(prefix) for prefix in prefixes}
    are_complete = all(path.exists() for path in pairs)
    if plan.can_go_on and are_complete and plans == {plan_digest(plan)}:
        return True
    taken = [path for path in (*pairs, *records) if path.exists()]
    if taken:
        raise Refused(
            f"{taken[0]} exists and was not made from this input with these options; --overwrite replaces it"
        )
    return False


def _plan_of(prefix: str) -> str | None:
    """The digest of the plan in a corpus's manifest; None if there is none."""
    try:
        manifest = stored_manifest(prefix)
    except UserError:
        return None
    return None if manifest is None else manifest.get("plan")


def clear(folder: Path) -> None:
    """Removes all files but the lock."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name in STATE_FILES):
        if path.name != "lock":
            path.unlink()


def remove(folder: Path) -> None:
    """Removes the folder; the caller holds its lock."""
    clear(folder)
    (folder / "lock").unlink(missing_ok=True)
    folder.rmdir()


def has_progress(folder: Path) -> bool:
    """Whether the folder has finished shards or a merged part."""
    if (folder / "merged.json").exists():
        return True
    return any(path.name[0].isdigit() for path in folder.glob("*.json"))

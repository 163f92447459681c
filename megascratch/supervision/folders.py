"""Creates the in-memory folders for heartbeat files, one per attempt, and deletes those of processes that are gone.

Each folder is named after its owner process: megascratch-ranks-{namespace}.{pid}.{start}-{more}. The folder of a killed
process is deleted when the same user next starts a run.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.runtime.processes import identity, is_gone
from megascratch.supervision.observe import memory_folder

NAME = re.compile(r"megascratch-[a-z]+-(\d+\.\d+\.\d*)-.*")


def new_folder(kind: str) -> Path:
    """An empty folder owned by this process, which deletes it at its end; only this user can read it.

    Args:
        kind: one word for the name, e.g. ranks.
    """
    delete_stale_folders()
    return Path(
        tempfile.mkdtemp(prefix=f"megascratch-{kind}-{identity(os.getpid())}-", dir=memory_folder())
    )


def shared_folder(parent: str, owner: int, name: str) -> Path:
    """A folder in `parent` owned by process `owner`; every process that passes the same arguments gets the same folder.

    Raises: UserError if another user has created a folder of this name.
    """
    folder = Path(parent, f"megascratch-ranks-{identity(owner)}-{name}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(
            f"{folder} belongs to another user, who could tamper with this run: ask that user or an administrator "
            "to delete it"
        )
    return folder


def delete_stale_folders() -> None:
    """Deletes the folders of this user whose owner process is gone."""
    for folder in stale_folders():
        shutil.rmtree(folder, ignore_errors=True)


def stale_folders() -> list[Path]:
    """The folders of this user whose owner process is gone."""
    stale = []
    for folder in Path(memory_folder()).glob("megascratch-*"):
        match = NAME.fullmatch(folder.name)
        if match is not None and is_gone(match[1]) and _is_mine(folder):
            stale.append(folder)
    return stale


def _is_mine(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
    except OSError:
        return False  # another run has just deleted it

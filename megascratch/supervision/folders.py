"""Folders in memory through which ranks are watched, one for each attempt.

Each is named after the process that it belongs to: megascratch-ranks-{namespace}.{pid}.{start}-{more}. What a killed
process has left is deleted by the next start of the same user.
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
    """An empty folder that belongs to this process, which deletes it; only this user can look into it.

    Args:
        kind: one word, e.g. ranks.
    """
    delete_stale_folders()
    return Path(tempfile.mkdtemp(prefix=f"megascratch-{kind}-{identity(os.getpid())}-", dir=memory_folder()))


def shared_folder(parent: str, owner: int, name: str) -> Path:
    """A folder in `parent` that belongs to process `owner`: the same for all processes that ask with the same words.

    Raises: UserError where another user has made one of this name.
    """
    folder = Path(parent, f"megascratch-ranks-{identity(owner)}-{name}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user, who could falsify this run: have it deleted")
    return folder


def delete_stale_folders() -> None:
    """Deletes the folders of this user whose processes are gone."""
    for folder in stale_folders():
        shutil.rmtree(folder, ignore_errors=True)


def stale_folders() -> list[Path]:
    """The folders of this user whose processes are gone."""
    found = []
    for folder in Path(memory_folder()).glob("megascratch-*"):
        match = NAME.fullmatch(folder.name)
        if match is not None and is_gone(match[1]) and _is_mine(folder):
            found.append(folder)
    return found


def _is_mine(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
    except OSError:
        return False  # another start has just deleted it

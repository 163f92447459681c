"""Finds checkpoints by the names of local folders, and says what is near when there is none. Needs no torch.

runs/mine/checkpoints/step_00000100/manifest.json
a run     its steps   a step
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.storage.path import Place, storage_path

STEP_NAME = re.compile(r"step_(\d{8,})")  # of the step folder
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
"""The folder of steps in the folder of a run, unless --save names another one."""
MOST_NEAR = 3
MOST_SEARCHED = 100
"""Runs that a message names, and folders in which they are searched."""


def step_names(folder: Path) -> list[str]:
    """The names of the step folders, readable or not; [] if `folder` itself cannot be read."""
    return [path.name for path in _inside(folder) if STEP_NAME.fullmatch(path.name)]


def is_step(path: Path) -> bool:
    """Whether the path is itself a step folder: it has the name of one, or a manifest, readable or not."""
    return STEP_NAME.fullmatch(path.name) is not None or os.path.lexists(path / MANIFEST)


def checkpoints_of(path: Path) -> Path:
    """A step folder or a folder of steps as it is; of a run's folder, the folder `checkpoints` in it."""
    if is_step(path) or step_names(path):
        return path
    inside = path / CHECKPOINTS
    return inside if step_names(inside) else path


def require_checkpoint(path: str, flag: str = "") -> None:
    """Checks that a local path is a step, a folder of steps or a run; what the step contains is checked by its reader.

    Raises: UserError, whose text begins with the flag.
    """
    place = storage_path(path)
    if not isinstance(place, Path):
        return
    found = checkpoints_of(place)
    if not place.is_dir() or not (is_step(found) or step_names(found)):
        reason = str(no_checkpoint(place, place.is_dir()))
        raise UserError(f"{flag} {path}: {reason}" if flag else reason)


def no_checkpoint(path: Place, is_folder: bool) -> UserError:
    """The error for a path that names no checkpoint. It lists the runs that are near: in the folder, or next to it with
    a similar name."""
    message = f"no checkpoint: {path} is not a folder"
    if is_folder:
        message = f"no checkpoint: {path} has no folder step_00000000, nor has {path / CHECKPOINTS}"
    near = _runs_near(path) if isinstance(path, Path) else []
    if near:
        message += f"; did you mean {' or '.join(map(str, near))}?"
    return UserError(message)


def _runs_near(path: Path) -> list[Path]:
    """Up to MOST_NEAR folders with checkpoints."""
    around = path if path.is_dir() else path.parent
    folders = {folder.name: folder for folder in _inside(around) if folder.is_dir()}
    if path.is_dir():
        names = sorted(folders)[:MOST_SEARCHED]
    else:
        names = get_close_matches(path.name, folders, MOST_SEARCHED, cutoff=0.6)
    runs = [folders[name] for name in names if step_names(checkpoints_of(folders[name]))]
    return runs[:MOST_NEAR]


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []

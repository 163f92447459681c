"""Finds checkpoints by the names of local folders, and says what is near when there is none. Needs no torch.

runs/mine/checkpoints/step_00000100/manifest.json
a run     its steps   a step
"""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.storage.path import Place, storage_path
from megascratch.storage.store import Store

STEP_NAME = re.compile(r"step_(\d{8,})")  # of the step folder
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
"""The folder of steps in the folder of a run, unless --save names another one."""
MEGATRON_MARK = "latest_checkpointed_iteration.txt"
"""The file by which Megatron-LM finds the newest checkpoint in a folder."""
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


def name_of_step(load: str, names: Sequence[str], step: int) -> str:
    """The name of a step in a folder that has these. Raises: UserError that names the nearest ones."""
    found = {int(name.removeprefix("step_")): name for name in names}
    if step in found:
        return found[step]
    near = sorted(sorted(found, key=lambda other: abs(other - step))[:MOST_NEAR])
    hint = (
        f"use {' or '.join(map(str, near))}" if near else "it must be a folder of steps or of a run"
    )
    raise UserError(f"--ckpt-step {step}: --load {load} has no step of this number: {hint}")


def require_no_foreign_checkpoint(path: str) -> None:
    """Raises: UserError if a folder has a checkpoint of Megatron-LM, and none of this toolkit."""
    place = storage_path(path)
    if isinstance(place, Path):
        there = (place / MEGATRON_MARK).exists()
    else:
        there = MEGATRON_MARK in Store(place.url).names(place.url)
    if there:
        raise UserError(
            f"--load {path}: this is a checkpoint of Megatron-LM ({MEGATRON_MARK}), which cannot be read: name another "
            "folder, or remove --load to start from scratch"
        )


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

"""Where checkpoints lie: `{folder}/step_00000123/`, each complete from the moment it has its name."""

import re
import warnings
from pathlib import Path

from megascratch.checkpoint.manifest import FILE, read_manifest
from megascratch.config.errors import UserError

_STEP = re.compile(r"step_(\d{8,})")


def step_folder(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step_{step:08d}"


def steps(folder: str | Path) -> list[Path]:
    """The step folders of a run, newest first, whether they can be read or not."""
    try:
        found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _STEP.fullmatch(path.name))]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def latest(folder: str | Path) -> Path | None:
    """The newest step folder with a readable manifest; a damaged newer one is warned about and passed over."""
    for path in steps(folder):
        try:
            read_manifest(path)
        except UserError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
        else:
            return path
    return None


def find(path: str | Path) -> Path:
    """A step folder, or the newest one in a folder of them. Raises: UserError where there is none."""
    path = Path(path)
    if (path / FILE).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint: {path} is not a folder")
    newest = latest(path)
    if newest is None:
        raise UserError(f"no checkpoint: {path} has neither {FILE} nor a readable folder step_00000000")
    return newest

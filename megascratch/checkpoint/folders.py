"""Where checkpoints lie: `{folder}/step_00000123/`, each complete from the moment it has its name."""

import re
import warnings
from pathlib import Path

from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.local import LocalStep
from megascratch.checkpoint.manifest import FILE, DataFile, Manifest, parse
from megascratch.checkpoint.transfer import checksum
from megascratch.config.errors import UserError

_STEP = re.compile(r"step_(\d{8,})")


def step_folder(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step_{step:08d}"


def step_number(path: str | Path) -> int:
    """The step of a step folder. Raises: UserError for another name."""
    match = _STEP.fullmatch(Path(path).name)
    if match is None:
        raise UserError(f"{path} is not named step_00000000")
    return int(match[1])


def steps(folder: str | Path) -> list[Path]:
    """The step folders of a run, newest first, whether they can be read or not."""
    try:
        found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _STEP.fullmatch(path.name))]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def read_manifest(step_folder: str | Path) -> Manifest:
    """Reads and checks the table of contents; no tensor is touched.

    Raises: DamagedError where the folder is no checkpoint, or its manifest is damaged.
    """
    path = Path(step_folder)
    text = LocalStep(path).manifest_text()
    try:
        return parse(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DamagedError(f"{path / FILE} is damaged: {reason}; load another step of the run") from error


def check_files(step: Path, manifest: Manifest) -> None:
    """Raises: DamagedError unless every file is there, of its size, with its header; no tensor is read."""
    for name, record in manifest.files.items():
        _check_file(step, name, record)


def _check_file(step: Path, name: str, record: DataFile) -> None:
    file = LocalStep(step).open(name)
    try:
        if file.size != record.bytes:
            raise DamagedError(f"{file.path} is damaged: it has {file.size:,} bytes, the manifest says "
                               f"{record.bytes:,}")
        header = bytearray(record.header_bytes)  # not more than the file has
        file.read_into(0, memoryview(header))
        if checksum(header) != record.header_xxh3_64:
            raise DamagedError(f"{file.path} is damaged: the header does not fit its checksum")
    finally:
        file.close()


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

"""Runs the Python files and modules that `--import` names, so that what they register can be a value of a setting.

Every process of a run does this when it reads the settings. A relative path is looked up in the current directory, a
module in the current directory and where Python looks. A file may import its neighbours. The digest of what was run,
neighbours included, is compared over the ranks and saved with a checkpoint.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from megascratch.config.errors import UserError
from megascratch.config.registry import packages

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_LIBRARIES = ("importlib", "site-packages", "dist-packages")
_RUN: dict[str, "tuple[str, dict[Path, str]]"] = {}
"""Name of the module -> the source that was given, and the digest of each file that running it read."""


def run_imports(sources: Sequence[str]) -> None:
    """Runs each file (`my_layers.py`) or module (`my_package.layers`) that this process has not run yet, or whose files
    have changed since.

    Raises: UserError, naming the source and the user's line, for one that does not exist or fails.
    """
    for source in sources:
        path = Path(source)
        is_file = path.suffix == ".py" or os.path.isfile(path)
        name = f"megascratch_import_{path.resolve()}" if is_file else source
        if name in _RUN and not _changed(name):
            continue
        if is_file and not os.path.isfile(path):
            raise UserError(f"--import {source} cannot be run: there is no such file{_here()}")
        folder = str(path.resolve().parent if is_file else Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)  # last: it hides no installed package
        for stale in _RUN.get(name, ("", {}))[1]:
            _forget(stale)
        before = set(sys.modules)
        try:
            module = _run_file(path, name) if is_file else importlib.import_module(source)
        except (Exception, SystemExit) as error:
            raise UserError(f"--import {source} cannot be run: {_reason(source, error)}") from error
        _RUN[name] = source, _digests(module, before)


def import_digests() -> dict[str, str]:
    """What users' code this process has run: source, or 'norm ScaleNorm' for the part of an installed package -> the
    digest of its files (the first 16 hex digits of sha256), or the package with its version."""
    found = {}
    for source, files in _RUN.values():
        digest = hashlib.sha256()
        for file in sorted(files, key=lambda file: file.name):
            digest.update(f"{file.name} {files[file]}\n".encode())
        found[source] = digest.hexdigest()[:16]
    return found | packages()


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("it is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _digests(module: ModuleType, before: set[str]) -> dict[Path, str]:
    """The digests of the module's file, and of files in its folder that running it loaded."""
    if module.__file__ is None:
        return {}
    root = Path(module.__file__).parent
    files = {Path(module.__file__)}
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(root):
            files.add(Path(file))
    return {file: _digest(file) for file in files}


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return "cannot be read"


def _changed(name: str) -> bool:
    _, files = _RUN[name]
    return any(_digest(file) != digest for file, digest in files.items())


def _forget(file: Path) -> None:
    """Removes the modules of a file, so that importing it runs it again."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(file):
            del sys.modules[name]


def _here() -> str:
    return f" (the current directory is {Path.cwd()})"


def _reason(source: str, error: BaseException) -> str:
    """Why a user's code failed, with the line of theirs that was last run."""
    if isinstance(error, ModuleNotFoundError) and error.name == source.split(".")[0]:
        return f"there is no such module here or among the installed packages{_here()}"
    if isinstance(error, SyntaxError):
        return f"{_place(error.filename, error.lineno)}{error.msg}"
    return users_line(error)


def users_line(error: BaseException) -> str:
    """An error of a user's code: the line of theirs that was last run, and what went wrong."""
    what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = frame.filename.startswith((_PACKAGE, "<frozen"))
        if not is_ours and not any(folder in frame.filename for folder in _LIBRARIES):
            return f"{_place(frame.filename, frame.lineno)}{what}"
    return what


def _place(file: str | None, line: int | None) -> str:
    if file is None:
        return ""
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{line}: "

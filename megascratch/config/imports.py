"""Runs the Python files and modules that `--import` names, so that what they register can be a value of a setting."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from megascratch.config.errors import UserError


def run_imports(sources: Sequence[str]) -> None:
    """Runs each file (`my_layers.py`) or module (`my_package.layers`) that this process has not run yet.

    Raises: UserError, naming the source, for one that does not exist or fails.
    """
    for source in sources:
        path = Path(source)
        is_file = path.suffix == ".py" or path.exists()
        name = f"megascratch_import_{path.resolve()}" if is_file else source
        if name in sys.modules:
            continue
        try:
            if is_file:
                _run_file(path, name)
            else:
                importlib.import_module(name)
        except Exception as error:
            raise UserError(
                f"--import {source} cannot be run: {type(error).__name__}: {error}"
            ) from error


def _run_file(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise

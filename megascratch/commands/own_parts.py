"""The flag --import of commands that do not read settings: runs the user's code that registers parts."""

import argparse
from typing import Any

from megascratch.config.imports import run_imports


class _RunImports(argparse.Action):
    """Runs what is named while the flags are read, so that names are known to whatever reads them next."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        run_imports([values])
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def add_import(parser: "argparse._ActionsContainer") -> None:
    """Adds --import. Raises when it is parsed: UserError for code that cannot be run."""
    parser.add_argument(
        "--import",
        dest="imports",
        default=[],
        action=_RunImports,
        metavar="FILE",
        help="Python file or module that registers parts of your own; can be repeated",
    )

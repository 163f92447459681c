"""Warnings as a user reads them: one line, without the place in the source."""

import warnings


def plain_warnings() -> None:
    """For a process that a person started, not for a library's user: how each warning of this process is written."""
    warnings.formatwarning = _in_one_line


def _in_one_line(message: Warning | str, *place: object, **line: object) -> str:
    return f"megascratch: warning: {message}\n"

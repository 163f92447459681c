"""Prints Python warnings in one line, without their position in the source."""

import warnings


def plain_warnings() -> None:
    """Sets the format of all warnings of this process. For commands, not for programs that import megascratch."""
    warnings.formatwarning = _in_one_line


def _in_one_line(message: Warning | str, *place: object, **line: object) -> str:
    return f"megascratch: warning: {message}\n"

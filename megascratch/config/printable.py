"""Makes text fit for a terminal: escapes what comes from files, shortens it, and prints warnings in one line.

Text from a file must not control the terminal or forge a line of output. Escaped are all characters that Unicode does
not call printable: control characters (ESC among them), line ends of every kind, characters that change the direction
of text or are invisible, halves of surrogate pairs, unassigned ones.
"""

import warnings

MOST_SHOWN = 200
"""Characters of a name or value from outside that a message shows."""


def printable(text: object) -> str:
    """One line that is safe to print: ``\\x1b``, ``\\n`` and ``\\u202e`` replace the characters that they name."""
    line = str(text)
    if line.isprintable():
        return line
    escaped = []
    for character in line:
        if character.isprintable():
            escaped.append(character)
        else:
            escaped.append(character.encode("unicode_escape").decode())
    return "".join(escaped)


def printable_lines(text: str) -> str:
    """Like `printable`, for our own text of several lines: line feeds are kept."""
    return "\n".join([printable(line) for line in text.split("\n")])


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """A name or value from outside for a message: printable, and truncated if it is long."""
    line = printable(text)
    if len(line) > most:
        return f"{line[:most]}..."
    return line


def size(nbytes: float) -> str:
    """Bytes in the unit that suits them: 1.25 GiB."""
    value = nbytes
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value /= 1024
        unit = larger
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.2f} {unit}"


def plain_warnings() -> None:
    """Prints the warnings of this process in one line each, without their position in the source.

    For commands, not for programs that import megascratch.
    """
    warnings.formatwarning = _in_one_line


def _in_one_line(message: Warning | str, *place: object, **line: object) -> str:
    return f"megascratch: warning: {message}\n"

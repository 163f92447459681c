"""Escapes text from files before it is printed, so that it cannot control the terminal or forge a line of output.

Escaped are all characters that Unicode does not call printable: control characters (ESC among them), line ends of
every kind, characters that change the direction of text or are invisible, halves of surrogate pairs, unassigned ones.
"""

MOST_SHOWN = 200
"""Characters of a name or value from outside that a message shows."""


def printable(text: object) -> str:
    """One line that is safe to print: ``\\x1b``, ``\\n`` and ``\\u202e`` replace the characters that they name."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join([_escaped(character) for character in line])


def printable_lines(text: str) -> str:
    """Like `printable`, for our own text of several lines: line feeds are kept."""
    return "\n".join([printable(line) for line in text.split("\n")])


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """A name or value from outside for a message: printable, and truncated if it is long."""
    line = printable(text)
    return line if len(line) <= most else f"{line[:most]}..."


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()

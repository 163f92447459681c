"""Text from files, escaped before it is printed: what a file holds must not steer a terminal or forge a line.

Escaped is what Unicode does not call printable: control characters (ESC among them), line ends of every kind,
characters that turn the direction of text or hide in it, halves of surrogate pairs, unassigned ones.
"""

MOST_SHOWN = 200
"""Characters of a foreign name or value in a message."""


def printable(text: object) -> str:
    """One line that a terminal shows as it is: ``\\x1b``, ``\\n`` and ``\\u202e`` stand for what they name."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join([_escaped(character) for character in line])


def printable_lines(text: str) -> str:
    """As `printable`, for a text of several lines of our own: line feeds stay."""
    return "\n".join([printable(line) for line in text.split("\n")])


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """A foreign name or value in a message: printable, and cut where it is long."""
    line = printable(text)
    return line if len(line) <= most else f"{line[:most]}..."


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()

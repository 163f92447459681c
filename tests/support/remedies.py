"""Reads the remedies in a message as a user reads them, word for word; what wrote them is not asked."""

import difflib
import re
import shlex

from megascratch.config.fields import SETTINGS, flag

NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?(?: \d+)*"
VALUES = rf"{NUMBER}(?:(?:, | or ){NUMBER}(?![\w-]))*"
WORLD = "world_size"


def proposals(text: str) -> list[tuple[str, str]]:
    """(setting or 'world_size', value) of each value that a refusal names behind its law."""
    tail = text.rpartition(": ")[2]
    found = []
    for name in SETTINGS:
        for match in re.finditer(rf"(?<![\w-]){name.replace('_', '-')} ({VALUES})", tail):
            found += [(name, value) for value in re.findall(NUMBER, match[1])]
    for match in re.finditer(rf"start ({VALUES}) process(?:es)?\b", tail):
        found += [(WORLD, value) for value in re.findall(NUMBER, match[1])]
    return found


def followed(command: str, said: str) -> list[str]:
    """The command lines that a user would type next who follows each remedy of a message to the letter."""
    found = []
    for line in said.splitlines():
        for name, value in proposals(line):
            name = "--nproc-per-node" if name == WORLD else flag(name)
            found.append(with_flag(command, name, value.split()))
        for meant in re.findall(r"did you mean (\S+)\?", line):
            words = shlex.split(command)
            alike = [word for word in words[1:] if word.startswith("--") == meant.startswith("--")]
            wrong = difflib.get_close_matches(meant, alike, n=1, cutoff=0.5)
            if wrong:
                words[words.index(wrong[0])] = meant
                found.append(shlex.join(words))
    return list(dict.fromkeys(found))


def with_flag(command: str, name: str, values: list[str]) -> str:
    """The command line with another value of a flag."""
    words = shlex.split(command)
    if name in words:
        start = words.index(name)
        stop = start + 1
        while stop < len(words) and not words[stop].startswith("--"):
            stop += 1
        del words[start:stop]
    return shlex.join([*words, name, *values])

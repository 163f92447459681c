"""Reads the layers of each pipeline stage from a text, as Megatron-LM's users write them. Pure arithmetic.

    E|(tt|)*29t|L      E embedding, t layer, L output layer and loss; | begins the next stage
    Et*2|(tt|)*5t|tL   x*n is x n times, (...)*n the whole group n times; commas and blanks only help to read

Groups may contain groups.
"""

from collections.abc import Sequence

MOST_LETTERS = 1_000_000  # of a text whose repeats are written out
MEANING = {"E": "the embedding", "t": "a layer", "L": "the output layer", "|": "the next stage"}


class StageStringError(ValueError):
    """A text that does not say which layers each stage has.

    Args:
        law: what is wrong with it, after 'the text'.
        remedy: what to write.
    """

    def __init__(self, law: str, remedy: str):
        self.law = law
        self.remedy = remedy
        super().__init__(f"{law}: {remedy}")


def layers_of_string(text: str) -> list[int]:
    """The number of layers of each stage, in model order: 'Et*2|t|L' is [2, 1, 0].

    Raises: StageStringError for a text that is not in this notation, or whose embedding is not at the beginning or
    whose output layer is not at the end.
    """
    stages = _written_out(text).split("|")
    for letter, place, is_there in (
        ("E", "begin the first stage", stages[0].startswith("E")),
        ("L", "end the last stage", stages[-1].endswith("L")),
    ):
        number = sum(stage.count(letter) for stage in stages)
        if number != 1:
            raise StageStringError(
                f"has {number} x {letter} ({MEANING[letter]})", f"let one {letter} {place}"
            )
        if not is_there:
            raise StageStringError(
                f"has {letter} ({MEANING[letter]}) at another place", f"let it {place}"
            )
    return [stage.count("t") for stage in stages]


def string_of_layers(layers: Sequence[int]) -> str:
    """The text for a number of layers of each stage: [2, 1, 0] is 'Et*2|t|L'."""
    words = []
    for number in layers:
        words.append("t" * number if number < 2 else f"t*{number}")
    return f"E{'|'.join(words)}L"


def _written_out(text: str) -> str:
    """The text without repeats, groups, commas and blanks."""
    groups = [""]  # what is written out of each open group, outermost first
    last = ""  # what a `*` would repeat
    place = 0
    while place < len(text):
        letter = text[place]
        place += 1
        if letter in ", ":
            continue
        if letter == "(":
            groups.append("")
            last = ""
        elif letter == ")":
            if len(groups) == 1:
                raise StageStringError("closes a group that is not open", "remove a ')'")
            last = groups.pop()
            groups[-1] += last
        elif letter == "*":
            end = place
            while end < len(text) and text[end].isdecimal():
                end += 1
            groups[-1] += _repeated(last, text[place:end], groups[-1])
            place = end
            last = ""
        else:
            last = _known(letter)
            groups[-1] += letter
    if len(groups) > 1:
        raise StageStringError("has an open group", "add a ')'")
    return groups[0]


def _repeated(repeated: str, number: str, before: str) -> str:
    """What `*number` adds to a text that has `repeated` at its end once."""
    if not repeated or not number or int(number[:7]) < 1:
        raise StageStringError(
            f"has '*{number}' without something to repeat and a number of 1 or more",
            "write t*2 or (tt|)*2",
        )
    if len(number) > 7 or len(before) + len(repeated) * int(number) > MOST_LETTERS:
        raise StageStringError(
            f"has more than {MOST_LETTERS:,} layers and stages",
            f"use a smaller number than {number[:20]}",
        )
    return repeated * (int(number) - 1)


def _known(letter: str) -> str:
    """The letter. Raises: StageStringError if it has no meaning here."""
    if letter == "m":
        raise StageStringError(
            "has m (multi-token prediction), which is not implemented here", "remove it"
        )
    if letter not in MEANING:
        letters = ", ".join(f"{known} ({meaning})" for known, meaning in MEANING.items())
        raise StageStringError(f"has '{letter}', which has no meaning", f"use {letters}")
    return letter

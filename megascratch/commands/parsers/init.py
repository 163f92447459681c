"""The flags of `megascratch init`."""

from megascratch.commands.parsers.base import Parser

NOTE = (
    "The first comment of the file has the commands that prepare data under the names that it uses, and train. "
    "`--config NAME` trains a preset without a file; a second --config or flags override its values."
)
EXAMPLES = (
    "megascratch init",
    "megascratch init llama-10m",
    "megascratch init gpt2-124m --output configs/mine.yaml",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch init",
        "Writes the config of a known model as commented YAML; without a name it lists them.",
        EXAMPLES,
        NOTE,
    )
    made.add_argument("preset", nargs="?", metavar="PRESET", help="a name of the list")
    made.add_argument(
        "--output",
        metavar="FILE",
        help="the file to write (default: PRESET.yaml), or - for standard output",
    )
    return made

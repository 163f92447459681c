"""The flags of `megascratch curate`. The defaults are those of `curation.curate.Settings`."""

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import add_input

EXAMPLES = (
    "megascratch curate --input web.jsonl --output clean.jsonl \\\n"
    "    --gopher-quality --gopher-repetition --exact-duplicates \\\n"
    "    --near-duplicates --decontaminate heldout.jsonl --report report.json",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch curate",
        "Filters and deduplicates JSONL texts for training, and reports what was dropped and why.",
        EXAMPLES,
    )
    group = made.add_argument_group("input and output")
    add_input(group)
    add = group.add_argument
    add("--json-key", metavar="KEY", help="key of the text in a line (default: text)")
    add("--strict", action="store_true", help="stop at the first bad line, write nothing")
    add(
        "--output",
        required=True,
        metavar="FILE",
        help="JSONL file for the lines that pass all rules",
    )
    add(
        "--report",
        metavar="FILE",
        help="JSON file: how many texts each rule dropped, with examples",
    )
    _add_rules(made)
    _add_duplicates(made)
    return made


def _add_rules(made: Parser) -> None:
    add = made.add_argument_group("rules on one text").add_argument
    add(
        "--gopher-quality",
        action="store_true",
        help="rules on length, symbols, bullets, stop words (arXiv 2112.11446)",
    )
    add(
        "--gopher-repetition",
        action="store_true",
        help="rules on repeated lines, paragraphs and n-grams (same paper)",
    )
    add(
        "--c4",
        action="store_true",
        help="keep only lines that end a sentence; no code, no lorem ipsum (arXiv 1910.10683)",
    )
    add(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a limit of these rules",
    )


def _add_duplicates(made: Parser) -> None:
    add = made.add_argument_group("rules that compare a text with others").add_argument
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="FILE",
        help="drop texts that share n-grams with these files",
    )
    add(
        "--decontaminate-key",
        metavar="KEY",
        help="key of the text in these files (default: text)",
    )
    add(
        "--decontaminate-words",
        type=int,
        metavar="N",
        help="words in a shared n-gram (default: 13, as in GPT-3; shorter evaluation texts must match entirely)",
    )
    add("--exact-duplicates", action="store_true", help="keep only the first of equal texts")
    add(
        "--near-duplicates",
        action="store_true",
        help="keep only the first of similar texts (MinHash, needs datasketch)",
    )
    add("--similarity", type=float, metavar="J", help="Jaccard similarity (default: 0.8)")
    add("--shingle-words", type=int, metavar="N", help="words in a shingle (default: 13)")
    add(
        "--permutations",
        type=int,
        metavar="N",
        help="permutations in a signature (default: 128)",
    )

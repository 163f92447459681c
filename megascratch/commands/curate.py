"""`megascratch curate`: filters and deduplicates JSONL texts for training, and reports what was dropped and why.

    megascratch curate --input web.jsonl --output clean.jsonl --gopher-quality --gopher-repetition --exact-duplicates \\
        --near-duplicates --decontaminate heldout.jsonl --report report.json
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from megascratch.commands.input_output import BadLines, add_input, require_no_input
from megascratch.commands.text_source import no_text
from megascratch.config.errors import UserError
from megascratch.config.fields import nearest
from megascratch.config.printable import printable
from megascratch.curation.curate import CurationReport, Curator, Settings
from megascratch.curation.quality import Limits
from megascratch.data.text.sources import Source, find_sources
from megascratch.runtime.atomic_file import atomic_file, explain_write_errors


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    options = _parser().parse_args(argv)
    output = Path(options.output)
    values = {name: getattr(options, name) for name in Settings._fields if name != "limits"}
    values["decontaminate"] = tuple(options.decontaminate)
    sources = find_sources(options.input, options.input_format)
    paths = [source.path for source in sources]
    read = [("--input", path) for path in paths]
    read += [("--decontaminate", path) for path in options.decontaminate]
    require_no_input([("--output", output), ("--report", options.report)], read)
    require_no_input([("--report", options.report)], [("--output", output)])
    repeated = {path for path in paths if paths.count(path) > 1}
    if repeated:
        raise UserError(
            f"--input names {', '.join(sorted(repeated))} more than once: name each file once"
        )
    curator = Curator(Settings(**values, limits=_limits(options.limit)))
    bad_lines = BadLines()
    _write(curator, sources, output, bad_lines)
    bad_lines.print_rest()
    if options.report:
        _write_report(curator.report, Path(options.report))
    _print_report(curator.report, output)
    return 0


def _limits(words: Sequence[str]) -> Limits:
    """The default limits, changed by NAME=VALUE words."""
    kinds = {name: type(value) for name, value in vars(Limits()).items()}
    changed = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise UserError(
                f"--limit {word}: unknown limit {name}{nearest(name, list(kinds))}; use {', '.join(kinds)}"
            )
        try:
            changed[name] = kinds[name](value)
        except ValueError:
            kind = kinds[name]
            raise UserError(
                f"--limit {word}: {name} must be of type {kind.__name__}, such as {name}={kind(1)}"
            ) from None
    return Limits(**changed)


def _write(curator: Curator, sources: Sequence[Source], output: Path, bad_lines: BadLines) -> None:
    with (
        explain_write_errors(f"--output {output}", "; nothing was written"),
        atomic_file(output) as file,
    ):
        for line in curator.keep(sources, bad_lines.add):
            file.write(line + b"\n")
        if curator.report.lines == curator.report.bad_lines:
            raise no_text(sources, bad_lines, "--json-key")


def _write_report(report: CurationReport, path: Path) -> None:
    with explain_write_errors(f"--report {path}", "; the output was written"):
        path.write_text(
            json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _print_report(report: CurationReport, output: Path) -> None:
    texts = max(report.lines - report.bad_lines, 1)
    print(
        f"wrote {printable(output)}: {report.kept:,} of {report.lines:,} lines ({report.bytes_kept:,} of "
        f"{report.bytes_read:,} bytes of text), {report.changed:,} of them changed, {report.bad_lines:,} bad lines"
    )
    for rule, times in report.dropped.most_common():
        example = report.examples[rule][0]
        print(
            f"  {rule:<28}{times:>10,} {times / texts:>7.2%}  e.g. "
            f"{printable(example['place'])}: {printable(example['reason'])}"
        )
    if report.evaluation_texts_too_short:
        short = report.evaluation_texts_too_short
        print(
            f"  {short:,} of {report.evaluation_texts:,} evaluation texts are too short to search for"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megascratch curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    default = Settings()
    add_input(parser)
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
    add(
        "--json-key",
        default=default.json_key,
        metavar="KEY",
        help="key of the text in a line (default: text)",
    )
    add("--strict", action="store_true", help="stop at the first bad line, write nothing")
    _add_rules(add)
    _add_duplicates(add, default)
    return parser


def _add_rules(add: Callable[..., object]) -> None:
    """Rules on one text."""
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


def _add_duplicates(add: Callable[..., object], default: Settings) -> None:
    """Rules that compare a text with others."""
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="FILE",
        help="drop texts that share n-grams with these files",
    )
    add(
        "--decontaminate-key",
        default=default.decontaminate_key,
        metavar="KEY",
        help="key of the text in these files (default: text)",
    )
    add(
        "--decontaminate-words",
        type=int,
        default=default.decontaminate_words,
        metavar="N",
        help="words in a shared n-gram (default: 13, as in GPT-3; shorter evaluation texts must match entirely)",
    )
    add("--exact-duplicates", action="store_true", help="keep only the first of equal texts")
    add(
        "--near-duplicates",
        action="store_true",
        help="keep only the first of similar texts (MinHash, needs datasketch)",
    )
    add(
        "--similarity",
        type=float,
        default=default.similarity,
        metavar="J",
        help="Jaccard similarity (default: 0.8)",
    )
    add(
        "--shingle-words",
        type=int,
        default=default.shingle_words,
        metavar="N",
        help="words in a shingle (default: 13)",
    )
    add(
        "--permutations",
        type=int,
        default=default.permutations,
        metavar="N",
        help="permutations in a signature (default: 128)",
    )
